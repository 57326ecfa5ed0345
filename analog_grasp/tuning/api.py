"""Tuning in Python: `tune_noise_weight`, from settings to a report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from analog_grasp.report.tables import Comparison
from analog_grasp.report.tuning import trials_csv, tuning_report
from analog_grasp.study import api as studies
from analog_grasp.study.config import (
    ONE_STAGE,
    TREATMENTS,
    StudyConfig,
    flat,
    resolve,
    takes_settings,
)
from analog_grasp.study.progress import Progress, silent
from analog_grasp.study.provenance import with_card_files
from analog_grasp.study.study import prepare
from analog_grasp.tuning.search_space import TRIALS, Trial, Trials
from analog_grasp.utils.errors import check_packages, check_whole, shown
from analog_grasp.utils.io import write_atomically

if TYPE_CHECKING:
    from analog_grasp.tuning.tuner import Tuning

BEST_FILE, TRIALS_FILE = "best.toml", "trials.csv"
NOT_TUNED = ("adapters", "trainings", "trainings_limit", *TREATMENTS)
"""Settings of a comparison that a tuning does not have; see `prepare_tuning`."""


@dataclass(frozen=True)
class Tuned:
    """Result of a tuning, and the files of its report.

    Attributes:
        directory: The output folder.
        settings: The best settings, as in best.toml.
        trials: Every finished trial, for tables and figures.
        results: The best settings, trained on the whole training split and measured on the task's
            own validation split, which no trial has used.
        files: trials.csv, best.toml, summary.md, report.html and the figures.
    """

    directory: Path
    settings: StudyConfig
    trials: Trials
    results: studies.Results
    files: list[Path]

    @property
    def best(self) -> Trial:
        """The best trial."""
        return self.trials.front[0]


@takes_settings(without=NOT_TUNED, defaults=ONE_STAGE)
def tune_noise_weight(
    out: str | Path = "runs/tune",
    *,
    trials: int = TRIALS,
    search: Sequence[str] = ("noise_weight",),
    ranges: Mapping[str, tuple[float, float]] | None = None,
    adapter: str = "stochgrasp",
    multi: bool = False,
    held_out: int | None = None,
    storage: str | None = None,
    config: str | Path | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> Tuned:
    """Search the noise-aware loss weight, and other settings, for accuracy under drift.

    The objective is the mean score over chip instances, devices and drift times, on held-out
    training data. The same call resumes an interrupted tuning, and several processes may work on
    one at once.

    Args:
        out: The output folder; a new one, or that of the same tuning.
        trials: Number of trials in total.
        search: The settings to vary: of ``noise_weight``, ``noise_target``, ``init_sigma``,
            ``groups``, ``learning_rate``, ``shift_lr_ratio``, ``sigma_lr_ratio`` and
            ``injection``.
        ranges: Lowest and highest value of a searched setting; from 0.001 to 100 for
            ``noise_weight``, in addition to which 0 is tried.
        adapter: The adapter to tune.
        multi: Treat the digital score as a second objective, and search a Pareto front.
        held_out: Training rows to tune on; a fifth, at most 1,000, if None.
        storage: URL of a database that several machines share; a SQLite file in ``out`` if None.
        config: A TOML file of settings; those given here take precedence.
        progress: Called for each stage and step.
        settings: See `analog_grasp.study.config.StudyConfig`: ``task``, ``devices``, ``times``,
            ``repeats`` and more.

    Returns:
        The trials and the best settings; best.toml, trials.csv, figures, summary.md and report.html
        are in ``out``.

    Raises:
        ValueError: A name is unknown, a setting does not fit, the training split is too small,
            ``out`` or the storage holds another study, or optuna is not installed.
        FileNotFoundError: The files of the model or the task are missing.
        OSError: The storage cannot be reached, the disk is full or ``out`` cannot be written;
            finished trials are kept.

    Example:
        ``tune_noise_weight("runs/mine", devices=["pcm-hermes-2"], times=["1d"], trials=30)``
    """
    check_packages("Tuning", "tune", "optuna", "sqlalchemy")
    check_whole("trials", trials)
    from analog_grasp.tuning.tuner import STUDY_FILE, TUNE_FILE, prepare_tuning

    asked = with_card_files(settings, Path(out), (TUNE_FILE, STUDY_FILE))
    if given := [name for name in NOT_TUNED if name in settings]:
        raise ValueError(
            f"The setting {given[0]} is {shown(settings[given[0]])}, which a tuning does not have: "
            "a trial trains one adapter, named by adapter, once, and measures it as trained."
        )
    asked["adapters"] = (adapter,)
    resolved = resolve(asked, Path(config) if config else None, ONE_STAGE)
    tuning = prepare_tuning(
        resolved, Path(out), adapter=adapter, search=search, ranges=ranges, multi=multi,
        held_out=held_out, storage=storage,
    )  # fmt: skip
    return run_tuning(tuning, trials, progress)


def run_tuning(tuning: "Tuning", trials: int, progress: Progress) -> Tuned:
    """Run the missing trials of `trials` in total, then evaluate the best settings.

    Raises:
        ValueError: No trial could be measured completely.
        OSError: As `tune_noise_weight`.
    """
    from analog_grasp.tuning.tuner import tune

    tune(tuning, trials, progress)
    directory = tuning.directory
    shown = Trials(
        task=tuning.config.task.name,
        metric=tuning.task.metrics[0],
        space=tuning.space,
        given={name: tuning.config.value(name) for name in tuning.space},
        trials=tuning.trials(),
        front=tuning.front() if tuning.multi else tuning.front()[:1],
        multi=tuning.multi,
        importance=tuning.importance(),
    )
    write_atomically(directory / TRIALS_FILE, trials_csv(shown).encode())
    if not shown.front:
        raise ValueError(
            f"No trial of the study in {directory} could be measured completely: see "
            f"{TRIALS_FILE} for the reasons, and search other ranges."
        )
    best = shown.front[0]
    settings = tuning.config.replace(**best.values)
    record = flat(settings)
    write_atomically(directory / BEST_FILE, tomli_w.dumps(record).encode())
    # In a folder of the trial, since another may be the best when the tuning is resumed.
    own = directory / f"trial-{best.number}"
    results = studies.run_and_report(prepare(settings, own), progress)
    comparison = Comparison(results.measurements, results.adapters)
    written = tuning_report(shown, record, comparison).write(directory)
    files = [directory / TRIALS_FILE, directory / BEST_FILE, *written]
    return Tuned(directory, settings, shown, results, files)
