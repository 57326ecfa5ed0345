"""How it is learned: the noise-aware loss, the noise of the hardware in training, the trainer."""

from analog_grasp.training.converters import ConverterLoop
from analog_grasp.training.evaluation import ChipEvaluation
from analog_grasp.training.injection import WeightNoise
from analog_grasp.training.objective import NoiseAwareLoss
from analog_grasp.training.trainer import AdapterTrainer, train

__all__ = [
    "AdapterTrainer",
    "ChipEvaluation",
    "ConverterLoop",
    "NoiseAwareLoss",
    "WeightNoise",
    "train",
]
