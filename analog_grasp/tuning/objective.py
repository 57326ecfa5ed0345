"""One trial of a tuning: what it trains on, what it is measured on, and what is kept of it."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from analog_grasp.devices.card import DeviceCard
from analog_grasp.study.adapters import new_adapter, train_adapter
from analog_grasp.study.config import StudyConfig
from analog_grasp.study.evaluator import Bench, Job
from analog_grasp.study.grid import Chip, times
from analog_grasp.study.progress import silent
from analog_grasp.tasks import Task
from analog_grasp.utils.seed import derive_seed

WORSE = "worse than the best trial on the same chips"


@dataclass(frozen=True)
class Trial:
    """One setting that was tried.

    Attributes:
        number: Of the trial within the study.
        values: The searched settings as this trial had them.
        score: The mean of the task's first metric over chip instances, devices and drift times;
            None where the trial was given up.
        digital: The score of the digital model; None where it could not be had.
        cells: The score on each chip instance that was measured, by device and drift time in
            seconds.
        seconds: How long the trial took.
        given_up: Why it was given up; empty for a trial that was measured whole.
    """

    number: int
    values: Mapping[str, Any]
    score: float | None
    digital: float | None
    cells: Mapping[tuple[str, float], Sequence[float]]
    seconds: float
    given_up: str


def value_text(value: object) -> str:
    """A setting's value as it is shown.

    Example:
        >>> value_text(0.314159), value_text(16), value_text("pcm-hermes-2@1d")
        ('0.3142', '16', 'pcm-hermes-2@1d')
    """
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def values_text(values: Mapping[str, Any]) -> str:
    """Settings on one line.

    Example:
        >>> values_text({"noise_weight": 0.5, "groups": 4})
        'noise_weight 0.5, groups 4'
    """
    return ", ".join(f"{name} {value_text(value)}" for name, value in values.items())


def tuning_rounds(settings: StudyConfig, devices: Iterable[str]) -> list[list[Chip]]:
    """The chip instances to tune on, in rounds of one of each device.

    None of them is among those that a comparison with the same settings measures.
    """
    seed = derive_seed(settings.run.seed, "tuning") % 2**31
    return [
        [Chip(device, repeat, seed + repeat) for device in devices]
        for repeat in range(settings.run.repeats)
    ]


def measure(
    trial: optuna.Trial,
    settings: StudyConfig,
    adapter: str,
    task: Task,
    cards: Mapping[str, DeviceCard],
) -> tuple[float, float]:
    """Train an adapter and measure it on every chip, cell by cell.

    A trial with one goal is given up between two rounds where it is worse than the best trial on
    the same chips.

    Args:
        trial: Takes the scores.
        settings: As the trial has them.
        adapter: What is trained.
        task: From `analog_grasp.tasks.splits.tuning_task`.
        cards: The devices by name.

    Returns:
        The mean score over chip instances, devices and drift times, and the digital score.

    Raises:
        optuna.TrialPruned: The trial is given up.
        ValueError: A score is not finite, as after a training that diverged.
    """
    model = new_adapter(settings, task, adapter)
    train_adapter(model, settings, task, "", silent)
    digital = task.evaluate(model)
    trial.set_user_attr("digital", digital)
    bench = Bench(
        task, {adapter: model}, dict(cards), settings.hardware.deploy_arguments(), settings.hardware
    )
    one_goal = len(trial.study.directions) == 1
    wanted = frozenset((adapter, seconds) for seconds in times(settings))
    scores: dict[tuple[str, float], list[float]] = {}
    for chips in tuning_rounds(settings, cards):
        if scores and one_goal and trial.should_prune():
            trial.set_user_attr("given_up", WORSE)
            raise optuna.TrialPruned
        for cell in (c for chip in chips for c in bench.measure(Job(chip, wanted))):
            if cell.failure:
                raise ValueError(cell.failure)
            score = cell.scores[task.metrics[0]]
            scores.setdefault((cell.chip.device, cell.time_s), []).append(score)
            if one_goal:
                # By the number of the cell: trials are held against each other cell by cell.
                trial.report(score, sum(map(len, scores.values())))
        trial.set_user_attr("cells", [[*level, found] for level, found in scores.items()])
    return statistics.fmean(score for found in scores.values() for score in found), digital


def record(trial: FrozenTrial) -> Trial:
    """What optuna has kept of a finished trial."""
    attributes = trial.user_attrs
    score = trial.values[0] if trial.state == TrialState.COMPLETE and trial.values else None
    return Trial(
        number=trial.number,
        values=attributes["values"],
        score=score,
        digital=attributes.get("digital"),
        cells={(device, time_s): scores for device, time_s, scores in attributes.get("cells", [])},
        seconds=trial.duration.total_seconds() if trial.duration else 0.0,
        given_up=attributes.get("given_up", ""),
    )
