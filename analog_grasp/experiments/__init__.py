"""What is compared: studies over adapters, devices, drift times and chip instances."""

from analog_grasp.experiments.runner import (
    Progress,
    Study,
    learned_parameters,
    load_adapter,
    new_adapter,
    prepare,
    run,
    save_adapter,
    silent,
    train_adapter,
)
from analog_grasp.experiments.settings import Settings, resolve

__all__ = [
    "Progress",
    "Settings",
    "Study",
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
