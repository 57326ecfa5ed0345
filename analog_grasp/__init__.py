"""Adapt frozen transformers for analog in-memory computing.

GRASP and StochGRASP adapters, trained, deployed on simulated PCM and RRAM crossbars, and compared
over device presets and drift times. Importing this package makes both known to peft.
"""

from analog_grasp.adapters import GraspConfig, StochGraspConfig
from analog_grasp.crossbar import Deployment, deploy
from analog_grasp.devices import DeviceCard
from analog_grasp.studies import compare, drift_sweep
from analog_grasp.tasks import load_task
from analog_grasp.training import train

__all__ = [
    "Deployment",
    "DeviceCard",
    "GraspConfig",
    "StochGraspConfig",
    "compare",
    "deploy",
    "drift_sweep",
    "load_task",
    "train",
]
