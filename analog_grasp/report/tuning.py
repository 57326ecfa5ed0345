"""What is shown of a tuning: its trials as a table, two kinds of figures and a summary."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analog_grasp.report.summary import findings, settings_text
from analog_grasp.report.tables import (
    MISSING,
    TextCell,
    TextRow,
    TextTable,
    adapter_text,
    comparison_tables,
    device_text,
    markdown_escape,
    markdown_table,
    metric_title,
    score_text,
)
from analog_grasp.study.records import AdapterRecord, Measurement
from analog_grasp.study.statistics import estimate, is_fraction
from analog_grasp.tuning.objective import WORSE, Trial, value_text, values_text
from analog_grasp.tuning.search_space import Range
from analog_grasp.utils.time import format_time

METHOD = (
    "Part of the training split is held out. Every trial trains on the rest and is measured on the"
    " held-out part, with the same seed and on the same chip instances as every other trial; its"
    " score is the mean over chip instances, devices and times since programming.",
    "A trial is given up between two chip instances if it is worse than the best one, cell by cell"
    " (Wilcoxon's signed-rank test at the level 0.1), or if its score is not finite.",
    "The best of many trials looks better than it is. So the best setting is trained again, on the"
    " whole training split, and measured on the task's own validation split and on other chip"
    " instances, which no trial has seen.",
    "A setting's importance is the share that it has in being among the best quarter of the trials"
    " (PED-ANOVA, Watanabe et al., IJCAI 2023); that of a single setting is all of it.",
)
_BEST_TRIALS = 10
TOO_FEW = "There are too few measured trials to tell the importance of the settings."


@dataclass(frozen=True)
class Trials:
    """The trials of a study and what it takes to show them.

    Attributes:
        task, metric: Whose score it is.
        space: The searched settings with their ranges.
        given: Their values as they were given.
        trials: Those that are finished.
        front: Of them, those that none beats in both scores, the best one first.
        multi: Whether there are two goals.
        importance: See `Tuning.importance`.
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
        """The noise levels, that is every device at every drift time in seconds."""
        return list(dict.fromkeys(level for trial in self.trials for level in trial.cells))


