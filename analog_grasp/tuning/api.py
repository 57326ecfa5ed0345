"""The whole way of a tuning, from settings to a report: what `tune` does, in Python."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from analog_grasp.report.tuning import Trials, trials_csv, tuning_markdown
from analog_grasp.study import api as studies
from analog_grasp.study.config import StudyConfig, flat, resolve
from analog_grasp.study.progress import Progress, silent
from analog_grasp.study.runner import prepare, run
from analog_grasp.tuning.objective import Trial
from analog_grasp.tuning.search_space import TRIALS
from analog_grasp.tuning.tune import Tuning, prepare_tuning, tune
from analog_grasp.utils.io import write_atomically

BEST_FILE, TRIALS_FILE, SUMMARY_FILE = "best.toml", "trials.csv", "summary.md"
PAGE_FILE = "report.html"


@dataclass(frozen=True)
class Tuned:
    """What a tuning has found, and where its files lie.

    Attributes:
        directory: The output folder.
        settings: The best ones, as best.toml has them.
        trials: Every finished trial, and what it takes to show them.
        results: The best setting trained on the whole training split and measured on the task's
            own validation split, which no trial has seen.
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
    """Find the noise-aware loss weight, and other settings, that keep the score on ageing chips.

    The goal is the mean score over chip instances, devices and drift times, on training data held
    out for it. A tuning that was interrupted goes on when it is asked for again, and several
    processes may work on one at once.

    Args:
        out: The output folder; a new one, or that of the same tuning.
        trials: Settings to try in total.
        search: What is varied: of ``noise_weight``, ``noise_target``, ``groups``,
            ``learning_rate`` and ``injection``.
        ranges: Lowest and highest value of a searched setting; from 0.001 to 100 for
            ``noise_weight``, beside which 0 is tried too.
        adapter: What is tuned.
        multi: Whether the digital score is a goal of its own, so that a front is looked for.
        held_out: Training rows to tune on; a fifth, 1,000 at most, where None.
        storage: URL of a database that several machines share; a SQLite file in ``out`` where
            None.
        config: A TOML file of settings; those given here win.
        progress: Told of each stage and step.
        settings: See `analog_grasp.study.config.StudyConfig`: ``task``, ``devices``, ``times``,
            ``repeats`` and more.

    Returns:
        The trials and the best settings; best.toml, trials.csv, figures, summary.md and report.html
        lie in ``out``.

    Raises:
        ValueError: A name is unknown, a setting does not fit, the training split is too small, or
            ``out`` or the storage holds another study.
        FileNotFoundError: The files of the model or the task are not there.
        OSError: The storage cannot be reached, the disk is full or ``out`` cannot be written; what
            was measured is kept.

    Example:
        ``tune_noise_weight("runs/mine", devices=["pcm-hermes-2"], times=["1d"], trials=30)``
    """
    asked = resolve(settings, Path(config) if config else None)
    tuning = prepare_tuning(
        asked,
        Path(out),
        adapter=adapter,
        search=search,
        ranges=ranges,
        multi=multi,
        held_out=held_out,
        storage=storage,
    )
    return carry_out(tuning, trials, progress)


def carry_out(tuning: Tuning, trials: int = TRIALS, progress: Progress = silent) -> Tuned:
    """Try what is left to try, then judge the best setting on data kept for that.

    Args:
        tuning: From `prepare_tuning`.
        trials: Settings to try in total.
        progress: Told of each stage and step.

    Raises:
        ValueError: No trial could be measured whole.
        OSError: As `tune_noise_weight`.
    """
    # They take long to be imported.
    from analog_grasp.report.tuning_figures import write_figures
    from analog_grasp.report.tuning_page import tuning_page

    tune(tuning, trials, progress)
    directory = tuning.directory
    shown = _shown(tuning)
    write_atomically(directory / TRIALS_FILE, trials_csv(shown).encode())
    if not shown.front:
        raise ValueError(
            f"No trial of the study in {directory} could be measured whole: see why in "
            f"{TRIALS_FILE}, and tune within other ranges."
        )
    settings = tuning.settings_of(shown.front[0])
    write_atomically(directory / BEST_FILE, _toml(settings).encode())
    figures = write_figures(shown, directory)
    results = _judge(tuning, shown.front[0], progress)
    record = flat(settings)
    summary = tuning_markdown(shown, record, results.measurements, results.adapters)
    write_atomically(directory / SUMMARY_FILE, summary.encode())
    page = tuning_page(shown, record, results.measurements, results.adapters)
    write_atomically(directory / PAGE_FILE, page.encode())
    names = (TRIALS_FILE, BEST_FILE, SUMMARY_FILE, PAGE_FILE)
    return Tuned(
        directory, settings, shown, results, [*(directory / name for name in names), *figures]
    )


def _shown(tuning: Tuning) -> Trials:
    return Trials(
        task=tuning.settings.task.name,
        metric=tuning.task.metrics[0],
        space=tuning.space,
        given={name: tuning.settings.value(name) for name in tuning.space},
        trials=tuning.trials(),
        front=tuning.front(),
        multi=tuning.multi,
        importance=tuning.importance(),
    )


def _toml(settings: StudyConfig) -> str:
    return tomli_w.dumps(flat(settings))


def _judge(tuning: Tuning, best: Trial, progress: Progress) -> studies.Results:
    """The best setting, trained on all training data and measured where no trial was.

    In a folder of its own trial, for another one may be the best when the tuning goes on.
    """
    settings = tuning.settings_of(best).replace(adapters=(tuning.adapter,))
    directory = tuning.directory / f"trial-{best.number}"
    run(prepare(settings, directory), progress)
    return studies.report(directory)
