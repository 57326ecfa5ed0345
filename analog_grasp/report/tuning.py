"""Report of a tuning: tables, findings, trials.csv, summary and page."""

import math
import re
import statistics
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas
from scipy import stats

from analog_grasp.report.figures import (
    PALETTE,
)
from analog_grasp.report.findings import TUNING_METHODOLOGY, findings
from analog_grasp.report.html import Chart, FigureFile, Report, Section, swatch
from analog_grasp.report.tables import (
    LEGEND,
    Comparison,
    TextTable,
    adapter_text,
    device_text,
    metric_title,
    percent,
    score_text,
    settings_text,
    unit,
)
from analog_grasp.report.tuning_figures import (
    OTHER_COLOUR,
    draw_front,
    other_trials,
    write_front,
    write_setting,
)
from analog_grasp.study.statistics import estimate, holm
from analog_grasp.tuning.search_space import (
    WORSE,
    Trial,
    Trials,
    value_text,
    values_text,
)
from analog_grasp.utils.metrics import is_fraction, lower_is_better
from analog_grasp.utils.time import format_time

_BEST_TRIALS = 10
# Fewest trials to which a curve is fitted, and the level at which a setting matters.
_FEWEST_FOR_CURVE, _MATTERS = 6, 0.05
_NAMED_LEVELS = 4
VALIDATION_TITLE = "Best setting on the validation split, which no trial has used"
_CAPTION = "Each point is a complete trial, measured on held-out training data."
_FRONT_CAPTION = f"{_CAPTION} The line joins the Pareto front: no trial is better in both scores."


def trials_csv(found: Trials) -> str:
    """Return the text of trials.csv: one row per finished trial, with the mean at every level.

    A pruned trial has an empty score, and the reason in the column ``pruned``.
    """
    rows = []
    for trial in found.trials:
        values = {name: trial.values[name] for name in found.space}
        outcome = {name: getattr(trial, name) for name in ("score", "digital", "seconds", "pruned")}
        means = {
            _level(level): estimate(scores).mean if (scores := trial.cells.get(level)) else None
            for level in found.levels
        }
        rows.append({"number": trial.number, **values, **outcome, **means})
    # Objects, as a column of numbers would turn whole ones with gaps into floats.
    return pandas.DataFrame(rows, dtype=object).to_csv(index=False, lineterminator="\n")


def tuning_findings(found: Trials) -> list[str]:
    """Return the results of the trials as sentences, the best setting first."""
    best, metric = found.front[0], found.metric
    whole = sum(trial.score is not None for trial in found.trials)
    score, digital = (score_text(s, metric) + percent(metric) for s in (best.score, best.digital))
    sentences = [
        f"The best of {whole} complete {'trial' if whole == 1 else 'trials'} has "
        f"{values_text(best.values)}: {metric} {score} "
        f"after drift and {digital} digital ({found.task}, on held-out training data)."
    ]
    without = {**found.given, "noise_weight": 0.0} if "noise_weight" in found.space else {}
    for title, values in (("as requested", found.given), ("without the noise-aware loss", without)):
        other = next((t for t in found.trials if t.values == values), None)
        if other is not None and other.number != best.number and values:
            result = _compared(best, other, metric)
            sentences.append(f"The setting {title} ({values_text(values)}) {result}.")
    sentences += filter(None, (effect_sentence(found, name) for name in found.space))
    if found.multi:
        count = len(found.front)
        sentences.append(
            f"{count} {'trial is' if count == 1 else 'trials are'} on the Pareto front: no other "
            "trial is better in both scores. The best trial is the one with the best score after "
            "drift."
        )
    if worse := sum(trial.pruned == WORSE for trial in found.trials):
        verb = "was" if worse == 1 else "were"
        sentences.append(f"{worse} of {len(found.trials)} trials {verb} pruned: {WORSE}.")
    sentences += [
        f"Trial {trial.number} ({values_text(trial.values)}) failed: {trial.pruned.rstrip('.')}."
        for trial in found.trials
        if trial.pruned not in ("", WORSE)
    ]
    return sentences


