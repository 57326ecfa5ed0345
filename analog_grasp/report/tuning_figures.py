"""Figures of a tuning: score against each searched setting, and the Pareto front."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analog_grasp.report.figures import (
    AXIS_COLOUR,
    DASHED,
    MARKERS,
    PALETTE,
    Drawn,
    Series,
    break_axis,
    draw_legend,
    drawn_interval,
    figure_files,
    log_positions,
    marker_of,
)
from analog_grasp.report.tables import metric_title, score_text, unit
from analog_grasp.study.statistics import estimate
from analog_grasp.tuning.search_space import Range, Trial, Trials, values_text
from analog_grasp.utils.time import format_time

_PANEL_INCHES = (3.3, 2.5)
_MOST_COLUMNS = 3
_DIGITAL: dict[str, Any] = DASHED | {
    "color": AXIS_COLOUR, "marker": "x", "markeredgecolor": AXIS_COLOUR, "markersize": 3.5,
}  # fmt: skip
_BEST: dict[str, Any] = {"color": "#BBBBBB", "linewidth": 4, "alpha": 0.5}
# A sequential palette, and the share of it that is not too pale for white paper.
_TIME_COLOURS, _PALEST = "viridis", 0.85
OTHER_COLOUR = "#8a8a8a"


def write_front(found: Trials, path_stem: Path) -> list[Path]:
    """Draw the Pareto front with the numbers of its trials."""
    with figure_files(path_stem, (4.8, 3.4)) as (figure, paths):
        panel = figure.subplots()
        draw_front(panel, found)
        for trial in found.front:
            place = _scores(trial, found)
            panel.annotate(str(trial.number), place, (3, 3), textcoords="offset points", fontsize=7)
    return paths


def write_setting(found: Trials, name: str, path_stem: Path) -> list[Path]:
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
    if len(ticks) < 2:
        ticks = {end: f"{10**end:.3g}" for end in (low, high)}
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
            low, high = drawn_interval(score, found.metric)
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
        (other_trials(found), "series1", {"color": OTHER_COLOUR, "linestyle": "none"}),
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


def other_trials(found: Trials) -> list[Trial]:
    """Return the trials with both scores that are not on the front."""
    complete = (trial for trial in found.trials if None not in (trial.score, trial.digital))
    return [trial for trial in complete if trial not in found.front]


def _scores(trial: Trial, found: Trials) -> tuple[float, float]:
    """Return the digital score and the score after drift of a complete trial, as drawn."""
    assert trial.score is not None
    assert trial.digital is not None
    return unit(found.metric) * trial.digital, unit(found.metric) * trial.score
