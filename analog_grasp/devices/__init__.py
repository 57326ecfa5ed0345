"""Memory devices as data: cards, the noise model made from a card, and target noise profiles."""

from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.errors import CardError
from analog_grasp.devices.noise import CardNoiseModel
from analog_grasp.devices.profile import Profile
from analog_grasp.devices.seed import derive_seed
from analog_grasp.devices.time import format_time, parse_time

__all__ = [
    "CardError",
    "CardNoiseModel",
    "DeviceCard",
    "Profile",
    "derive_seed",
    "format_time",
    "parse_time",
]
