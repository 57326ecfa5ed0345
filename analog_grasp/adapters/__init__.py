"""What is learned: GRASP and StochGRASP as PEFT methods, and the adapters they are held against."""

from analog_grasp.adapters.config import GraspConfig, StochGraspConfig
from analog_grasp.adapters.layer import GraspLinear, StochGraspLinear
from analog_grasp.adapters.model import GraspModel, StochGraspModel
from analog_grasp.adapters.registration import register

register()

__all__ = [
    "GraspConfig",
    "GraspLinear",
    "GraspModel",
    "StochGraspConfig",
    "StochGraspLinear",
    "StochGraspModel",
    "register",
]
