"""Where a tuning looks: which settings it varies, how far, and how often it tries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import optuna

TRIALS = 20


@dataclass(frozen=True)
class Range:
    """From where to where a setting is searched, both ends included.

    Example:
        >>> 0.1 in Range(0.001, 100), 0 in Range(0.001, 100)
        (True, False)
    """

    low: float
    high: float
    log: bool = True
    """Whether equal ratios are equally likely, and not equal differences."""
    whole: bool = False
    """Whether only whole numbers are."""

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high

    def suggest(self, trial: "optuna.Trial", name: str) -> float:
        """A trial's value of a setting."""
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)


RANGES: dict[str, Range] = {
    "noise_weight": Range(1e-3, 1e2),
    "noise_target": Range(0.01, 0.5),
    "groups": Range(1, 64, whole=True),
    "learning_rate": Range(1e-4, 1e-1),
    "injection": Range(0.0, 0.1, log=False),
}
"""What can be searched, and where unless another range is given."""


def search_space(
    names: Sequence[str], ranges: Mapping[str, tuple[float, float]] | None = None
) -> dict[str, Range]:
    """The settings to search with their ranges.

    Args:
        names: Of `RANGES`, one or more.
        ranges: Lowest and highest value of those that shall not have the default's.

    Raises:
        ValueError: A name is unknown or stands twice, or a range is empty or out of bounds.

    Example:
        >>> search_space(["noise_weight"], {"noise_weight": (0.1, 10)})["noise_weight"].high
        10
    """
    ranges = dict(ranges or {})
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"The search is {', '.join(names) or 'empty'}: name one setting or more of "
            f"{', '.join(RANGES)}, each once."
        )
    for name in [*names, *ranges]:
        if name not in RANGES:
            raise ValueError(
                f"The setting '{name}' cannot be searched: those that can are {', '.join(RANGES)}."
            )
        if name not in names:
            raise ValueError(
                f"There is a range for {name}, which is not searched: add it to the search, or "
                "leave the range out."
            )
    return {name: _narrowed(name, ranges.get(name)) for name in names}


def _narrowed(name: str, ends: tuple[float, float] | None) -> Range:
    default = RANGES[name]
    if ends is None:
        return default
    low, high = ends
    # An injection may be 0; a range of equal ratios cannot begin there, and K is counted from 1.
    fits = (low > 0 or (low == 0 and not default.log)) and low < high < float("inf")
    if not fits or (default.whole and (low % 1 or high % 1)):
        kind = "whole numbers from 1" if default.whole else "numbers above 0"
        raise ValueError(
            f"The range of {name} is {low:g} to {high:g}: it should run between two "
            f"{kind if default.log else 'numbers from 0'}, the lower first."
        )
    return Range(low, high, default.log, default.whole)
