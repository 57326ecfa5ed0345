"""Where a tuning looks: which settings it varies, in which range, and what it tries first."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial

from analog_grasp.devices import derive_seed
from analog_grasp.experiments.settings import Settings

# Trials drawn at random over the ranges before the sampler trusts what it has seen.
_RANDOM_TRIALS = 8

Values = dict[str, Any]
"""Settings by name, as one trial has them."""


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

    def suggest(self, trial: optuna.Trial, name: str) -> float:
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


def first_values(settings: Settings, space: Mapping[str, Range]) -> list[Values]:
    """What the first trials try: the settings as given, and the same without the noise-aware loss.

    Example:
        >>> first_values(Settings(), search_space(["noise_weight"]))
        [{'noise_weight': 1.0}, {'noise_weight': 0.0}]
    """
    given = {name: getattr(settings, name) for name in space}
    without = given | {"noise_weight": 0.0}
    return [given, without] if "noise_weight" in given and given != without else [given]


def propose(
    trial: optuna.Trial, place: int, space: Mapping[str, Range], first: Sequence[Values]
) -> Values:
    """A trial's values: those of its place among the first ones, else the sampler's.

    A first value outside its range (no noise-aware loss at all, which no logarithm reaches) is
    tried all the same, without being a point of the range.

    Args:
        trial: Of a study whose sampler is `Proposals`.
        place: See `position`.
        space: See `search_space`.
        first: See `first_values`.
    """
    fixed = first[place] if place < len(first) else {}
    outside = {name: value for name, value in fixed.items() if value not in space[name]}
    return outside | {
        name: bounds.suggest(trial, name) for name, bounds in space.items() if name not in outside
    }


class Proposals(BaseSampler):
    """Optuna's TPE, but each trial's draws are seeded by its position in the study.

    So processes that share a study do not propose the same, and one that goes on proposes what
    it would have proposed without the interruption.

    Args:
        seed: Of the study.
        first: See `first_values`.

    Source:
        Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011 (TPE).
    """

    def __init__(self, seed: int, first: Sequence[Values]) -> None:
        self._seed, self._first = seed, first

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Nothing is drawn jointly: there are too few trials to learn how settings interact."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As `infer_relative_search_space`."""
        return {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """The value of a setting in a trial."""
        place = position(trial, study.get_trials(deepcopy=False))
        if place < len(self._first):
            return self._first[place][param_name]
        sampler = TPESampler(
            seed=derive_seed(self._seed, "proposal", place, param_name) % 2**32,
            n_startup_trials=_RANDOM_TRIALS,
            multivariate=False,
            # Trials that run elsewhere count as poor, so that nobody repeats them.
            constant_liar=True,
        )
        return sampler.sample_independent(study, trial, param_name, param_distribution)


def position(trial: FrozenTrial, everyone: Sequence[FrozenTrial]) -> int:
    """A trial's place in the study, which does not change where others had to be tried again.

    Args:
        trial: One that is tried again has the place of its first attempt.
        everyone: All trials of the study, in their order.
    """
    first = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
    number = trial.number if first is None else first
    attempts = map(RetryHeartbeatStaleTrialCallback.retried_trial_number, everyone[:number])
    return sum(attempt is None for attempt in attempts)


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Without optuna's lines about each trial, and its notes that a part of it is young."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
