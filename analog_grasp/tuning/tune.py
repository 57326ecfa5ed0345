"""Tuning: the settings under which an adapter keeps its score on ageing chips, found by optuna.

Every trial trains the adapter on a part of the training data and measures it on the rest, on
simulated chips. Neither the task's own validation split nor the chip instances of a comparison
are ever looked at, so that both stay good for judging the setting that is found.
"""

import time
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import tomli_w
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from analog_grasp.adapters.registry import ADAPTERS, check_placement
from analog_grasp.devices.card import DeviceCard
from analog_grasp.study.adapters import new_adapter
from analog_grasp.study.config import CHANGEABLE, StudyConfig, first_change, flat
from analog_grasp.study.folder import LOG_FILE, visible
from analog_grasp.study.progress import Progress, logged, silent
from analog_grasp.study.provenance import card_hash
from analog_grasp.tasks import Task
from analog_grasp.tasks.splits import tuning_task
from analog_grasp.training.loss import target_std
from analog_grasp.tuning.objective import Trial, measure, record, values_text
from analog_grasp.tuning.search import (
    Proposals,
    Values,
    first_values,
    position,
    propose,
    quiet_optuna,
)
from analog_grasp.tuning.search_space import TRIALS, Range, search_space
from analog_grasp.tuning.storage import (
    connect,
    file_url,
    share_heartbeats,
    shown_url,
    storage_errors,
)
from analog_grasp.utils.io import write_atomically

STUDY_FILE, TUNE_FILE = "study.sqlite", "tune.toml"

# Between two looks at what other processes have finished, in seconds.
_POLL_SECONDS = 2.0
# A trial is given up where it is worse than the best one at this level of Wilcoxon's test.
_GIVE_UP_LEVEL = 0.1
# Importance is that of being among the best quarter of the trials, which has to hold a few.
_TOP_SHARE, _FEWEST_FOR_IMPORTANCE = 0.25, 8


@dataclass
class Tuning:
    """A tuning whose every name has been found and every setting fits: ready to go on.

    Made by `prepare_tuning`.

    Attributes:
        settings: Those that are not searched, and where the search begins.
        adapter: What is tuned; see `analog_grasp.adapters.registry.ADAPTERS`.
        space: The searched settings with their ranges.
        multi: Whether the digital score is a goal of its own.
        task: The task to tune on, made of the training split alone.
        cards: The devices by name.
        directory: The output folder.
        storage, study: optuna's.
    """

    settings: StudyConfig
    adapter: str
    space: Mapping[str, Range]
    multi: bool
    task: Task
    cards: Mapping[str, DeviceCard]
    directory: Path
    storage: RDBStorage
    study: optuna.Study

    def trials(self) -> list[Trial]:
        """The finished trials, in their order."""
        return [record(t) for t in self._finished(TrialState.COMPLETE, TrialState.PRUNED)]

    def front(self) -> list[Trial]:
        """The measured trials that none beats in both scores, the best after drift first.

        Of equal ones, the earliest. Empty while nothing is measured whole.
        """
        measured = [trial for trial in self.trials() if trial.score is not None]
        measured.sort(key=lambda trial: (-_number(trial.score), -_number(trial.digital)))
        front = measured[:1]
        for trial in measured[1:]:
            if _number(trial.digital) > _number(front[-1].digital):
                front.append(trial)
        return front

    def settings_of(self, trial: Trial) -> StudyConfig:
        """The settings as a trial had them."""
        return with_values(self.settings, trial.values)

    def importance(self) -> dict[str, dict[str, float]]:
        """Each searched setting's share in being among the best quarter of trials, by goal.

        Goals are ``"score"`` and, where the digital score is one of its own, ``"digital"``. Empty
        while there are too few measured trials to tell.

        Source:
            PED-ANOVA: Watanabe et al., IJCAI 2023, arXiv 2304.10255.
        """
        names = list(self.space)
        measured = self._finished(TrialState.COMPLETE)
        if sum(set(names) <= set(trial.params) for trial in measured) < _FEWEST_FOR_IMPORTANCE:
            return {}
        goals = ("score", "digital")[: len(self.study.directions)]
        with quiet_optuna(), warnings.catch_warnings():
            # That a low target is taken for a good one, which the sign below is for.
            warnings.simplefilter("ignore")
            return {
                goal: get_param_importances(
                    self.study,
                    evaluator=PedAnovaImportanceEvaluator(target_quantile=_TOP_SHARE),
                    params=names,
                    target=partial(_minus, place),
                )
                for place, goal in enumerate(goals)
            }

    def _finished(self, *states: TrialState) -> list[FrozenTrial]:
        with storage_errors(self.storage.url):
            return self.study.get_trials(deepcopy=False, states=states)


