"""Tuner: optuna searches the settings with the best accuracy under simulated drift.

Every trial trains the adapter on a part of the training data and measures it on the rest, on
simulated chips. Neither the task's own validation split nor the chip instances of a comparison are
used, so that both remain valid for evaluating the best settings.
"""

import statistics
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import tomli_w
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL

from analog_grasp.adapters.registry import ADAPTERS
from analog_grasp.devices.card import DeviceCard
from analog_grasp.study.checks import check_study
from analog_grasp.study.config import CHANGEABLE, StudyConfig, flat
from analog_grasp.study.evaluator import Chip, Evaluator, Job, Subject
from analog_grasp.study.progress import Progress, logged, silent
from analog_grasp.study.provenance import (
    LOG_FILE,
    card_hash,
    check_new,
    check_same,
    rows_hash,
    training_hashes,
)
from analog_grasp.study.study import check_single_process
from analog_grasp.study.trained_adapters import new_adapter, train_adapter
from analog_grasp.tasks import Task
from analog_grasp.tasks.base import tuning_task
from analog_grasp.tuning.optuna_study import (
    PositionSeededTPE,
    Values,
    connect,
    first_values,
    position,
    propose,
    quiet_optuna,
    share_heartbeats,
    shown_url,
    storage_errors,
)
from analog_grasp.tuning.search_space import (
    WORSE,
    Range,
    Trial,
    check_searched,
    search_space,
    values_text,
)
from analog_grasp.utils.errors import shown
from analog_grasp.utils.io import read_toml, write_atomically
from analog_grasp.utils.seed import derive_seed
from analog_grasp.utils.types import DEFAULT_GROUPS

STUDY_FILE, TUNE_FILE = "study.sqlite", "tune.toml"

# How often to look what other processes have finished, in seconds.
_POLL_SECONDS = 2.0
# A trial is pruned if it is worse than the best one at this level of Wilcoxon's test.
_PRUNE_LEVEL = 0.1
# Importance is that for being among the best quarter of trials, of which there must be a few.
_TOP_SHARE, _FEWEST_FOR_IMPORTANCE = 0.25, 8


