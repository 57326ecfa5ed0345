"""Search space and trials of a tuning: settings that can be varied, their ranges and values."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

from analog_grasp.study.config import SETTINGS
from analog_grasp.study.fields import split_names
from analog_grasp.utils.errors import shown

if TYPE_CHECKING:
    import optuna

TRIALS = 20
"""Default number of trials."""

WORSE = "worse than the best trial on the same chips"
"""Reason for which a trial is pruned."""


@dataclass(frozen=True)
class Range:
    """Range of a setting, both ends included.

    Example:
        >>> 0.1 in Range(0.001, 100), 0 in Range(0.001, 100)
        (True, False)
    """

    low: float
    high: float
    log: bool = True
    """Sample uniformly in the logarithm."""
    whole: bool = False
    """Sample whole numbers only."""

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high

    def nearest(self, value: float) -> float:
        """Return the value of the range that is closest to one."""
        return min(max(value, self.low), self.high)

    def suggest(self, trial: "optuna.Trial", name: str) -> float:
        """Return a trial's value of a setting."""
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)


RANGES: dict[str, Range] = {
    "noise_weight": Range(1e-3, 1e2),
    "noise_target": Range(0.01, 0.5),
    "groups": Range(1, 64, whole=True),
    "learning_rate": Range(1e-4, 1e-1),
    "shift_lr_ratio": Range(0.05, 2.0),
    "sigma_lr_ratio": Range(0.1, 10.0),
    "init_sigma": Range(0.01, 0.5),
    "injection": Range(0.0, 0.1, log=False),
}
"""Settings that can be searched, with their default ranges."""


def search_space(
    names: Sequence[str], ranges: Mapping[str, tuple[float, float]] | None = None
) -> dict[str, Range]:
    """Return the settings to search, some of `RANGES`, with their ranges or others.

    Raises:
        ValueError: A name is unknown or given twice, or a range is empty or out of bounds.

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
                "omit the range."
            )
    return {name: _narrowed(name, ranges.get(name)) for name in names}


def check_searched(names: Iterable[str], adapter: str) -> None:
    """Raise ValueError where an adapter lacks a setting that is to be searched.

    Example:
        >>> check_searched(["noise_weight"], "stochgrasp")
    """
    for name in names:
        if (own := SETTINGS[name].note.adapters) and adapter not in own:
            raise ValueError(
                f"The adapter {adapter} has no {name} to search: search learning_rate or "
                "injection, or tune stochgrasp."
            )


def parse_ranges(text: str) -> dict[str, tuple[float, float]]:
    """Read ranges of a search, such as ``noise_weight=0.01:10,groups=4:32``.

    Raises:
        ValueError: The text has another form.

    Example:
        >>> parse_ranges("groups=4:32")
        {'groups': (4.0, 32.0)}
    """
    found: dict[str, tuple[float, float]] = {}
    for part in split_names(text):
        name, _, ends = part.partition("=")
        try:
            low, high = map(float, ends.split(":"))
        except ValueError:
            raise ValueError(
                f"The range '{part}' is invalid: give a setting with its lowest and highest value, "
                "as in noise_weight=0.01:10."
            ) from None
        found[name.strip()] = (low, high)
    return found


def _narrowed(name: str, ends: tuple[float, float] | None) -> Range:
    default = RANGES[name]
    if ends is None:
        return default
    pair = isinstance(ends, Sequence) and len(ends) == 2
    if not pair or not all(isinstance(end, Real) for end in ends):
        raise ValueError(f"The range of {name} is {shown(ends)}: a pair of numbers is accepted.")
    low, high = ends
    # An injection may be 0; a logarithmic range cannot start there, and K is at least 1.
    valid = (low > 0 or (low == 0 and not default.log)) and low < high < float("inf")
    if not valid or (default.whole and (low % 1 or high % 1)):
        kind = "whole numbers from 1" if default.whole else "numbers above 0"
        raise ValueError(
            f"The range of {name} is {low:g} to {high:g}: it should run between two "
            f"{kind if default.log else 'numbers from 0'}, the lower first."
        )
    return Range(low, high, default.log, default.whole)


@dataclass(frozen=True)
class Trial:
    """One combination of settings that was tried.

    Attributes:
        number: Index of the trial within the study.
        values: The searched settings of this trial.
        score: Mean of the task's first metric over chip instances, devices and drift times; None
            for a pruned trial.
        digital: Score of the digital model; None where it was not measured.
        cells: Score on each chip instance that was measured, by device and drift time, s.
        seconds: Duration of the trial, s.
        pruned: Why it was pruned; empty for a trial that was measured completely.
    """

    number: int
    values: Mapping[str, Any]
    score: float | None
    digital: float | None
    cells: Mapping[tuple[str, float], Sequence[float]]
    seconds: float
    pruned: str


@dataclass(frozen=True)
class Trials:
    """The trials of a tuning, for its report.

    Attributes:
        task, metric: Task and the metric that is tuned for.
        space: Searched settings with their ranges.
        given: Values of the searched settings as requested.
        trials: Finished trials.
        front: Pareto front of the trials, the best one first.
        multi: True with two goals, the score after drift and the digital score.
        importance: Of each setting by goal, "score" and "digital"; empty with too few trials.
    """

    task: str
    metric: str
    space: Mapping[str, Range]
    given: Mapping[str, Any]
    trials: Sequence[Trial]
    front: Sequence[Trial]
    multi: bool
    importance: Mapping[str, Mapping[str, float]]

    @property
    def levels(self) -> list[tuple[str, float]]:
        """Noise levels: every device at every drift time in seconds."""
        return list(dict.fromkeys(level for trial in self.trials for level in trial.cells))


def value_text(value: object) -> str:
    """Return a setting's value as text."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def values_text(values: Mapping[str, Any]) -> str:
    """Return settings on one line.

    Example:
        >>> values_text({"noise_weight": 0.5, "groups": 4})
        'noise_weight 0.5, groups 4'
    """
    return ", ".join(f"{name} {value_text(value)}" for name, value in values.items())