def prepare_tuning(
    settings: StudyConfig,
    directory: Path,
    *,
    adapter: str = "stochgrasp",
    search: Sequence[str] = ("noise_weight",),
    ranges: Mapping[str, tuple[float, float]] | None = None,
    multi: bool = False,
    held_out: int | None = None,
    storage: str | None = None,
) -> Tuning:
    """Find all that a tuning needs, and begin its study or go on with it.

    Args:
        settings: Those that are not searched, and where the search begins.
        directory: The output folder: a new one, or that of the same tuning.
        adapter: What is tuned.
        search: The settings to search; see `analog_grasp.tuning.search_space.RANGES`.
        ranges: Lowest and highest value of those that shall not have the default's range.
        multi: Whether the digital score is a goal of its own.
        held_out: Training rows to tune on; a fifth, 1,000 at most, where None.
        storage: URL of the database that holds the study, under the name of the folder's last
            part; a SQLite file in the folder where None.

    Raises:
        ValueError: A name is unknown, a setting does not fit, the training split is too small, or
            the folder or the storage holds another study.
        FileNotFoundError: The model's or the task's files are not there.
        OSError: The folder or the storage cannot be used.
    """
    space = search_space(search, ranges)
    if "learning_rate" in space and settings.training.learning_rate is None and adapter in ADAPTERS:
        settings = with_values(settings, {"learning_rate": ADAPTERS[adapter].learning_rate})
    cards = settings.hardware.cards()
    task = tuning_task(settings.task.load(), settings.run.seed, held_out)
    _check_adapter(settings, task, adapter, space)
    asked = flat(settings, CHANGEABLE) | {
        "adapter": adapter,
        "multi": multi,
        "held_out": len(task.validation),
        "cards": {name: card_hash(card) for name, card in cards.items()},
        "search": {name: [bounds.low, bounds.high] for name, bounds in space.items()},
    }
    _check_folder(directory, asked)
    if storage is None:
        directory.mkdir(parents=True, exist_ok=True)
    with quiet_optuna():
        database = connect(storage or file_url(directory / STUDY_FILE))
        study = _study(database, directory.resolve().name, asked, first_values(settings, space))
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / TUNE_FILE, tomli_w.dumps(asked).encode())
    return Tuning(settings, adapter, space, multi, task, cards, directory, database, study)


def tune(tuning: Tuning, trials: int = TRIALS, progress: Progress = silent) -> None:
    """Try settings until the study has so many finished trials, whoever finishes them.

    Any number of processes may do so with the same study at once. A trial is finished when it
    is measured or given up; one whose process was killed is tried again.

    Args:
        tuning: From `prepare_tuning`.
        trials: Finished trials in total, those of earlier calls among them.
        progress: Told of each trial that finishes from now on.

    Raises:
        OSError: The storage cannot be used any more, or the disk is full.
    """
    finished = {trial.number for trial in tuning.trials()}
    missing = max(trials - len(finished), 0)
    begin = logged(progress, tuning.directory / LOG_FILE)
    advance = begin(f"tuning {tuning.adapter}: {missing} of {trials} trials", missing)
    with quiet_optuna(), storage_errors(tuning.storage.url):
        while len(finished) < trials:
            _go_on(tuning, trials, len(finished))
            for trial in tuning.trials():
                if trial.number not in finished:
                    finished.add(trial.number)
                    advance(_outcome(trial, tuning.task.metrics[0]))


def with_values(settings: StudyConfig, values: Mapping[str, Any]) -> StudyConfig:
    """The settings with other values of some.

    Raises:
        ValueError: A value is out of its range.
    """
    return settings.replace(**values)


class _SurplusError(Exception):
    """Another process was faster to begin the last trial that is wanted."""


