"""The cells of a study: what is measured, in an order that programs each chip once."""

from collections.abc import Iterator
from dataclasses import dataclass

from analog_grasp.devices import parse_time
from analog_grasp.experiments.settings import Settings


@dataclass(frozen=True)
class Chip:
    """One chip instance of one device.

    Attributes:
        device: The card's name or path.
        repeat: The index of the instance within the study.
        seed: The integer that names the instance.
    """

    device: str
    repeat: int
    seed: int


def chips(settings: Settings) -> list[Chip]:
    """The chip instances of a study, device by device; the seeds count up from the study's.

    Example:
        >>> [chip.seed for chip in chips(Settings(devices=("ideal",), repeats=3, seed=7))]
        [7, 8, 9]
    """
    return [
        Chip(device, repeat, settings.seed + repeat)
        for device in settings.devices
        for repeat in range(settings.repeats)
    ]


def times(settings: Settings) -> Iterator[float]:
    """The drift times of a study, in seconds, as they were given."""
    return map(parse_time, settings.times)


def cell_count(settings: Settings) -> int:
    """How many cells a study measures.

    Example:
        >>> cell_count(Settings())
        120
    """
    return len(chips(settings)) * len(settings.times) * len(settings.adapters)
