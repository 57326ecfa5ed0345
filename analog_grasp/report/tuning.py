"""Report of a tuning: tables, findings, trials.csv, figures, summary and page."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from scipy import stats

from analog_grasp.report.figures import (
    AXIS_COLOUR,
    DASHED,
    MARKERS,
    PALETTE,
    Drawn,
    Series,
    break_axis,
    draw_legend,
    figure_files,
    log_positions,
    marker_of,
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
from analog_grasp.study.statistics import estimate, holm, is_fraction
from analog_grasp.tuning.search_space import (
    WORSE,
    Range,
    Trial,
    Trials,
    value_text,
    values_text,
)
from analog_grasp.utils.time import format_time

_BEST_TRIALS = 10
# Fewest trials to which a curve is fitted, and the level at which a setting matters.
_FEWEST_FOR_CURVE, _MATTERS = 6, 0.05
_NAMED_LEVELS = 4
VALIDATION_TITLE = "Best setting on the validation split, which no trial has used"
_PANEL_INCHES = (3.3, 2.5)
_MOST_COLUMNS = 3
_DIGITAL: dict[str, Any] = DASHED | {
    "color": AXIS_COLOUR, "marker": "x", "markeredgecolor": AXIS_COLOUR, "markersize": 3.5,
}  # fmt: skip
_BEST: dict[str, Any] = {"color": "#BBBBBB", "linewidth": 4, "alpha": 0.5}
# A sequential palette, and the share of it that is not too pale for white paper.
_TIME_COLOURS, _PALEST = "viridis", 0.85
_OTHER_COLOUR = "#8a8a8a"
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
        f"The best of {whole} complete trials has {values_text(best.values)}: {metric} {score} "
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
            "trial is better in both scores. The best trial is the one with the highest score "
            "after drift."
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
    best = sorted(measured, key=lambda trial: -(trial.score or 0))[:_BEST_TRIALS]
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
        return "has a lower score: its trial was pruned"
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


def _write_front(found: Trials, path_stem: Path) -> list[Path]:
    """Draw the Pareto front with the numbers of its trials."""
    with figure_files(path_stem, (4.8, 3.4)) as (figure, paths):
        panel = figure.subplots()
        draw_front(panel, found)
        for trial in found.front:
            place = _scores(trial, found)
            panel.annotate(str(trial.number), place, (3, 3), textcoords="offset points", fontsize=7)
    return paths


def _write_setting(found: Trials, name: str, path_stem: Path) -> list[Path]:
    """Draw score against one setting, one panel per device."""
    devices = list(dict.fromkeys(device for device, _ in found.levels))
    columns = 2 if len(devices) == 4 else min(len(devices), _MOST_COLUMNS)
    rows = math.ceil(len(devices) / columns)
    width, height = _PANEL_INCHES
    size = max(columns * width + 0.6, 5.2), rows * height + 0.9
    bounds, places, styles = found.space[name], setting_places(found, name), _time_styles(found)
    # Beyond a break in the axis.
    zero = places.get(0) if bounds.log else None
    placed = [(places[v], trial) for trial in found.trials if (v := trial.values[name]) in places]
    placed.sort(key=lambda pair: pair[0])
    with figure_files(path_stem, size) as (figure, paths):
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for number, panel in enumerate(panels.flat):
            if number >= len(devices):
                panel.set_visible(False)
                continue
            panel.set_title(devices[number])
            _draw_device(panel, found, devices[number], placed, zero, styles)
            _draw_axis(panel, bounds, places.values(), zero)
            panel.tick_params(labelbottom=number + columns >= len(devices))
        for panel in panels[:, 0]:
            panel.set_ylabel(metric_title(found.metric))
        figure.supxlabel(name, fontsize=9)
        draw_legend(figure, _legend_handles(found, styles))
    return paths


def setting_places(found: Trials, name: str) -> dict[float, float]:
    """Return the place on its axis of each value of a setting, and of the ends of its range.

    The axis is logarithmic where the range is, with 0 on its left. Texts have no place.
    """
    bounds = found.space[name]
    values = [v for t in found.trials if isinstance(v := t.values[name], int | float)]
    values += [bounds.low, bounds.high]
    return dict(zip(values, log_positions(values) if bounds.log else values, strict=True))


def _draw_axis(panel: Axes, bounds: Range, places: Iterable[float], zero: float | None) -> None:
    low, high = min(place for place in places if place != zero), max(places)
    first = low if zero is None else zero
    margin = 0.05 * (high - first)
    panel.set_xlim(first - margin, high + margin)
    if not bounds.log:
        return
    base = 2.0 if bounds.whole else 10.0
    steps = [math.log(10.0**end, base) for end in (low, high)]
    powers = range(math.ceil(steps[0] - 1e-9), math.floor(steps[1] + 1e-9) + 1)
    ticks = {math.log10(base**power): f"{base**power:g}" for power in powers}
    if zero is not None:
        ticks[zero] = "0"
        break_axis(panel, (zero + low) / 2, 0.012 * (high - first))
    panel.set_xticks(list(ticks), list(ticks.values()))


def _draw_device(
    panel: Axes,
    found: Trials,
    device: str,
    placed: Sequence[tuple[float, Trial]],
    zero: float | None,
    styles: Mapping[float, dict[str, Any]],
) -> None:
    """Draw means over chips with intervals per drift time, and digital scores; hollow if pruned."""
    scale = unit(found.metric)

    def draw_points(points: Sequence[tuple[float, float]], style: Mapping[str, Any]) -> None:
        """Draw points, joined by a line where a single setting is searched."""
        on, off = ([p for p in points if (p[0] == zero) == is_off] for is_off in (False, True))
        line = {} if len(found.space) == 1 else {"linestyle": "none"}
        for part, joined in ((on, line), (off, {"linestyle": "none"})):
            xs, ys = [x for x, _ in part], [y for _, y in part]
            panel.plot(xs, ys, **{"zorder": 3, "markeredgecolor": "white", **style, **joined})

    for time_s, style in styles.items():
        points = [
            (place, estimate(scores), bool(trial.pruned))
            for place, trial in placed
            if (scores := trial.cells.get((device, time_s)))
        ]
        draw_points([(x, scale * score.mean) for x, score, pruned in points if not pruned], style)
        for place, score, pruned in points:
            if pruned:
                panel.plot(place, scale * score.mean, **style, markerfacecolor="white", zorder=2)
                continue
            low, high = (score.mean if end is None else end for end in (score.low, score.high))
            panel.vlines(
                place, scale * low, scale * high, color=style["color"], linewidth=0.9, alpha=0.6
            )
    draw_points([(x, scale * t.digital) for x, t in placed if t.digital is not None], _DIGITAL)
    for place, trial in placed:
        if trial.number == found.front[0].number:
            panel.axvline(place, zorder=0, **_BEST)


def _time_styles(found: Trials) -> dict[float, dict[str, Any]]:
    """Return colour and marker of each drift time, from dark to pale."""
    times = sorted({time_s for _, time_s in found.levels})
    palette, last = colormaps[_TIME_COLOURS], max(len(times) - 1, 1)
    return {
        time_s: {"color": palette(_PALEST * place / last), "marker": marker_of(place)}
        for place, time_s in enumerate(times)
    }


def _legend_handles(found: Trials, styles: Mapping[float, Mapping[str, Any]]) -> list[Artist]:
    handles: list[Artist] = [
        Line2D([], [], markeredgecolor="white", label=format_time(time_s), **style)
        for time_s, style in styles.items()
    ]
    handles.append(Line2D([], [], label="digital model", **_DIGITAL))
    if any(trial.pruned and trial.cells for trial in found.trials):
        hollow: dict[str, Any] = {"color": AXIS_COLOUR, "markerfacecolor": "white"}
        handles.append(Line2D([], [], label="pruned", marker="o", linestyle="none", **hollow))
    handles.append(Line2D([], [], label="best trial", **_BEST))
    return handles


def draw_front(panel: Axes, found: Trials) -> Drawn:
    """Draw score after drift against digital score, the trials of the front joined by a line.

    The ids are ``series0`` for the front and ``series1`` for the other complete trials.
    """
    drawn, title = {}, metric_title(found.metric)
    for trials, gid, style in (
        (_others(found), "series1", {"color": _OTHER_COLOUR, "linestyle": "none"}),
        (found.front, "series0", {"color": PALETTE[0], "drawstyle": "steps-pre", "zorder": 3}),
    ):
        if trials:
            x, y = zip(*(_scores(trial, found) for trial in trials), strict=True)
            panel.plot(x, y, marker=MARKERS[0], markeredgecolor="white", gid=gid, **style)
            drawn[gid] = Series([
                f"trial {trial.number}, {values_text(trial.values)}:"
                f" {score_text(trial.score, found.metric)} after drift,"
                f" {score_text(trial.digital, found.metric)} digital"
                for trial in trials
            ])  # fmt: skip
    panel.margins(0.12)
    panel.set_xlabel(f"{title}, digital")
    panel.set_ylabel(f"{title}, after drift")
    return drawn


def _others(found: Trials) -> list[Trial]:
    """Return the trials with both scores that are not on the front."""
    complete = (trial for trial in found.trials if None not in (trial.score, trial.digital))
    return [trial for trial in complete if trial not in found.front]


def _scores(trial: Trial, found: Trials) -> tuple[float, float]:
    """Return the digital score and the score after drift of a complete trial, as drawn."""
    assert trial.score is not None
    assert trial.digital is not None
    return unit(found.metric) * trial.digital, unit(found.metric) * trial.score


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
    if _others(found):
        legend.append(("other trials", swatch("o", _OTHER_COLOUR), ""))
    chart = Chart(
        "Trials",
        f"{metric_title(found.metric)} after drift against that of the digital model, one point "
        "per trial.",
        partial(draw_front, found=found),
        legend=legend,
    )
    settings_files = (
        FigureFile(f"{found.metric}_vs_{name}", partial(_write_setting, found, name))
        for name in found.space
    )
    sections = [
        Section(
            "Score after drift against digital score",
            charts=[chart],
            files=[*settings_files, FigureFile("front", partial(_write_front, found))],
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
