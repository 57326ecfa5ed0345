"""How it is learned: the noise-aware loss, injected weight noise and the trainer."""

from analog_grasp.training.injection import WeightNoise
from analog_grasp.training.objective import NoiseAwareLoss
from analog_grasp.training.trainer import AdapterTrainer, train

__all__ = ["AdapterTrainer", "NoiseAwareLoss", "WeightNoise", "train"]
