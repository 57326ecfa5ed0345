"""Times since programming as text, and their units."""

import math
import re
from numbers import Real

from analog_grasp.utils.errors import shown

UNIT_SECONDS = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 1e-3,
    "s": 1,
    "min": 60,
    "h": 3600,
    "d": 86_400,
    "w": 7 * 86_400,
    "mo": 30 * 86_400,
    "y": 365 * 86_400,
}
"""Seconds per unit of time; a month is 30 days, a year 365."""
_WRITTEN = ("y", "d", "h", "min")
_FORM = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([^\W\d_]*)\s*")
_ACCEPTED = (
    'write it as "20s", "5min", "1h", "7d", "2w", "1mo" (30 days) or "1y" (365 days), '
    "or as plain seconds"
)


def parse_time(time: str | float) -> float:
    """Return a time since programming in seconds.

    Args:
        time: Seconds, or text: a number and one of the units of `UNIT_SECONDS`, such as s, min, h,
            d, w, mo (30 days) or y (365 days). Text without a unit is in seconds.

    Raises:
        ValueError: The time is neither a number nor text that can be read, is negative or is not
            finite.

    Example:
        >>> parse_time("30d")
        2592000.0
        >>> parse_time(20)
        20.0
    """
    if isinstance(time, str):
        match = _FORM.fullmatch(time)
        if match is None:
            raise ValueError(f"time {_shown(time)} cannot be read: {_ACCEPTED}.")
        number, unit = match.groups()
        if unit and unit not in UNIT_SECONDS:
            raise ValueError(
                f'time {_shown(time)} has the unknown unit "{unit[:20]}": {_ACCEPTED}.'
            )
        seconds = times_unit(float(number), UNIT_SECONDS[unit or "s"])
    else:
        seconds = _number(time)
    if not math.isfinite(seconds):
        raise ValueError(f"time {_shown(time)} is not finite: {_ACCEPTED}.")
    if seconds < 0:
        raise ValueError(
            f"time {_shown(time)} is negative: times count from the end of programming; "
            f"{_ACCEPTED}."
        )
    # Not -0.0, which has other bits and so another seed.
    return seconds + 0.0


def format_time(seconds: float) -> str:
    """Return a time since programming as text in the largest unit that gives a whole number.

    The units are y (365 days), d, h, min and s. `parse_time` returns the same time.

    Raises:
        ValueError: `seconds` is negative or not finite.

    Example:
        >>> [format_time(t) for t in (0, 20, 3600, 2592000, 31536000)]
        ['0s', '20s', '1h', '30d', '1y']
    """
    seconds = parse_time(seconds)
    # From 2**53 s on not every integer is a float, and whole units would not be read back exactly.
    if not seconds.is_integer() or seconds >= 2**53:
        return f"{seconds!r}s"
    whole = int(seconds)
    for unit in _WRITTEN:
        if whole and whole % UNIT_SECONDS[unit] == 0:
            return f"{whole // UNIT_SECONDS[unit]}{unit}"
    return f"{whole}s"


def times_unit(number: float, factor: float) -> float:
    """Return `number * factor`, rounded once, for a unit's factor that may be a power of ten.

    Example:
        >>> times_unit(512.0, 1e-9) == 512e-9
        True
    """
    # Dividing by 1e9 rounds once; multiplying by 1e-9 rounds twice.
    return number * factor if factor >= 1 else number / round(1 / factor)


def _number(time: object) -> float:
    """Return a number of seconds as a float; infinity for an integer that is too large for one."""
    if not isinstance(time, Real) or isinstance(time, bool):
        raise ValueError(f"time {_shown(time)} is not a time: {_ACCEPTED}.")
    try:
        return float(time)
    except OverflowError:
        return math.inf


def _shown(time: object) -> str:
    if not isinstance(time, str):
        return shown(time)
    return f'"{time}"' if len(time) <= 40 else f'"{time[:40]}..."'
