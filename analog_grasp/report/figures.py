"""Figures of a comparison: score against drift time and noise level, weight error, tile use.

Every series is drawn with an element id (`gid`), by which the page finds it in the SVG; a function
that draws returns labels and tokens by these ids.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analog_grasp.devices.card import DeviceCard
from analog_grasp.report.comparison import Comparison, DeviceTable
from analog_grasp.report.findings import ChipSummary
from analog_grasp.report.plotting import (
    AXIS_COLOUR,
    DASHED,
    MARKERS,
    PALETTE,
    Drawn,
    Series,
    colour_of,
    draw_legend,
    draw_time_axis,
    line_styles,
    time_positions,
    write_figure,
)
from analog_grasp.report.tables import interval_text, metric_title, percent, score_text, unit
from analog_grasp.study.statistics import Summary
from analog_grasp.utils.time import format_time

_PANEL_INCHES = (2.9, 2.2)
_NOISE_PANEL_INCHES = (3.4, 2.6)
# Metrics drawn on a logarithmic axis where the largest value is this many times the smallest.
_LOGARITHMIC, _WIDE = ("perplexity",), 10.0

type Rows = Mapping[int, Sequence[Summary | None]]
"""Scores by the place of their variant."""


class NoiseScores(NamedTuple):
    """Scores of the variants at one placement against the noise level of the Gaussian card.

    Attributes:
        tables: The tables of one task and metric, by ascending noise level.
        placement: As in the measurements.
        levels: Standard deviations relative to the largest value, ascending.
        rows: Scores at the first time, one summary per level.
    """

    tables: Sequence[DeviceTable]
    placement: str
    levels: Sequence[float]
    rows: Rows


def accuracy_vs_drift(comparison: Comparison, path_stem: Path | str) -> list[Path]:
    """Draw score against drift time, one panel per device; write PNG, SVG and PDF.

    Each adapter is a line with the band of its 95 % interval; a dashed line of the same colour is
    the score of its digital model. Each task and metric has its own rows of panels.

    Args:
        comparison: Of at least one measurement.
        path_stem: The path without its suffix.

    Returns:
        The paths of the PNG, the SVG and the PDF.

    Raises:
        OSError: A file cannot be written.
    """
    return write_figure(lambda: _drift_figure(comparison), path_stem)


def _drift_figure(comparison: Comparison) -> Figure:
    subjects = comparison.subjects
    several_tasks = len({tables[0].task for tables in subjects}) > 1
    columns = _columns(max(len(tables) for tables in subjects))
    rows = [math.ceil(len(tables) / columns) for tables in subjects]
    width, height = _PANEL_INCHES
    figure = Figure(
        figsize=(max(columns * width + 0.6, 4.4), sum(rows) * height + 0.8), layout="constrained"
    )
    grid = figure.add_gridspec(sum(rows), columns)
    for tables, row in zip(subjects, itertools.accumulate(rows, initial=0), strict=False):
        first: Axes | None = None
        for place, table in enumerate(tables):
            position = grid[row + place // columns, place % columns]
            panel = figure.add_subplot(position, sharex=first, sharey=first)
            first = first or panel
            draw_drift(panel, comparison, table, f"panel{len(figure.axes)}-")
            panel.set_title(f"{table.device}, {table.task}" if several_tasks else table.device)
            inner = place % columns > 0
            panel.tick_params(labelleft=not inner, left=not inner)
            panel.set_xlabel("")
            panel.set_ylabel("" if inner else metric_title(table.metric))
            panel.tick_params(labelbottom=place + columns >= len(tables))
    figure.supxlabel("time since programming", fontsize=9)
    draw_legend(figure, _legend_handles(comparison, with_digital=bool(comparison.adapters)))
    return figure


def _columns(devices: int) -> int:
    """Return a number of columns at which the panels are readable on a page."""
    return {1: 1, 2: 2, 3: 3, 4: 2, 5: 3, 6: 3}.get(devices, 4)


def draw_drift(
    panel: Axes, comparison: Comparison, table: DeviceTable, prefix: str = ""
) -> dict[str, Series]:
    """Draw score against drift time, on the same scale for all devices of a metric.

    The ids are ``series0``, ``series1``, ... for the lines of `table.scores`, ``band0``, ... for
    their intervals and ``digital0``, ... for the digital scores of the adapters; in a figure with
    several panels they begin with a prefix.
    """
    positions, rows = time_positions(table.times), dict(enumerate(table.scores))
    if len(positions) > 1:
        _draw_lines(panel, comparison, rows, positions, table.metric, prefix)
    else:
        _draw_errorbars(panel, comparison, rows, table.metric, prefix)
    same = [other for other in comparison.tables if other[:2] == table[:2]]
    digital = _draw_digital(panel, comparison, same, prefix)
    draw_time_axis(panel, table.times)
    return digital | _labelled(comparison, rows, [format_time(seconds) for seconds in table.times])


def _draw_lines(
    panel: Axes,
    comparison: Comparison,
    rows: Rows,
    positions: Sequence[float],
    metric: str,
    prefix: str,
) -> None:
    """Draw the scores of each row, joined by a line, and the band of their intervals."""
    styles = line_styles(comparison)
    for place, cells in rows.items():
        x, mean, low, high = _points(cells, positions, metric)
        panel.plot(x, mean, **styles[place], markeredgecolor="white", zorder=3,
                   gid=f"{prefix}series{place}")  # fmt: skip
        panel.fill_between(x, low, high, color=styles[place]["color"], alpha=0.18, linewidth=0,
                           zorder=2, gid=f"{prefix}band{place}")  # fmt: skip


def _draw_errorbars(
    panel: Axes, comparison: Comparison, rows: Rows, metric: str, prefix: str
) -> None:
    """Draw the scores at a single time side by side."""
    styles = line_styles(comparison)
    for place, cells in rows.items():
        side = 0.8 * ((place + 1) / (len(rows) + 1) - 0.5)
        x, mean, low, high = _points(cells, [side], metric)
        bars = np.stack([mean - low, high - mean])
        line, caps, (interval,) = panel.errorbar(
            x, mean, bars, **styles[place], capsize=3, linestyle="none"
        )
        line.set_gid(f"{prefix}series{place}")
        for part, artist in enumerate((interval, *caps)):
            artist.set_gid(f"{prefix}band{place}-{part}")


def _points(cells: Sequence[Summary | None], positions: Sequence[float], metric: str) -> np.ndarray:
    """Return place, mean, low and high of the measured scores of a row, of shape (4, n)."""
    points = []
    for x, cell in zip(positions, cells, strict=True):
        if cell is not None:
            low, high = (cell.mean if end is None else end for end in (cell.low, cell.high))
            points.append([x, *(unit(metric) * score for score in (cell.mean, low, high))])
    return np.array(points).reshape(-1, 4).T


def _draw_digital(
    panel: Axes, comparison: Comparison, tables: Sequence[DeviceTable], prefix: str
) -> dict[str, Series]:
    """Draw the digital scores, and the vertical axis: it shows all scores of the tables."""
    metric, digital = tables[0].metric, comparison.digital(tables[0])
    drawn = {}
    for index, adapter in enumerate(comparison.names):
        if adapter in digital:
            panel.axhline(unit(metric) * digital[adapter], color=colour_of(index), zorder=1,
                          gid=f"{prefix}digital{index}", **DASHED)  # fmt: skip
            own = [variant for variant in comparison.variants if variant.adapter == adapter]
            score = score_text(digital[adapter], metric) + percent(metric)
            label = f"{adapter}, digital model: {score}"
            drawn[f"digital{index}"] = Series([label], comparison.tokens(*own))
    panel.set_ylabel(metric_title(metric))
    cells = [cell for table in tables for row in table.scores for cell in row if cell]
    values = [v for cell in cells for v in (cell.mean, cell.low, cell.high) if v is not None]
    values += digital.values()
    positive = [value for value in values if value > 0]
    if metric in _LOGARITHMIC and max(values) > _WIDE * min(positive):
        panel.set_yscale("log")
        # The formatters of the scale write formulas, which are shown as they are written.
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter("")
        panel.set_ylim(min(positive) / 1.1, max(values) * 1.1)
        return drawn
    margin = 0.06 * (max(values) - min(values)) or 0.01
    panel.set_ylim(unit(metric) * (min(values) - margin), unit(metric) * (max(values) + margin))
    return drawn


def _labelled(comparison: Comparison, rows: Rows, conditions: Sequence[str]) -> dict[str, Series]:
    """Return labels and tokens of scores and of their intervals."""
    found = {}
    for place, cells in rows.items():
        labels = [
            f"{comparison.labels[place]}, {condition}: {interval_text(cell, cell.metric)}"
            f"{percent(cell.metric)}, {_repetitions(cell)}"
            for condition, cell in zip(conditions, cells, strict=True)
            if cell
        ]
        tokens = comparison.tokens(comparison.variants[place])
        found[f"series{place}"] = Series(labels, tokens)
        for part in ("", "-0", "-1", "-2"):
            found[f"band{place}{part}"] = Series(tokens=tokens)
    return found


def _repetitions(cell: Summary) -> str:
    chips = f"{cell.n} chip{'' if cell.n == 1 else 's'}"
    return chips if cell.trainings == 1 else f"{cell.trainings} trainings on {chips}"


def noise_scores(comparison: Comparison) -> list[NoiseScores]:
    """Return scores against noise level per task, metric and placement with several levels."""
    found = []
    for tables in comparison.subjects:
        levels = {level: t for t in tables if (level := noise_level(t.device)) is not None}
        ordered = sorted(levels)
        same = [levels[level] for level in ordered]
        for placement in comparison.placements if len(levels) > 1 else ():
            rows = {
                place: [table.scores[place][0] for table in same]
                for place, variant in enumerate(comparison.variants)
                if variant.placement == placement
            }
            found.append(NoiseScores(same, placement, ordered, rows))
    return found


def noise_level(device: str) -> float | None:
    """Return the std of a Gaussian device relative to the largest weight; None for others.

    Example:
        >>> noise_level("gaussian:0.02"), noise_level("gaussian"), noise_level("pcm-hermes-2")
        (0.02, 0.05, None)
    """
    if not re.fullmatch(r"gaussian(:.+)?", device):
        return None
    card = DeviceCard.load(device)
    assert card.programming is not None
    std = card.programming.constant(card.conductance.g_max)
    assert std is not None
    return std / card.conductance.g_max


def draw_noise(
    panel: Axes, comparison: Comparison, noise: NoiseScores, prefix: str = ""
) -> dict[str, Series]:
    """Draw score against noise level; the ids are those of `draw_drift`."""
    positions = [100 * level for level in noise.levels]
    _draw_lines(panel, comparison, noise.rows, positions, noise.tables[0].metric, prefix)
    digital = _draw_digital(panel, comparison, noise.tables, prefix)
    panel.set_xticks(positions, [f"{position:g}" for position in positions])
    panel.set_xlabel("noise std (% of the largest value)")
    conditions = [f"{position:.3g} % noise" for position in positions]
    return digital | _labelled(comparison, noise.rows, conditions)


def noise_title(placement: str, weights: str = "analog") -> str:
    """Return what the device noise affects, by the placement of adapter and frozen weights.

    Example:
        >>> noise_title("digital"), noise_title("programmed", "digital")
        ('noise on the frozen weights', 'noise on the adapter')
    """
    targets = {
        "programmed": "frozen weights and adapter",
        "folded": "weights with the adapter folded in",
    }
    target = "adapter" if weights == "digital" else targets.get(placement, "frozen weights")
    return f"noise on the {target}"


def accuracy_vs_noise(
    comparison: Comparison, path_stem: Path | str, *, weights: str = "analog"
) -> list[Path]:
    """Draw score against noise level where a run has several levels of the Gaussian card.

    One panel per task, metric and placement, drawn as in `accuracy_vs_drift`; `weights` is the
    placement of the frozen weights. No file is written with fewer than two levels.
    """
    found = noise_scores(comparison)
    return (
        write_figure(lambda: _noise_figure(comparison, found, weights), path_stem) if found else []
    )


def _noise_figure(comparison: Comparison, found: Sequence[NoiseScores], weights: str) -> Figure:
    width, height = _NOISE_PANEL_INCHES
    figure = Figure(
        figsize=(max(width * len(found) + 0.4, 4.4), height + 0.7), layout="constrained"
    )
    axes = figure.subplots(1, len(found), squeeze=False)[0]
    for number, (panel, noise) in enumerate(zip(axes, found, strict=True), 1):
        draw_noise(panel, comparison, noise, f"panel{number}-")
        panel.set_title(noise_title(noise.placement, weights))
        panel.set_ylabel(f"{noise.tables[0].task}: {metric_title(noise.tables[0].metric)}")
    with_digital = any(comparison.digital(noise.tables[0]) for noise in found)
    draw_legend(figure, _legend_handles(comparison, with_digital=with_digital))
    return figure


def _legend_handles(comparison: Comparison, *, with_digital: bool) -> list[Artist]:
    handles: list[Artist] = [
        Line2D([], [], **style, markeredgecolor="white", label=label)
        for label, style in zip(comparison.labels, line_styles(comparison), strict=True)
    ]
    if with_digital:
        handles.append(Line2D([], [], color=AXIS_COLOUR, label="digital model", **DASHED))
    return handles


def draw_weight_error(panel: Axes, comparison: Comparison, chips: Sequence[ChipSummary]) -> Drawn:
    """Draw weight error against time; the ids are ``series0``, ... for the chips."""
    times = sorted({seconds for chip in chips for seconds in chip.errors})
    positions = dict(zip(times, time_positions(times), strict=True))
    drawn = {}
    for index, chip in enumerate(chips):
        x = [positions[seconds] for seconds in chip.errors]
        y = [100 * error for error in chip.errors.values()]
        panel.plot(x, y, color=colour_of(index), marker=MARKERS[0], markeredgecolor="white",
                   gid=f"series{index}")  # fmt: skip
        labels = [f"{chip.device}, {format_time(t)}: {e:.2%}" for t, e in chip.errors.items()]
        drawn[f"series{index}"] = Series(labels, comparison.tokens(devices=[chip.device]))
    panel.set_ylim(bottom=0)
    panel.set_ylabel("weight error (%)")
    draw_time_axis(panel, times)
    return drawn


def draw_utilisation(panel: Axes, chip: ChipSummary, tokens: str) -> Drawn:
    """Draw the utilisation of each layer's tiles; the ids are ``series0``, ... for the bars."""
    drawn = {}
    for index, layer in enumerate(chip.layers):
        (bar,) = panel.bar(index + 1, 100 * layer.use, 0.7, color=PALETTE[0])
        bar.set_gid(f"series{index}")
        tiles = f"{layer.tiles} tile{'' if layer.tiles == 1 else 's'}"
        label = f"{layer.layer}: {layer.use:.1%} of {tiles}, {layer.cells:,} weights"
        drawn[f"series{index}"] = Series([label], tokens)
    panel.set_xlim(0.4, len(chip.layers) + 0.6)
    panel.set_ylim(0, 100)
    panel.locator_params(axis="x", integer=True)
    panel.set_ylabel("cross-points in use (%)")
    panel.set_xlabel("layer")
    return drawn