def _go_on(tuning: Tuning, trials: int, finished: int) -> None:
    """Try one more setting; or wait, where as many as are wanted are in work already."""
    if finished + len(tuning._finished(TrialState.RUNNING)) < trials:
        tuning.study.optimize(lambda t: _attempt(tuning, t, trials), 1, catch=(_SurplusError,))
        return
    time.sleep(_POLL_SECONDS)
    share_heartbeats(tuning.study, tuning.storage)
    fail_stale_trials(tuning.study)


def _attempt(tuning: Tuning, trial: optuna.Trial, trials: int) -> float | Sequence[float]:
    """One trial, from its values to its scores; one that is interrupted is put back."""
    study = tuning.study
    try:
        everyone = study.get_trials(deepcopy=False)
        older = everyone[: trial.number]
        if sum(other.state != TrialState.FAIL for other in older) >= trials:
            raise _SurplusError
        first = first_values(tuning.settings, tuning.space)
        values = propose(trial, position(everyone[trial.number], everyone), tuning.space, first)
        trial.set_user_attr("values", values)
        score, digital = measure(
            trial, with_values(tuning.settings, values), tuning.adapter, tuning.task, tuning.cards
        )
    except optuna.TrialPruned:
        raise
    except ValueError as error:
        # Settings that make a training diverge are poor ones, and no reason to end the study.
        trial.set_user_attr("given_up", str(error))
        raise optuna.TrialPruned from error
    except (Exception, KeyboardInterrupt):
        RetryHeartbeatStaleTrialCallback()(study, study.trials[trial.number])
        raise
    return (score, digital) if tuning.multi else score


def _outcome(trial: Trial, metric: str) -> str:
    found = trial.given_up or f"{metric} {trial.score:.4f} after drift, {trial.digital:.4f} digital"
    return f"trial {trial.number} ({values_text(trial.values)}): {found}"


def _minus(place: int, trial: FrozenTrial) -> float:
    return -trial.values[place]


def _number(score: float | None) -> float:
    """A score to sort by."""
    return float("-inf") if score is None else score


def _check_adapter(
    settings: StudyConfig, task: Task, adapter: str, space: Mapping[str, Range]
) -> None:
    """Raise what is wrong with the adapter, at the largest K that may come, before any training."""
    target_std(settings.training.noise_target)
    most = {"groups": int(space["groups"].high)} if "groups" in space else {}
    check_placement(adapter, settings.hardware.placement)
    config = new_adapter(with_values(settings, most), task, adapter).active_peft_config
    for name in {"noise_weight", "noise_target", "groups"} & space.keys():
        if not hasattr(config, name):
            raise ValueError(
                f"The adapter {adapter} has no {name} to search: search learning_rate or "
                "injection, or tune stochgrasp."
            )


def _check_folder(directory: Path, asked: Mapping[str, Any]) -> None:
    """Refuse a folder that holds anything but this tuning."""
    if (directory / TUNE_FILE).is_file():
        there = tomllib.loads((directory / TUNE_FILE).read_text(encoding="utf-8"))
        _check_same(f"The output {directory}", there, asked)
    elif (directory / STUDY_FILE).is_file():
        return
    elif directory.exists() and (not directory.is_dir() or any(visible(directory))):
        raise ValueError(
            f"The output {directory} holds files that are not of a tuning: name an empty or new "
            "folder."
        )


def _study(
    database: RDBStorage, name: str, asked: dict[str, Any], first: Sequence[Values]
) -> optuna.Study:
    """The study of a name, begun where there is none."""
    with storage_errors(database.url):
        study = optuna.create_study(
            storage=database,
            study_name=name,
            sampler=Proposals(asked["seed"], first),
            pruner=optuna.pruners.WilcoxonPruner(p_threshold=_GIVE_UP_LEVEL),
            directions=["maximize"] * (2 if asked["multi"] else 1),
            load_if_exists=True,
        )
        if "asked" not in study.user_attrs:
            study.set_user_attr("asked", asked)
        there = study.user_attrs["asked"]
    _check_same(f"The storage {shown_url(database.url)}", there, asked)
    return study


def _check_same(where: str, there: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    if name := first_change(there, asked):
        raise ValueError(
            f"{where} holds another study, whose {name} is {there.get(name)!r} and not "
            f"{asked.get(name)!r}: name another folder, or the same settings to go on with it."
        )