def trials_csv(found: Trials) -> str:
    """The text of trials.csv: a row a finished trial, with the mean over chips at every level.

    A trial that was given up has an empty score, and the reason in the column ``given_up``.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    levels = [f"{device}@{format_time(time_s)}" for device, time_s in found.levels]
    writer.writerow(["number", *found.space, "score", "digital", "seconds", "given_up", *levels])
    for trial in found.trials:
        means = [level_mean(trial, level) for level in found.levels]
        values = [trial.values[name] for name in found.space]
        outcome = (trial.score, trial.digital, trial.seconds, trial.given_up)
        writer.writerow([trial.number, *values, *outcome, *means])
    return text.getvalue()


def tuning_findings(found: Trials) -> list[str]:
    """What the trials say, in plain sentences, the best setting first."""
    best = found.front[0]
    whole = sum(trial.score is not None for trial in found.trials)
    unit = " %" if is_fraction(found.metric) else ""
    sentences = [
        f"The best of {whole} measured trials has {values_text(best.values)}: {found.metric} "
        f"{_score(best.score, found)}{unit} after drift and {_score(best.digital, found)}{unit} "
        f"digital ({found.task}, on held-out training data)."
    ]
    without = {**found.given, "noise_weight": 0.0} if "noise_weight" in found.space else {}
    for title, values in (("as given", found.given), ("without the noise-aware loss", without)):
        other = next((t for t in found.trials if t.values == values), None)
        if other is not None and other.number != best.number and values:
            told = _compared(best, other, found)
            sentences.append(f"The settings {title} ({values_text(values)}) give {told}.")
    if found.multi:
        sentences.append(
            f"{len(found.front)} trials are on the front: none is better in both scores than they "
            "are. The best one after drift is the one called best."
        )
    given_up = [trial for trial in found.trials if trial.given_up]
    worse = [trial for trial in given_up if trial.given_up == WORSE]
    if worse:
        many = "was" if len(worse) == 1 else "were"
        sentences.append(f"{len(worse)} of {len(found.trials)} trials {many} given up as {WORSE}.")
    sentences += [
        f"Trial {trial.number} ({values_text(trial.values)}) failed: {trial.given_up.rstrip('.')}."
        for trial in given_up
        if trial not in worse
    ]
    return sentences


def tuning_markdown(
    found: Trials,
    settings: Mapping[str, object],
    measurements: Sequence[Measurement],
    adapters: Sequence[AdapterRecord],
) -> str:
    """The text of summary.md: what was found, how the best setting does on data kept for that.

    Args:
        found: The trials.
        settings: Names and values to show.
        measurements: Those of the best setting on the task's own validation split.
        adapters: The adapter trained for them.
    """
    figures = [f"{found.metric}_vs_{name}" for name in found.space]
    parts = [
        f"# {markdown_escape(tuning_title(found))}",
        _bullets(tuning_findings(found)),
        *(f"![{name}]({name}.svg)" for name in [*figures, *(["front"] if found.multi else [])]),
        markdown_table(trial_table(found)),
        markdown_table(importance_table(found)) if found.importance else markdown_escape(TOO_FEW),
        "## The best setting on the validation split, which no trial has seen",
        _bullets(findings(measurements, adapters)),
        *(markdown_table(device_text(t)) for t in comparison_tables(measurements, adapters)),
        markdown_table(adapter_text(adapters)),
        markdown_table(settings_text(settings)),
        "## How the numbers were computed",
        _bullets(METHOD),
    ]
    return "\n\n".join(parts) + "\n"


def tuning_title(found: Trials) -> str:
    """What the tuning was to find."""
    return f"The best {' and '.join(found.space)} for {found.metric} after drift on {found.task}"


def trial_table(found: Trials) -> TextTable:
    """The ten best trials; where there are two goals, the front."""
    measured = [trial for trial in found.trials if trial.score is not None]
    best = sorted(measured, key=lambda trial: -(trial.score or 0))[:_BEST_TRIALS]
    rows = tuple(
        TextRow(
            str(trial.number),
            (
                *(TextCell(value_text(trial.values[name])) for name in found.space),
                TextCell(_score(trial.score, found)),
                TextCell(_score(trial.digital, found)),
            ),
        )
        for trial in (found.front if found.multi else best)
    )
    which = "The trials on the front" if found.multi else "The best trials"
    title = metric_title(found.metric)
    columns = ("trial", *found.space, f"{title} after drift", f"{title} digital")
    return TextTable(f"{which}, on held-out training data", columns, rows)


def importance_table(found: Trials) -> TextTable:
    """The importance of each searched setting, for each goal."""
    goals = {"score": "after drift", "digital": "digital"}
    shown = [goal for goal in goals if goal in found.importance]
    rows = tuple(
        TextRow(name, tuple(TextCell(f"{found.importance[goal][name]:.0%}") for goal in shown))
        for name in found.space
    )
    title = "Importance of each setting for being among the best quarter of the trials (PED-ANOVA)"
    return TextTable(title, ("setting", *(goals[goal] for goal in shown)), rows)


def level_mean(trial: Trial, level: tuple[str, float]) -> float | None:
    """The mean over the chips that were measured at a noise level."""
    scores = trial.cells.get(level)
    return statistics.fmean(scores) if scores else None


def _compared(best: Trial, other: Trial, found: Trials) -> str:
    """The score of a trial, and by how much the best one differs on the same chips."""
    if other.score is None:
        return "less: the trial was given up"
    chips = len(next(iter(best.cells.values())))
    differences = [
        statistics.fmean(best.cells[level][chip] - other.cells[level][chip] for level in best.cells)
        for chip in range(chips)
    ]
    result = estimate(differences)
    scale, unit = (100, " points") if is_fraction(found.metric) else (1, "")
    half = "" if result.high is None else f" ±{scale * (result.high - result.mean):.2g}"
    return (
        f"{_score(other.score, found)} after drift; the best setting is ahead by "
        f"{scale * result.mean:.2g}{half}{unit} on the same "
        f"{'chip instance' if chips == 1 else f'{chips} chip instances'} of each device"
    )


def _bullets(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {markdown_escape(sentence)}" for sentence in sentences)


def _score(score: float | None, found: Trials) -> str:
    return MISSING if score is None else score_text(score, found.metric)
