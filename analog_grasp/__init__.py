"""Adapt frozen transformers for analog in-memory computing.

GRASP and StochGRASP adapters, trained, deployed on simulated PCM and RRAM crossbars, and compared
over device presets and drift times. Importing this package makes both known to peft; what takes
long to load (torch, peft, aihwkit) is loaded with the first name that needs it.
"""

from typing import TYPE_CHECKING

from analog_grasp.hook import register_with_peft
from analog_grasp.utils.lazy import names_from

if TYPE_CHECKING:
    from analog_grasp.adapters import GraspConfig as GraspConfig
    from analog_grasp.adapters import StochGraspConfig as StochGraspConfig
    from analog_grasp.crossbar import Deployment as Deployment
    from analog_grasp.crossbar import deploy as deploy
    from analog_grasp.devices.card import DeviceCard as DeviceCard
    from analog_grasp.study.api import compare as compare
    from analog_grasp.study.api import drift_sweep as drift_sweep
    from analog_grasp.tasks import load_base_model as load_base_model
    from analog_grasp.tasks import load_task as load_task
    from analog_grasp.training import train as train
    from analog_grasp.tuning.api import tune_noise_weight as tune_noise_weight

_HOMES = {
    "Deployment": "crossbar",
    "DeviceCard": "devices.card",
    "GraspConfig": "adapters",
    "StochGraspConfig": "adapters",
    "compare": "study.api",
    "deploy": "crossbar",
    "drift_sweep": "study.api",
    "load_base_model": "tasks",
    "load_task": "tasks",
    "train": "training",
    "tune_noise_weight": "tuning.api",
}

__all__ = list(_HOMES)

# Out of a type checker's sight, for which any name would then be right.
if not TYPE_CHECKING:
    __getattr__, __dir__ = names_from(__name__, _HOMES)

register_with_peft()
