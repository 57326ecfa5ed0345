"""The figure of a comparison: score against the time since programming.

The time axis is logarithmic. The first reading, at 0 s, has no place on it: it stands to the
left, beyond a break in the axis.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analog_grasp.report.curves import (
    Look,
    adapter_colours,
    curve,
    time_positions,
    unit,
    variant_looks,
)
from analog_grasp.report.drawing import break_axis, write_figure
from analog_grasp.report.tables import (
    DeviceTable,
    comparison_tables,
    metric_title,
    ordered_variants,
)
from analog_grasp.study.records import AdapterRecord, Measurement
from analog_grasp.utils.time import format_time

_PANEL_INCHES = (2.9, 2.2)
_DIGITAL: dict[str, Any] = {"linestyle": (0, (5, 2.5)), "linewidth": 1.1}
_CHANCE: dict[str, Any] = {"linestyle": (0, (1, 2)), "linewidth": 1.1, "color": "#666666"}


def accuracy_vs_drift(
    measurements: Sequence[Measurement],
    path_stem: Path | str,
    *,
    adapters: Sequence[AdapterRecord] = (),
    chance: Mapping[tuple[str, str], float] | None = None,
) -> list[Path]:
    """Draw score against drift time, one panel a device, and write it as PNG, SVG
    and PDF.

    Each adapter is a line with the band of its 95 % interval; a dashed line of its colour is
    the score of its digital model. Every task and metric has rows of panels of its own. The
    same measurements give the same bytes.

    Args:
        measurements: those of a whole or a partial run, at least one.
        path_stem: the path without its suffix.
        adapters: give the order of the lines and the digital scores.
        chance: score of guessing by task and metric, drawn as a dotted line.

    Returns:
        The paths of the PNG, of the SVG and of the PDF.

    Raises:
        ValueError: there is no measurement.
        OSError: a file cannot be written.

    Example:
        >>> import tempfile
        >>> cells = [
        ...     Measurement("reviews", "accuracy", "grasp", "digital", "pcm", time, 0, 0, 0.8)
        ...     for time in [0.0, 3600.0]
        ... ]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     paths = accuracy_vs_drift(cells, Path(folder) / "accuracy_vs_drift")
        >>> [path.name for path in paths]
        ['accuracy_vs_drift.png', 'accuracy_vs_drift.svg', 'accuracy_vs_drift.pdf']
    """
    if not measurements:
        raise ValueError("There is no measurement to draw; measure one cell or more first.")
    return write_figure(lambda: _draw(measurements, adapters, chance or {}), path_stem)


def _draw(
    measurements: Sequence[Measurement],
    adapters: Sequence[AdapterRecord],
    chance: Mapping[tuple[str, str], float],
) -> Figure:
    tables = comparison_tables(measurements, adapters)
    subjects: dict[tuple[str, str], list[DeviceTable]] = {}
    for table in tables:
        subjects.setdefault((table.task, table.metric), []).append(table)
    several_tasks = len({table.task for table in tables}) > 1
    columns = _columns(max(len(devices) for devices in subjects.values()))
    rows = [math.ceil(len(devices) / columns) for devices in subjects.values()]
    width, height = _PANEL_INCHES
    figure = Figure(
        figsize=(max(columns * width + 0.6, 4.4), sum(rows) * height + 0.8), layout="constrained"
    )
    grid = figure.add_gridspec(sum(rows), columns)
    looks = variant_looks(ordered_variants(measurements, adapters))
    for (subject, devices), row in zip(
        subjects.items(), itertools.accumulate(rows, initial=0), strict=False
    ):
        first: Axes | None = None
        for place, table in enumerate(devices):
            cell = grid[row + place // columns, place % columns]
            panel = figure.add_subplot(cell, sharex=first, sharey=first)
            first = first or panel
            _draw_panel(panel, table, looks)
            _draw_references(panel, table, adapters, looks, chance.get(subject))
            panel.set_title(f"{table.device}, {table.task}" if several_tasks else table.device)
            inner = place % columns > 0
            panel.tick_params(labelleft=not inner, left=not inner)
            panel.set_ylabel("" if inner else metric_title(table.metric))
            panel.tick_params(labelbottom=place + columns >= len(devices))
    figure.supxlabel("time since programming", fontsize=9)
    handles = _legend(looks, with_digital=bool(adapters), with_chance=bool(chance))
    inches = [0.65 + 0.072 * len(str(handle.get_label())) for handle in handles]
    fits = sum(inches) <= figure.get_figwidth()
    ncols = len(handles) if fits else max(1, int(figure.get_figwidth() / max(inches)))
    figure.legend(handles=handles, loc="outside upper center", ncols=ncols)
    return figure


def _columns(devices: int) -> int:
    """Columns of the grid: few enough that a panel can be read on a page."""
    if devices <= 3:
        return devices
    return {4: 2, 5: 3, 6: 3}.get(devices, 4)


def _draw_panel(panel: Axes, table: DeviceTable, looks: Mapping[str, Look]) -> None:
    positions = time_positions(table.times)
    for index, row in enumerate(table.scores):
        _, colour, marker = looks[row.label]
        x, mean, low, high = curve(row, positions, table.metric)
        if len(positions) > 1:
            panel.plot(x, mean, color=colour, marker=marker, markeredgecolor="white", zorder=3)
            panel.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0, zorder=2)
        else:
            # At one time the adapters stand side by side, or they would hide each other.
            x = x + 0.8 * ((index + 1) / (len(table.scores) + 1) - 0.5)
            bars = np.stack([mean - low, high - mean])
            panel.errorbar(x, mean, bars, color=colour, marker=marker, capsize=3, linestyle="none")
    _draw_time_axis(panel, table.times, positions)


def _draw_references(
    panel: Axes,
    table: DeviceTable,
    adapters: Sequence[AdapterRecord],
    looks: Mapping[str, Look],
    chance: float | None,
) -> None:
    scale, colours = unit(table.metric), adapter_colours(looks)
    for record in adapters:
        score = record.digital.get(table.metric)
        if record.task == table.task and record.adapter in colours and score is not None:
            panel.axhline(scale * score, color=colours[record.adapter], zorder=1, **_DIGITAL)
    if chance is not None:
        panel.axhline(scale * chance, zorder=1, **_CHANCE)


def _draw_time_axis(panel: Axes, times: Sequence[float], positions: Sequence[float]) -> None:
    span = positions[-1] - positions[0]
    margin = 0.06 * span or 0.5
    panel.set_xlim(positions[0] - margin, positions[-1] + margin)
    panel.set_xticks(positions)
    panel.set_xticklabels(_tick_labels(times, positions))
    if times[0] == 0 and len(times) > 1:
        break_axis(panel, (positions[0] + positions[1]) / 2, 0.012 * span)


def _tick_labels(times: Sequence[float], positions: Sequence[float]) -> list[str]:
    """The labels of the ticks: on a second line, or left out, where they would touch another."""
    labels: list[str] = []
    letter = 0.032 * (positions[-1] - positions[0])
    ends = [-math.inf, -math.inf]
    for time, position in zip(times, positions, strict=True):
        label = format_time(time)
        half = letter * (len(label) + 0.5) / 2
        free = [line for line, end in enumerate(ends) if position - half >= end]
        if free:
            ends[free[0]] = position + half
        labels.append("\n" * free[0] + label if free else "")
    return labels


def _legend(looks: Mapping[str, Look], *, with_digital: bool, with_chance: bool) -> list[Artist]:
    handles: list[Artist] = [
        Line2D([], [], color=colour, marker=marker, markeredgecolor="white", label=label)
        for label, (_, colour, marker) in looks.items()
    ]
    if with_digital:
        handles.append(Line2D([], [], color="#444444", label="digital model", **_DIGITAL))
    if with_chance:
        handles.append(Line2D([], [], label="chance", **_CHANCE))
    return handles