@dataclass
class Tuning:
    """A tuning whose names are all known and whose settings fit, from `prepare_tuning`.

    Attributes:
        config: The settings that are not searched, and the start of the search.
        adapter, space, multi, directory: The adapter, the searched settings with their ranges,
            whether the digital score is a second objective, and the output folder.
        task: The task to tune on, made of the training split alone.
        cards: The device cards by name.
        storage, study: Those of optuna.
    """

    config: StudyConfig
    adapter: str
    space: Mapping[str, Range]
    multi: bool
    task: Task
    cards: Mapping[str, DeviceCard]
    directory: Path
    storage: RDBStorage
    study: optuna.Study

    def trials(self) -> list[Trial]:
        """Return the finished trials, in their order."""
        return [_record(t) for t in self.in_state(TrialState.COMPLETE, TrialState.PRUNED)]

    def front(self) -> list[Trial]:
        """Return the Pareto front of the two scores, the best score after drift first.

        Of equal trials, the earliest. Empty while no trial is measured completely.
        """
        measured = [
            (trial.score, trial.digital, trial)
            for trial in self.trials()
            if trial.score is not None and trial.digital is not None
        ]
        sign = self._sign
        front, best = [], float("-inf")
        for _, digital, trial in sorted(measured, key=lambda f: (-sign * f[0], -sign * f[1])):
            if sign * digital > best:
                front.append(trial)
                best = sign * digital
        return front

    def importance(self) -> dict[str, dict[str, float]]:
        """Return each searched setting's importance for being among the best quarter, by objective.

        Objectives are ``"score"`` and, with `multi`, ``"digital"``. Empty while there are too few
        measured trials.

        Source:
            PED-ANOVA: Watanabe et al., IJCAI 2023, arXiv 2304.10255.
        """
        names = list(self.space)
        measured = self.in_state(TrialState.COMPLETE)
        if sum(set(names) <= set(trial.params) for trial in measured) < _FEWEST_FOR_IMPORTANCE:
            return {}
        found = {}
        with quiet_optuna(), warnings.catch_warnings():
            # Optuna warns that it takes low targets for good ones; the sign accounts for it.
            warnings.simplefilter("ignore")
            for place, objective in enumerate(("score", "digital")[: len(self.study.directions)]):
                found[objective] = get_param_importances(
                    self.study,
                    evaluator=PedAnovaImportanceEvaluator(target_quantile=_TOP_SHARE),
                    params=names,
                    target=lambda trial, place=place: -self._sign * trial.values[place],
                )
        return found

    @property
    def _sign(self) -> int:
        """1 if the higher a score the better, -1 if the lower."""
        return 1 if self.task.greater_is_better else -1

    def in_state(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials in some states, in their order."""
        with storage_errors(self.storage.url):
            return self.study.get_trials(deepcopy=False, states=states)


def prepare_tuning(
    config: StudyConfig,
    directory: Path,
    *,
    adapter: str = "stochgrasp",
    search: Sequence[str] = ("noise_weight",),
    ranges: Mapping[str, tuple[float, float]] | None = None,
    multi: bool = False,
    held_out: int | None = None,
    storage: str | None = None,
) -> Tuning:
    """Check a tuning, and create its study or open the one to resume.

    The arguments are those of `analog_grasp.tune_noise_weight`; a study in a storage is named after
    the folder.

    Raises:
        ValueError: A name is unknown, a setting does not fit, the training split is too small, the
            folder or the storage holds another study, or the database's driver is missing.
        FileNotFoundError: Files of the model or the task are missing.
        OSError: The folder or the storage cannot be used.
    """
    check_single_process()
    for name in ("recalibrate", "schedule"):
        if value := config.value(name):
            raise ValueError(
                f"The setting {name} is {shown(value)}, which a tuning does not have: its trials "
                "are measured as trained."
            )
    config = config.replace(adapters=(adapter,))
    check_study(config)
    space = search_space(search, ranges)
    check_searched(space, adapter)
    given = config.given()
    if "learning_rate" in space and config.training.learning_rate is None and adapter in ADAPTERS:
        config = config.replace(learning_rate=ADAPTERS[adapter].learning_rate)
    if "groups" in space and config.training.groups is None:
        config = config.replace(groups=DEFAULT_GROUPS)
    # A default that is out of the range that was asked for is not tried.
    for name in (ranges or {}).keys() - given:
        config = config.replace(**{name: space[name].nearest(config.value(name))})
    cards = config.hardware.cards()
    task = tuning_task(config.task.load(), config.run.seed, held_out)
    _check_adapter(config, task, adapter, space)
    # The search comes first: a range can change a setting.
    asked = (
        {"search": {name: [bounds.low, bounds.high] for name, bounds in space.items()}}
        | flat(config, CHANGEABLE)
        | training_hashes(config, task)
        | {
            "metrics": list(task.metrics),
            "held_out_hash": rows_hash(task.validation),
            "adapter": adapter,
            "multi": multi,
            "held_out": len(task.validation),
            "cards": {name: card_hash(card) for name, card in cards.items()},
        }
    )
    file = directory / TUNE_FILE
    if file.is_file():
        there = read_toml(file, f"The file {file}")
        check_same(f"The output {directory}", "study", there, asked)
    else:
        check_new(directory, "tuning", (STUDY_FILE,))
    if not storage:
        directory.mkdir(parents=True, exist_ok=True)
        # Its parts are quoted, unlike those of a text.
        own = URL.create("sqlite", database=(directory / STUDY_FILE).as_posix())
        storage = own.render_as_string(hide_password=False)
    with quiet_optuna():
        database = connect(storage)
        first = first_values(config, space)
        direction = "maximize" if task.greater_is_better else "minimize"
        study = _study(database, directory.resolve().name, asked, direction, first)
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(file, tomli_w.dumps(asked).encode())
    return Tuning(config, adapter, space, multi, task, cards, directory, database, study)


def tune(tuning: Tuning, trials: int, progress: Progress = silent) -> None:
    """Run trials until the study has so many finished ones, earlier and other processes' included.

    Any number of processes may do so with the same study at once. A trial is finished when it is
    measured or pruned; one whose process was killed is tried again.

    Raises:
        OSError: The storage can no longer be used, or the disk is full.
    """
    finished = {trial.number for trial in tuning.trials()}
    missing = max(trials - len(finished), 0)
    begin = logged(progress, tuning.directory / LOG_FILE)
    advance = begin(f"tuning {tuning.adapter}: {missing} of {trials} trials", missing)
    with quiet_optuna(), storage_errors(tuning.storage.url):
        while len(finished) < trials:
            if len(finished) + len(tuning.in_state(TrialState.RUNNING)) < trials:
                tuning.study.optimize(
                    lambda trial: _run_trial(tuning, trial, trials), 1, catch=(_SurplusError,)
                )
            else:
                time.sleep(_POLL_SECONDS)
                share_heartbeats(tuning.study, tuning.storage)
                fail_stale_trials(tuning.study)
            for trial in tuning.trials():
                if trial.number not in finished:
                    finished.add(trial.number)
                    advance(_outcome(trial, tuning.task.metrics[0]))


class _SurplusError(Exception):
    """Another process was faster to start the last trial."""


def _run_trial(tuning: Tuning, trial: optuna.Trial, trials: int) -> float | Sequence[float]:
    """Run one trial, from its values to its scores; put it back if it is interrupted."""
    study = tuning.study
    try:
        everyone = study.get_trials(deepcopy=False)
        older = everyone[: trial.number]
        if sum(other.state != TrialState.FAIL for other in older) >= trials:
            raise _SurplusError
        first = first_values(tuning.config, tuning.space)
        values = propose(trial, position(everyone[trial.number], everyone), tuning.space, first)
        trial.set_user_attr("values", values)
        score, digital = measure(
            trial, tuning.config.replace(**values), tuning.adapter, tuning.task, tuning.cards
        )
    except optuna.TrialPruned:
        raise
    except ValueError as error:
        # Settings for which training diverges are poor, but the study continues.
        trial.set_user_attr("pruned", str(error))
        raise optuna.TrialPruned from error
    except (Exception, KeyboardInterrupt):
        RetryHeartbeatStaleTrialCallback()(study, study.trials[trial.number])
        raise
    return (score, digital) if tuning.multi else score


def tuning_rounds(config: StudyConfig, devices: Iterable[str]) -> list[list[Chip]]:
    """Return the chip instances to tune on, in rounds of one per device.

    None of them is among those that a comparison with the same settings measures.
    """
    seed = derive_seed(config.run.seed, "tuning") % 2**31
    return [
        [Chip(device, repeat, seed + repeat) for device in devices]
        for repeat in range(config.run.repeats)
    ]


def measure(
    trial: optuna.Trial,
    config: StudyConfig,
    adapter: str,
    task: Task,
    cards: Mapping[str, DeviceCard],
) -> tuple[float, float]:
    """Train an adapter and measure it on every chip, cell by cell, which the trial records.

    A trial with one objective is pruned between two rounds if it is worse than the best trial on
    the same chips.

    Returns:
        The mean score over chip instances, devices and drift times, and the digital score.

    Raises:
        optuna.TrialPruned: The trial is pruned.
        ValueError: A score is missing or not finite, as after a training that diverged.
    """
    model = new_adapter(config, task, adapter)
    train_adapter(model, config, task, "", silent)
    digital = task.evaluate(model)
    trial.set_user_attr("digital", digital)
    evaluator = Evaluator(task, {(adapter, 0): model}, dict(cards), config.hardware)
    one_objective = len(trial.study.directions) == 1
    asked = frozenset(Subject(adapter, 0, seconds) for seconds in config.run.seconds)
    scores: dict[tuple[str, float], list[float]] = {}
    for chips in tuning_rounds(config, cards):
        if scores and one_objective and trial.should_prune():
            trial.set_user_attr("pruned", WORSE)
            raise optuna.TrialPruned
        for cell in (c for chip in chips for c in evaluator.measure(Job(chip, asked))):
            if cell.failure:
                raise ValueError(cell.failure)
            score = cell.scores[task.metrics[0]]
            scores.setdefault((cell.chip.device, cell.subject.time_s), []).append(score)
            if one_objective:
                # By the number of the cell: trials are compared cell by cell.
                trial.report(score, sum(map(len, scores.values())))
        trial.set_user_attr("cells", [[*place, found] for place, found in scores.items()])
    return statistics.fmean(score for found in scores.values() for score in found), digital


def _record(trial: FrozenTrial) -> Trial:
    """Return a finished trial as optuna has stored it."""
    attributes = trial.user_attrs
    return Trial(
        number=trial.number,
        values=attributes["values"],
        score=trial.values[0] if trial.state == TrialState.COMPLETE else None,
        digital=attributes.get("digital"),
        cells={(device, time_s): scores for device, time_s, scores in attributes.get("cells", [])},
        seconds=trial.duration.total_seconds() if trial.duration else 0.0,
        pruned=attributes.get("pruned", ""),
    )


def _outcome(trial: Trial, metric: str) -> str:
    found = trial.pruned or f"{metric} {trial.score:.4f} after drift, {trial.digital:.4f} digital"
    return f"trial {trial.number} ({values_text(trial.values)}): {found}"


def _check_adapter(
    config: StudyConfig, task: Task, adapter: str, space: Mapping[str, Range]
) -> None:
    """Raise for an adapter that does not fit, with the largest K of the search."""
    most = {"groups": int(space["groups"].high)} if "groups" in space else {}
    new_adapter(config.replace(**most), task, adapter)


def _study(
    database: RDBStorage,
    name: str,
    asked: dict[str, Any],
    direction: str,
    first: Sequence[Values],
) -> optuna.Study:
    """Return the study of a name, created if it does not exist."""
    with storage_errors(database.url):
        study = optuna.create_study(
            storage=database,
            study_name=name,
            sampler=PositionSeededTPE(asked["seed"], first),
            pruner=optuna.pruners.WilcoxonPruner(p_threshold=_PRUNE_LEVEL),
            directions=[direction] * (2 if asked["multi"] else 1),
            load_if_exists=True,
        )
        if "asked" not in study.user_attrs:
            study.set_user_attr("asked", asked)
        there = study.user_attrs["asked"]
    check_same(f"The storage {shown_url(database.url)}", "study", there, asked)
    return study
