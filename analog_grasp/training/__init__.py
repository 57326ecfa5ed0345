"""Training: the noise-aware loss, weight noise, converters in the loop and the trainer."""

from analog_grasp.training.converter_loop import ConverterLoop
from analog_grasp.training.loss import NoiseAwareLoss
from analog_grasp.training.recalibration import Recalibration, recalibrate
from analog_grasp.training.trainer import AdapterTrainer, ChipEvaluation, train
from analog_grasp.training.weight_noise import WeightNoise

__all__ = [
    "AdapterTrainer",
    "ChipEvaluation",
    "ConverterLoop",
    "NoiseAwareLoss",
    "Recalibration",
    "WeightNoise",
    "recalibrate",
    "train",
]
