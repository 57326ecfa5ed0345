"""How it is learned: the noise-aware loss, the noise of the hardware in training, the trainer."""

from analog_grasp.training.converter_loop import ConverterLoop
from analog_grasp.training.evaluation import ChipEvaluation
from analog_grasp.training.loss import NoiseAwareLoss
from analog_grasp.training.trainer import AdapterTrainer, train
from analog_grasp.training.weight_noise import WeightNoise

__all__ = [
    "AdapterTrainer",
    "ChipEvaluation",
    "ConverterLoop",
    "NoiseAwareLoss",
    "WeightNoise",
    "train",
]
