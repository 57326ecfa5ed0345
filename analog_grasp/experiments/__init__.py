"""What is compared: studies over adapters, devices, drift times and chip instances."""

from analog_grasp.experiments.adapters import (
    learned_parameters,
    load_adapter,
    new_adapter,
    save_adapter,
    train_adapter,
)
from analog_grasp.experiments.progress import Advance, Progress, silent
from analog_grasp.experiments.runner import Study, done_of_all, prepare, run
from analog_grasp.experiments.settings import Settings, resolve

__all__ = [
    "Advance",
    "Progress",
    "Settings",
    "Study",
    "done_of_all",
    "learned_parameters",
    "load_adapter",
    "new_adapter",
    "prepare",
    "resolve",
    "run",
    "save_adapter",
    "silent",
    "train_adapter",
]
