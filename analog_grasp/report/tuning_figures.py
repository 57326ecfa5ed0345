"""The figures of a tuning: score against each searched setting, and the front of two goals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analog_grasp.report.curves import MARKERS, PALETTE, unit
from analog_grasp.report.drawing import break_axis, write_figure
from analog_grasp.report.tables import metric_title
from analog_grasp.report.tuning import Trials, level_mean
from analog_grasp.tuning.objective import Trial
from analog_grasp.utils.time import format_time

_PANEL_INCHES = (3.3, 2.5)
_MOST_COLUMNS = 3
_DIGITAL: dict[str, Any] = {
    "color": "#444444", "linestyle": (0, (5, 2.5)), "linewidth": 1.1, "marker": "x",
    "markeredgecolor": "#444444", "markersize": 3.5,
}  # fmt: skip
_BEST: dict[str, Any] = {"color": "#BBBBBB", "linewidth": 4, "alpha": 0.5}
# A sequential palette, and how much of it is not too pale for white paper.
_TIME_COLOURS, _PALEST = "viridis", 0.85


def write_figures(found: Trials, directory: Path) -> list[Path]:
    """Draw score against each searched setting, and the front where there are two goals.

    Returns:
        The paths: ``accuracy_vs_noise_weight.png``, ``.svg``, ``.pdf`` and the like, and those of
        ``front``.

    Raises:
        OSError: A file cannot be written.
    """
    paths: list[Path] = []
    for name in found.space:
        stem = directory / f"{found.metric}_vs_{name}"
        paths += write_figure(partial(_draw_setting, found, name), stem)
    if found.multi:
        paths += write_figure(partial(_draw_front, found), directory / "front")
    return paths


class _Axis:
    """Where the values of a setting stand: at their logarithm where equal ratios are searched.

    Zero has no logarithm: it stands to the left, beyond a break in the axis.
    """

    def __init__(self, found: Trials, name: str) -> None:
        self._name, self._bounds = name, found.space[name]
        values = [trial.values[name] for trial in found.trials]
        numbers = [v for v in values if isinstance(v, int | float) and not self._is_zero(v)]
        ends = [self._scaled(v) for v in (*numbers, self._bounds.low, self._bounds.high)]
        self._low, self._high = min(ends), max(ends)
        self._zero = self._low - max(0.6, 0.14 * (self._high - self._low))
        self._broken = any(map(self._is_zero, values))

    def of(self, trial: Trial) -> float | None:
        """The place of a trial's value; None for one that is no number."""
        value = trial.values[self._name]
        if not isinstance(value, int | float):
            return None
        return self._zero if self._is_zero(value) else self._scaled(value)

    def is_broken_off(self, place: float) -> bool:
        """Whether a place is beyond the break."""
        return self._broken and place < self._low

    def draw(self, panel: Axes) -> None:
        """The ticks, and the break."""
        first = self._zero if self._broken else self._low
        margin = 0.05 * (self._high - first)
        panel.set_xlim(first - margin, self._high + margin)
        if not self._bounds.log:
            return
        base = 2.0 if self._bounds.whole else 10.0
        steps = [math.log(10.0**end, base) for end in (self._low, self._high)]
        powers = range(math.ceil(steps[0] - 1e-9), math.floor(steps[1] + 1e-9) + 1)
        ticks = {math.log10(base**power): f"{base**power:g}" for power in powers}
        if self._broken:
            ticks[self._zero] = "0"
            break_axis(panel, (self._zero + self._low) / 2, 0.012 * (self._high - first))
        panel.set_xticks(list(ticks), list(ticks.values()))

    def _is_zero(self, value: object) -> bool:
        return self._bounds.log and value == 0

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self._bounds.log else float(value)


def _draw_setting(found: Trials, name: str) -> Figure:
    devices = list(dict.fromkeys(device for device, _ in found.levels))
    columns = 2 if len(devices) == 4 else min(len(devices), _MOST_COLUMNS)
    rows = math.ceil(len(devices) / columns)
    width, height = _PANEL_INCHES
    figure = Figure(
        figsize=(max(columns * width + 0.6, 5.2), rows * height + 0.9), layout="constrained"
    )
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    axis, looks = _Axis(found, name), _looks(found)
    for place, panel in enumerate(panels.flat):
        if place >= len(devices):
            panel.set_visible(False)
            continue
        panel.set_title(devices[place])
        _draw_device(panel, found, devices[place], axis, looks)
        axis.draw(panel)
        # Where the panel below is missing, its labels are wanted here.
        panel.tick_params(labelbottom=place + columns >= len(devices))
    for panel in panels[:, 0]:
        panel.set_ylabel(metric_title(found.metric))
    figure.supxlabel(name, fontsize=9)
    handles = _legend(found, looks)
    fitting = int(
        figure.get_figwidth() / (0.65 + 0.072 * max(len(str(h.get_label())) for h in handles))
    )
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), fitting))
    return figure


