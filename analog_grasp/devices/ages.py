"""Devices over ranges of ages, from which training draws a device at a drift time."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from analog_grasp.devices.card import DeviceAtTime, DeviceCard
from analog_grasp.utils.errors import shown
from analog_grasp.utils.seed import derive_seed
from analog_grasp.utils.time import format_time, parse_time

_ITEM = re.compile(r"(?P<device>.+)@(?P<times>[^@]+?)(?:\s*x(?P<factor>[^x@]*))?")
# With it, each decade of the age from minutes to years is equally frequent.
_SHORTEST_S = 60.0


class AgeRange(NamedTuple):
    """One device from an age, s since programming, to another.

    Example:
        >>> ages = AgeRange.parse("pcm-hermes-2@1h..1y")
        >>> ages.first, ages.last, str(ages)
        (3600.0, 31536000.0, 'pcm-hermes-2@1h..1y')
    """

    card: DeviceCard
    first: float
    last: float

    @classmethod
    def parse(cls, text: str) -> "AgeRange":
        """Return the range of ``"NAME@TIME"`` or ``"NAME@TIME..TIME"``, with a factor or none.

        The factor of ``"NAME@TIME..TIME x1.5"`` multiplies the standard deviations of the card's
        programming noise, drift and read noise.

        Raises:
            ValueError: The card is unknown or invalid, a time is absent or unreadable, the range is
                reversed, or the factor is not above 0.
        """
        found = _ITEM.fullmatch(text.strip())
        if found is None:
            raise ValueError(
                f"{shown(text)} has no drift time: write a device and a time or a range of times, "
                'such as "pcm-hermes-2@1d" or "pcm-hermes-2@0s..1y".'
            )
        first, dots, last = found["times"].partition("..")
        card = _scaled(DeviceCard.load(found["device"]), found["factor"])
        begin = parse_time(first)
        end = parse_time(last) if dots else begin
        if end < begin:
            raise ValueError(
                f"{shown(text)} is a reversed range of ages: write the smaller age first, as in "
                f"{card.name}@{format_time(end)}..{format_time(begin)}."
            )
        return cls(card, begin, end)

    def age(self, share: float) -> float:
        """Return the age at a share of the range, from 0 to 1, in ln(age + 1 min)."""
        if self.first == self.last:
            return self.first
        low, high = in_logarithm(self.first), in_logarithm(self.last)
        age = math.exp(low + share * (high - low)) - _SHORTEST_S
        return min(max(age, self.first), self.last)

    def __str__(self) -> str:
        times = dict.fromkeys((format_time(self.first), format_time(self.last)))
        return f"{self.card.name}@{'..'.join(times)}"


type Ages = str | DeviceAtTime | Sequence[str | AgeRange]
"""Devices at drift times as arguments take them: ``"NAME@TIME"``, ``"NAME@TIME..TIME"``, several of
these separated by commas or in a list, or ``card.at("1d")``."""


def parse_ages(ages: Ages) -> tuple[AgeRange, ...]:
    """Return the ranges of ages of one or several devices; see `Ages`.

    Raises:
        ValueError: As `AgeRange.parse`, or there is no range.

    Example:
        >>> [str(each) for each in parse_ages("pcm-hermes-2@0s..1y, gaussian:0.04@0s")]
        ['pcm-hermes-2@0s..1y', 'gaussian:0.04@0s']
    """
    if isinstance(ages, DeviceAtTime):
        return (AgeRange(ages.card, ages.time, ages.time),)
    parts = ages.split(",") if isinstance(ages, str) else ages
    ranges = tuple(
        AgeRange.parse(part) if isinstance(part, str) else part
        for part in parts
        if part and not (isinstance(part, str) and part.isspace())
    )
    if not ranges:
        raise ValueError(
            f"{shown(ages)} names no device: write a device and a time or a range of times, such "
            'as "pcm-hermes-2@0s..1y".'
        )
    return ranges


def in_logarithm(age: float) -> float:
    """Return ln(age + 1 min) of an age in s, in which ages are drawn and compared."""
    return math.log(age + _SHORTEST_S)


def draw(ranges: Sequence[AgeRange], seed: int) -> tuple[int, float]:
    """Return the index of a range and an age within it, s, drawn from a seed.

    Ranges are equally frequent; ages are uniform in the logarithm of (age + 1 min).

    Example:
        >>> draw(parse_ages("pcm-hermes-2@1d"), seed=3)
        (0, 86400.0)
    """
    index = derive_seed(seed, "range") % len(ranges)
    return index, ranges[index].age(derive_seed(seed, "age") / 2**63)


def _scaled(card: DeviceCard, factor: str | None) -> DeviceCard:
    """Return a card with its standard deviations multiplied by a factor, given as text."""
    if factor is None:
        return card
    try:
        value = float(factor)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(
            f"The factor x{factor[:20]} of {card.name} is no number above 0: write it as in x1.5."
        )
    return card.scaled(1.0, value)
