"""Training: noise-aware loss, weight noise, converters in the loop, trainer, recalibration."""

from analog_grasp.training.chip_evaluation import ChipEvaluation
from analog_grasp.training.distillation import distil
from analog_grasp.training.hardware_loop import ConverterLoop, WeightNoise
from analog_grasp.training.loss import NoiseAwareLoss
from analog_grasp.training.recalibration import Recalibration, recalibrate
from analog_grasp.training.schedule import AgeSchedule, fit_schedule
from analog_grasp.training.trainer import AdapterTrainer, train

__all__ = [
    "AdapterTrainer",
    "AgeSchedule",
    "ChipEvaluation",
    "ConverterLoop",
    "NoiseAwareLoss",
    "Recalibration",
    "WeightNoise",
    "distil",
    "fit_schedule",
    "recalibrate",
    "train",
]