class Effect(NamedTuple):
    """Effect of a searched setting on the score at a noise level: a device and a time, s."""

    level: tuple[str, float]
    span: float
    """Difference between the highest and the lowest fitted score of the trials."""
    p_value: float
    """Of no effect, corrected for the number of levels."""


def setting_effects(found: Trials, name: str) -> list[Effect]:
    """Return the effect of a setting at each noise level, by parabolas fitted to the trials.

    Trials with a value of zero or of text do not count; there is no effect with fewer than six.
    """
    best, effects = found.front[0], []
    for level in found.levels:
        points = [
            (math.log10(value), statistics.fmean(np.subtract(scores, best.cells[level][:count])))
            for trial in found.trials
            if (scores := trial.cells.get(level))
            and (count := len(scores)) <= len(best.cells[level])
            and isinstance(value := trial.values[name], int | float)
            and value > 0
        ]
        if len({x for x, _ in points}) < _FEWEST_FOR_CURVE:
            return []
        x, y = np.array(points).T
        fitted = np.polynomial.Polynomial.fit(x, y, 2)(x)
        explained, left = float(((fitted - y.mean()) ** 2).sum()), float(((y - fitted) ** 2).sum())
        ratio = (explained / 2) / (left / (len(x) - 3)) if left else math.inf * explained
        p_value = float(stats.f.sf(ratio, 2, len(x) - 3)) if explained else 1.0
        effects.append(Effect(level, float(np.ptp(fitted)), p_value))
    corrected = holm([effect.p_value for effect in effects]).tolist()
    return [e._replace(p_value=p) for e, p in zip(effects, corrected, strict=True)]


def effect_sentence(found: Trials, name: str) -> str:
    """Return the noise levels at which an effect of a setting was found; empty with few trials.

    Without one, return the largest span of the fitted effects: a test that finds no effect does not
    show that there is none.
    """
    effects = setting_effects(found, name)
    if not effects:
        return ""
    matters = [effect for effect in effects if effect.p_value < _MATTERS]
    values = [v for t in found.trials if isinstance(v := t.values[name], int | float) and v > 0]
    across = f"{name} from {value_text(min(values))} to {value_text(max(values))}"
    others = [effect for effect in effects if effect not in matters]
    largest = max(others, key=lambda effect: effect.span, default=None)
    if not matters and largest:
        levels = f"any of {len(effects)} noise levels" if effects[1:] else _level(largest.level)
        return (
            f"No dependence of the score on {across} was found at {levels}: the largest fitted "
            f"effect is {_span(largest, found)}, which is not significant."
        )
    named = sorted(matters, key=lambda effect: effect.p_value)[:_NAMED_LEVELS]
    listed = ", ".join(f"{_span(effect, found)} at {_level(effect.level)}" for effect in named)
    more = len(matters) - len(named)
    unnamed = f" and {more} more" if more else ""
    rest = (
        f"; no dependence was found at the others (largest fitted effect {_span(largest, found)})"
        if largest
        else ""
    )
    return (
        f"The score depends on {across} at {len(matters)} of {len(effects)} noise levels "
        f"({listed}{unnamed}){rest}."
    )


def _span(effect: Effect, found: Trials) -> str:
    return f"{100 * effect.span:.1f} points" if is_fraction(found.metric) else f"{effect.span:.3g}"


def _level(level: tuple[str, float]) -> str:
    return f"{level[0]}@{format_time(level[1])}"


def trial_table(found: Trials) -> TextTable:
    """Return the ten best trials, or the Pareto front with two goals."""
    measured = [trial for trial in found.trials if trial.score is not None]
    sign = 1 if lower_is_better(found.metric) else -1
    best = sorted(measured, key=lambda trial: sign * (trial.score or 0))[:_BEST_TRIALS]
    rows = [
        (
            str(trial.number),
            *(value_text(trial.values[name]) for name in found.space),
            *(score_text(score, found.metric) for score in (trial.score, trial.digital)),
        )
        for trial in (found.front if found.multi else best)
    ]
    which = "Trials on the Pareto front" if found.multi else "Best trials"
    title = metric_title(found.metric)
    columns = ("trial", *found.space, f"{title} after drift", f"{title} digital")
    return TextTable(f"{which}, on held-out training data", columns, rows)


