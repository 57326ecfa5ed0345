"""Memory devices as data: cards, the noise model made from a card, and target noise profiles."""

from typing import TYPE_CHECKING

from analog_grasp.lazy import names_from

if TYPE_CHECKING:
    from analog_grasp.devices.card import DeviceCard as DeviceCard
    from analog_grasp.devices.errors import CardError as CardError
    from analog_grasp.devices.noise import CardNoiseModel as CardNoiseModel
    from analog_grasp.devices.profile import Profile as Profile
    from analog_grasp.devices.seed import derive_seed as derive_seed
    from analog_grasp.devices.time import format_time as format_time
    from analog_grasp.devices.time import parse_time as parse_time

_HOMES = {
    "CardError": "errors",
    "CardNoiseModel": "noise",
    "DeviceCard": "card",
    "Profile": "profile",
    "derive_seed": "seed",
    "format_time": "time",
    "parse_time": "time",
}

__all__ = list(_HOMES)

# Out of a type checker's sight, for which any name would then be right.
if not TYPE_CHECKING:
    __getattr__, __dir__ = names_from(__name__, _HOMES)
