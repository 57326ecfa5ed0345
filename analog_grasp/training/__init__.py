"""Training: noise-aware loss, weight noise, converters in the loop, trainer, recalibration."""

from analog_grasp.training.adapter_trainer import AdapterTrainer
from analog_grasp.training.chip_evaluation import ChipEvaluation
from analog_grasp.training.converter_loop import ConverterLoop
from analog_grasp.training.distillation import distil
from analog_grasp.training.loss import NoiseAwareLoss
from analog_grasp.training.recalibration import Recalibration, recalibrate
from analog_grasp.training.schedule import AgeSchedule, fit_schedule
from analog_grasp.training.trainer import train
from analog_grasp.training.weight_noise import WeightNoise

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
