"""What a tuning tries: the settings as given first, then what a sampler proposes."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial

from analog_grasp.study.config import StudyConfig
from analog_grasp.tuning.search_space import Range
from analog_grasp.utils.seed import derive_seed

# Trials drawn at random over the ranges before the sampler trusts what it has seen.
_RANDOM_TRIALS = 8

Values = dict[str, Any]
"""Settings by name, as one trial has them."""


def first_values(settings: StudyConfig, space: Mapping[str, Range]) -> list[Values]:
    """What the first trials try: the settings as given, and the same without the noise-aware loss.

    Example:
        >>> from analog_grasp.tuning.search_space import search_space
        >>> first_values(StudyConfig(), search_space(["noise_weight"]))
        [{'noise_weight': 1.0}, {'noise_weight': 0.0}]
    """
    given = {name: settings.value(name) for name in space}
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
        space: See `analog_grasp.tuning.search_space.search_space`.
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
