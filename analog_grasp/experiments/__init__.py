"""What is compared: studies over adapters, devices, drift times and chip instances."""

from typing import TYPE_CHECKING

from analog_grasp.lazy import names_from

if TYPE_CHECKING:
    from analog_grasp.experiments.adapters import learned_parameters as learned_parameters
    from analog_grasp.experiments.adapters import load_adapter as load_adapter
    from analog_grasp.experiments.adapters import new_adapter as new_adapter
    from analog_grasp.experiments.adapters import save_adapter as save_adapter
    from analog_grasp.experiments.adapters import train_adapter as train_adapter
    from analog_grasp.experiments.progress import Advance as Advance
    from analog_grasp.experiments.progress import Progress as Progress
    from analog_grasp.experiments.progress import silent as silent
    from analog_grasp.experiments.runner import Study as Study
    from analog_grasp.experiments.runner import done_of_all as done_of_all
    from analog_grasp.experiments.runner import prepare as prepare
    from analog_grasp.experiments.runner import run as run
    from analog_grasp.experiments.settings import Settings as Settings
    from analog_grasp.experiments.settings import resolve as resolve

_HOMES = {
    "Advance": "progress",
    "Progress": "progress",
    "Settings": "settings",
    "Study": "runner",
    "done_of_all": "runner",
    "learned_parameters": "adapters",
    "load_adapter": "adapters",
    "new_adapter": "adapters",
    "prepare": "runner",
    "resolve": "settings",
    "run": "runner",
    "save_adapter": "adapters",
    "silent": "progress",
    "train_adapter": "adapters",
}

__all__ = list(_HOMES)

# Out of a type checker's sight, for which any name would then be right.
if not TYPE_CHECKING:
    __getattr__, __dir__ = names_from(__name__, _HOMES)
