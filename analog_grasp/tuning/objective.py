"""Objective of a tuning: one trial trains an adapter and measures it on simulated chips."""

import statistics
from collections.abc import Iterable, Mapping

import optuna
from optuna.trial import FrozenTrial, TrialState

from analog_grasp.devices.card import DeviceCard
from analog_grasp.study.config import StudyConfig
from analog_grasp.study.evaluator import Chip, Evaluator, Job, Subject
from analog_grasp.study.progress import silent
from analog_grasp.study.study import drift_times
from analog_grasp.study.trained_adapters import new_adapter, train_adapter
from analog_grasp.tasks import Task
from analog_grasp.tuning.search_space import WORSE, Trial
from analog_grasp.utils.seed import derive_seed


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
    """Train an adapter and measure it on every chip, cell by cell.

    A trial with one objective is pruned between two rounds if it is worse than the best trial on
    the same chips.

    Args:
        trial: Receives the scores.
        config: The settings, those of the trial included.
        adapter: The adapter to train.
        task: From `analog_grasp.tasks.splits.tuning_task`.
        cards: The device cards by name.

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
    asked = frozenset(Subject(adapter, 0, seconds) for seconds in drift_times(config))
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


def record(trial: FrozenTrial) -> Trial:
    """Return a finished trial as optuna has stored it."""
    attributes = trial.user_attrs
    score = trial.values[0] if trial.state == TrialState.COMPLETE and trial.values else None
    return Trial(
        number=trial.number,
        values=attributes["values"],
        score=score,
        digital=attributes.get("digital"),
        cells={(device, time_s): scores for device, time_s, scores in attributes.get("cells", [])},
        seconds=trial.duration.total_seconds() if trial.duration else 0.0,
        pruned=attributes.get("pruned", ""),
    )