def importance_table(found: Trials) -> TextTable:
    """Return the importance of each searched setting for each goal.

    A goal for which all trials have the same score has no column; without a goal there is no row.
    """
    goals = {"score": "after drift", "digital": "digital"}
    complete = [trial for trial in found.trials if trial.score is not None]
    columns = {
        goals[goal]: shares
        for goal, shares in found.importance.items()
        if len({getattr(trial, goal) for trial in complete}) > 1
    }
    rows = [
        (name, *(f"{shares[name]:.0%}" for shares in columns.values()))
        for name in found.space
        if columns
    ]
    return TextTable("Importance of the settings (PED-ANOVA)", ("setting", *columns), rows)


def _compared(best: Trial, other: Trial, metric: str) -> str:
    """Return the score of a trial and the difference of the best one on the same chips."""
    if other.score is None:
        if other.pruned == WORSE:
            return "has a worse score: its trial was pruned"
        return "has no score: its trial failed"
    by_level = [np.subtract(best.cells[level], other.cells[level]) for level in best.cells]
    chips = [statistics.fmean(differences) for differences in zip(*by_level, strict=True)]
    result = estimate(chips)
    half = "" if result.high is None else f" ±{unit(metric) * (result.high - result.mean):.2g}"
    points = " points" if is_fraction(metric) else ""
    return (
        f"has {score_text(other.score, metric)}{percent(metric)} after drift; the difference of "
        f"the best setting is {unit(metric) * result.mean:+.2g}{half}{points} on the same "
        f"{'chip instance' if len(chips) == 1 else f'{len(chips)} chip instances'} of each device"
    )


def tuning_report(found: Trials, settings: Mapping[str, object], comparison: Comparison) -> Report:
    """Return the report of trials, at least one complete, and of the best setting's validation."""
    first, *further = tuning_findings(found)
    tables = [trial_table(found)]
    importance = importance_table(found)
    if importance.rows:
        tables.append(importance)
    elif not found.importance:
        further.append("There are too few complete trials to compute the settings' importance.")
    legend = [("Pareto front" if found.multi else "best trial", swatch("o", PALETTE[0]), "")]
    if other_trials(found):
        legend.append(("other trials", swatch("o", OTHER_COLOUR), ""))
    chart = Chart(
        "Trials",
        f"{metric_title(found.metric)} after drift against that of the digital model, one point "
        "per trial.",
        partial(draw_front, found=found),
        legend=legend,
    )
    # The metrics of lm-eval have a slash.
    stem = re.sub(r"\W", "_", found.metric)
    settings_files = (
        FigureFile(f"{stem}_vs_{name}", partial(write_setting, found, name)) for name in found.space
    )
    sections = [
        Section(
            "Score after drift against digital score",
            charts=[chart],
            files=[*settings_files, FigureFile("front", partial(write_front, found))],
            caption=_FRONT_CAPTION if found.multi else _CAPTION,
            tables=tables,
        ),
        Section("Further results", sentences=further),
        Section(VALIDATION_TITLE, sentences=findings(comparison)),
        Section(
            "Scores of the best setting", text=LEGEND, tables=[*map(device_text, comparison.tables)]
        ),
        Section(
            "Adapter and settings",
            tables=[adapter_text(comparison.adapters), settings_text(settings)],
        ),
        Section("Methodology", sentences=TUNING_METHODOLOGY),
    ]
    link = f"Download the {len(found.trials):,} trials (CSV)"
    title = f"Best {' and '.join(found.space)} for {found.metric} after drift on {found.task}"
    return Report(title, first, sections, link, "trials.csv", trials_csv(found))