def _draw_device(
    panel: Axes,
    found: Trials,
    device: str,
    axis: _Axis,
    looks: Mapping[float, Mapping[str, Any]],
) -> None:
    """For each drift time the means over chips, and the digital scores; hollow if given up."""
    placed = [(place, trial) for trial in found.trials if (place := axis.of(trial)) is not None]
    placed.sort(key=lambda pair: pair[0])
    for time_s, look in looks.items():
        points = [
            (place, mean, trial)
            for place, trial in placed
            if (mean := level_mean(trial, (device, time_s))) is not None
        ]
        _draw_points(panel, found, axis, [p for p in points if not p[2].given_up], look)
        for place, mean, _ in (p for p in points if p[2].given_up):
            panel.plot(place, unit(found.metric) * mean, **look, markerfacecolor="white", zorder=2)
    digital = [(place, t.digital, t) for place, t in placed if t.digital is not None]
    _draw_points(panel, found, axis, digital, _DIGITAL)
    best = axis.of(found.front[0])
    if best is not None:
        panel.axvline(best, zorder=0, **_BEST)


def _draw_points(
    panel: Axes,
    found: Trials,
    axis: _Axis,
    points: Sequence[tuple[float, float, Trial]],
    look: Mapping[str, Any],
) -> None:
    """Points, joined by a line within the range of the only setting that differs."""
    scaled = [(place, unit(found.metric) * score) for place, score, _ in points]
    off = [point for point in scaled if axis.is_broken_off(point[0])]
    on = [point for point in scaled if not axis.is_broken_off(point[0])]
    line = {} if len(found.space) == 1 else {"linestyle": "none"}
    for part, style in ((on, line), (off, {"linestyle": "none"})):
        xs, ys = [x for x, _ in part], [y for _, y in part]
        panel.plot(xs, ys, **{"zorder": 3, "markeredgecolor": "white", **look, **style})


def _draw_front(found: Trials) -> Figure:
    """Score after drift against digital score, the trials of the front joined and numbered."""
    figure = Figure(figsize=(4.8, 3.4), layout="constrained")
    panel = figure.subplots()
    front = {trial.number for trial in found.front}
    scale = unit(found.metric)
    for trial in found.trials:
        if trial.score is not None and trial.digital is not None and trial.number not in front:
            panel.plot(scale * trial.digital, scale * trial.score, "o", color="#AAAAAA")
    points = [(scale * _known(t.digital), scale * _known(t.score)) for t in found.front]
    panel.step(*zip(*points, strict=True), where="pre", marker="o", color=PALETTE[0], zorder=3)
    for trial, point in zip(found.front, points, strict=True):
        panel.annotate(str(trial.number), point, (3, 3), textcoords="offset points", fontsize=7)
    panel.margins(0.12)
    panel.set_xlabel(f"{metric_title(found.metric)}, digital")
    panel.set_ylabel(f"{metric_title(found.metric)}, after drift")
    return figure


def _looks(found: Trials) -> dict[float, dict[str, Any]]:
    """Colour and marker of each drift time, from dark to pale as it gets later."""
    times = sorted({time_s for _, time_s in found.levels})
    palette = colormaps[_TIME_COLOURS]
    shares = [_PALEST * place / max(len(times) - 1, 1) for place in range(len(times))]
    return {
        time_s: {"color": palette(share), "marker": MARKERS[place % len(MARKERS)]}
        for place, (time_s, share) in enumerate(zip(times, shares, strict=True))
    }


def _legend(found: Trials, looks: Mapping[float, Mapping[str, Any]]) -> list[Line2D]:
    handles = [
        Line2D([], [], markeredgecolor="white", label=format_time(time_s), **look)
        for time_s, look in looks.items()
    ]
    handles.append(Line2D([], [], label="digital model", **_DIGITAL))
    if any(trial.given_up and trial.cells for trial in found.trials):
        hollow: dict[str, Any] = {"markerfacecolor": "white", "linestyle": "none", "marker": "o"}
        handles.append(Line2D([], [], color="#444444", label="given up", **hollow))
    handles.append(Line2D([], [], label="best trial", **_BEST))
    return handles


def _known(score: float | None) -> float:
    assert score is not None  # Trials of the front have both scores.
    return score
