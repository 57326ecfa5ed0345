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
# Far beyond any training; conductances stay finite.
_LARGEST_FACTOR = 100


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
    factor: float | None = None
    """Factor that the standard deviations of `card` include, kept for the text; None for none."""

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
        card, factor = DeviceCard.load(found["device"]), None
        if found["factor"] is not None:
            factor = _factor(card.name, found["factor"])
            card = card.scaled(1.0, factor)
        begin = parse_time(first)
        end = parse_time(last) if dots else begin
        if end < begin:
            raise ValueError(
                f"{shown(text)} is a reversed range of ages: write the smaller age first, as in "
                f"{card.name}@{format_time(end)}..{format_time(begin)}."
            )
        return cls(card, begin, end, factor)

    def age(self, share: float) -> float:
        """Return the age at a share of the range, from 0 to 1, in ln(age + 1 min)."""
        if self.first == self.last:
            return self.first
        low, high = in_logarithm(self.first), in_logarithm(self.last)
        age = math.exp(low + share * (high - low)) - _SHORTEST_S
        return min(max(age, self.first), self.last)

    def __str__(self) -> str:
        times = dict.fromkeys((format_time(self.first), format_time(self.last)))
        factor = "" if self.factor is None else f" x{self.factor!r}".removesuffix(".0")
        return f"{self.card.name}@{'..'.join(times)}{factor}"


type Ages = str | DeviceAtTime | AgeRange | Sequence[str | DeviceAtTime | AgeRange]
"""Devices at drift times as arguments take them: ``"NAME@TIME"``, ``"NAME@TIME..TIME"``, several of
these separated by commas, ``card.at("1d")``, an `AgeRange`, or a list of these."""


def parse_ages(ages: Ages) -> tuple[AgeRange, ...]:
    """Return the ranges of ages of one or several devices; see `Ages`.

    Raises:
        ValueError: As `AgeRange.parse`, or there is no range, or one is of another type.

    Example:
        >>> [str(each) for each in parse_ages("pcm-hermes-2@0s..1y, gaussian:0.04@0s")]
        ['pcm-hermes-2@0s..1y', 'gaussian:0.04@0s']
    """
    parts: Sequence[object] = (ages,)
    if isinstance(ages, str):
        parts = ages.split(",")
    elif isinstance(ages, Sequence) and not isinstance(ages, DeviceAtTime | AgeRange):
        parts = ages
    ranges = tuple(_range(part) for part in parts if not isinstance(part, str) or part.strip())
    if not ranges:
        raise ValueError(
            f"{shown(ages)} names no device: write a device and a time or a range of times, such "
            'as "pcm-hermes-2@0s..1y".'
        )
    return ranges


def parse_age(age: str | DeviceAtTime) -> AgeRange:
    """Return one device at one drift time, with a factor or none.

    Raises:
        ValueError: As `AgeRange.parse`, or there are several devices or a range of ages.

    Example:
        >>> str(parse_age("pcm-hermes-2@1d x1.5"))
        'pcm-hermes-2@1d x1.5'
    """
    first, *others = parse_ages(age)
    if others or first.first != first.last:
        raise ValueError(
            f"{shown(str(age))} is more than one device at one time: write one, such as "
            '"pcm-hermes-2@1d", or "pcm-hermes-2@1d x1.5".'
        )
    return first


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


def _range(part: object) -> AgeRange:
    """Return the range of one item of `Ages`."""
    if isinstance(part, AgeRange):
        return part
    if isinstance(part, DeviceAtTime):
        return AgeRange(part.card, part.time, part.time)
    if isinstance(part, str):
        return AgeRange.parse(part)
    if isinstance(part, DeviceCard):
        raise ValueError(
            f"The device {part.name} has no drift time: give one, as in "
            f'DeviceCard.load("{part.name}").at("1d").'
        )
    raise ValueError(
        f"{shown(part)} is no device at a time: give text such as "
        '"pcm-hermes-2@0s..1y", or a card at a time, such as card.at("1d").'
    )


def _factor(name: str, factor: str) -> float:
    """Return the factor of a device, given as text."""
    try:
        value = float(factor)
    except ValueError:
        value = math.nan
    if not 0 < value <= _LARGEST_FACTOR:
        raise ValueError(
            f"The factor x{factor[:20]} of {name} is no number above 0, at most "
            f"{_LARGEST_FACTOR}: write it as in x1.5."
        )
    return value
