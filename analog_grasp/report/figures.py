"""Figures of a comparison: score against drift time and noise level, weight error, tile use.

Every series is drawn with an element id (`gid`), by which the page finds it in the SVG.
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
from analog_grasp.report.plotting import (
    AXIS_COLOUR,
    DASHED,
    MARKERS,
    PALETTE,
    Style,
    adapter_colours,
    draw_legend,
    draw_time_axis,
    time_positions,
    unit,
    variant_styles,
    write_figure,
)
from analog_grasp.report.summary import ChipSummary
from analog_grasp.report.tables import (
    DeviceTable,
    ScoreRow,
    comparison_tables,
    digital_means,
    metric_title,
    ordered_variants,
)
from analog_grasp.study.records import AdapterRecord, Measurement
from analog_grasp.study.statistics import Variant

_PANEL_INCHES = (2.9, 2.2)
_NOISE_PANEL_INCHES = (3.4, 2.6)
# Metrics drawn on a logarithmic axis where the largest value is this many times the smallest.
_LOGARITHMIC, _WIDE = ("perplexity",), 10.0


class NoiseScores(NamedTuple):
    """Scores of the variants at one placement against the noise level of the Gaussian card.

    Attributes:
        task, metric, placement: As in the measurements.
        levels: Standard deviations relative to the largest value, ascending.
        rows: Scores at the first time by index of the variant, one summary per level.
        digital: Scores of the digital models by adapter.
        limits: Limits of the vertical axis.
    """

    task: str
    metric: str
    placement: str
    levels: Sequence[float]
    rows: Mapping[int, ScoreRow]
    digital: Mapping[str, float]
    limits: tuple[float, float]


def accuracy_vs_drift(
    measurements: Sequence[Measurement],
    path_stem: Path | str,
    *,
    adapters: Sequence[AdapterRecord] = (),
) -> list[Path]:
    """Draw score against drift time, one panel per device; write PNG, SVG and PDF.

    Each adapter is a line with the band of its 95 % interval; a dashed line of the same colour is
    the score of its digital model. Each task and metric has its own rows of panels.

    Args:
        measurements: Measurements of a complete or partial run, at least one.
        path_stem: The path without its suffix.
        adapters: Give the order of the lines and the digital scores.

    Returns:
        The paths of the PNG, the SVG and the PDF.

    Raises:
        ValueError: `measurements` is empty.
        OSError: A file cannot be written.

    Example:
        >>> import tempfile
        >>> cells = [
        ...     Measurement("reviews", "accuracy", "grasp", 0, "digital", "pcm", time, 0, 0, 0.8)
        ...     for time in [0.0, 3600.0]
        ... ]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     paths = accuracy_vs_drift(cells, Path(folder) / "accuracy_vs_drift")
        >>> [path.name for path in paths]
        ['accuracy_vs_drift.png', 'accuracy_vs_drift.svg', 'accuracy_vs_drift.pdf']
    """
    if not measurements:
        raise ValueError("`measurements` must not be empty.")
    return write_figure(lambda: _drift_figure(measurements, adapters), path_stem)


def _drift_figure(measurements: Sequence[Measurement], adapters: Sequence[AdapterRecord]) -> Figure:
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
    styles = variant_styles(ordered_variants(measurements, adapters))
    for devices, row in zip(subjects.values(), itertools.accumulate(rows, initial=0), strict=False):
        first: Axes | None = None
        limits = score_limits(devices, adapters)
        for place, table in enumerate(devices):
            position = grid[row + place // columns, place % columns]
            panel = figure.add_subplot(position, sharex=first, sharey=first)
            first = first or panel
            draw_drift(panel, table, styles, adapters, limits, f"panel{len(figure.axes)}-")
            panel.set_title(f"{table.device}, {table.task}" if several_tasks else table.device)
            inner = place % columns > 0
            panel.tick_params(labelleft=not inner, left=not inner)
            panel.set_xlabel("")
            panel.set_ylabel("" if inner else metric_title(table.metric))
            panel.tick_params(labelbottom=place + columns >= len(devices))
    figure.supxlabel("time since programming", fontsize=9)
    draw_legend(figure, _legend_handles(styles, with_digital=bool(adapters)))
    return figure


def _columns(devices: int) -> int:
    """Return a number of columns at which the panels are readable on a page."""
    if devices <= 3:
        return devices
    return {4: 2, 5: 3, 6: 3}.get(devices, 4)


def draw_drift(
    panel: Axes,
    table: DeviceTable,
    styles: Mapping[str, Style],
    adapters: Sequence[AdapterRecord],
    limits: tuple[float, float],
    prefix: str = "",
) -> None:
    """Draw score against drift time.

    The ids are ``series0``, ``series1``, ... for the lines of `table.scores`, ``band0``, ... for
    their intervals and ``digital0``, ... for the digital scores of the adapters in `styles`.

    Args:
        panel: Axes to draw on.
        table: One device of a comparison.
        styles: From `variant_styles`.
        adapters: Give the digital scores.
        limits: Of the vertical axis, from `score_limits`.
        prefix: Begins every id.
    """
    positions = time_positions(table.times)
    rows = dict(enumerate(table.scores))
    if len(positions) > 1:
        _draw_lines(panel, rows, positions, table.metric, styles, prefix)
    else:
        _draw_errorbars(panel, rows, table.metric, styles, prefix)
    _draw_digital(panel, digital_means(table, adapters), table.metric, styles, prefix)
    draw_time_axis(panel, table.times)
    panel.set_xlabel("time since programming")
    panel.set_ylabel(metric_title(table.metric))
    _set_score_axis(panel, table.metric, limits)


def _draw_lines(
    panel: Axes,
    rows: Mapping[int, ScoreRow],
    positions: Sequence[float],
    metric: str,
    styles: Mapping[str, Style],
    prefix: str,
) -> None:
    """Draw the scores of each row, joined by a line, and the band of their intervals."""
    for index, row in rows.items():
        style, (x, mean, low, high) = styles[row.label], _points(row, positions, metric)
        panel.plot(x, mean, color=style.colour, marker=style.marker, markeredgecolor="white",
                   zorder=3, gid=f"{prefix}series{index}")  # fmt: skip
        panel.fill_between(x, low, high, color=style.colour, alpha=0.18, linewidth=0, zorder=2,
                           gid=f"{prefix}band{index}")  # fmt: skip


def _draw_errorbars(
    panel: Axes,
    rows: Mapping[int, ScoreRow],
    metric: str,
    styles: Mapping[str, Style],
    prefix: str,
) -> None:
    """Draw the scores at a single time side by side."""
    for index, row in rows.items():
        place = 0.8 * ((index + 1) / (len(rows) + 1) - 0.5)
        style, (x, mean, low, high) = styles[row.label], _points(row, [place], metric)
        bars = np.stack([mean - low, high - mean])
        line, caps, (interval,) = panel.errorbar(
            x, mean, bars, color=style.colour, marker=style.marker, capsize=3, linestyle="none"
        )
        line.set_gid(f"{prefix}series{index}")
        for part, artist in enumerate((interval, *caps)):
            artist.set_gid(f"{prefix}band{index}-{part}")


def _draw_digital(
    panel: Axes, scores: Mapping[str, float], metric: str, styles: Mapping[str, Style], prefix: str
) -> None:
    for index, (adapter, colour) in enumerate(adapter_colours(styles).items()):
        if adapter in scores:
            score = unit(metric) * scores[adapter]
            panel.axhline(score, color=colour, zorder=1, gid=f"{prefix}digital{index}", **DASHED)


def _points(row: ScoreRow, positions: Sequence[float], metric: str) -> np.ndarray:
    """Return place, mean, low and high of the measured scores of a row, of shape (4, n)."""
    points = []
    for x, cell in zip(positions, row.summaries, strict=True):
        if cell is not None:
            low, high = (cell.mean if end is None else end for end in (cell.low, cell.high))
            points.append([x, *(unit(metric) * score for score in (cell.mean, low, high))])
    return np.array(points).reshape(-1, 4).T


def score_limits(
    tables: Sequence[DeviceTable], adapters: Sequence[AdapterRecord] = ()
) -> tuple[float, float]:
    """Return limits of a vertical axis that show every score and interval of the tables."""
    cells = [cell for table in tables for row in table.scores for cell in row.summaries if cell]
    values = [v for cell in cells for v in (cell.mean, cell.low, cell.high) if v is not None]
    values += digital_means(tables[0], adapters).values()
    positive = [value for value in values if value > 0]
    if tables[0].metric in _LOGARITHMIC and max(values) > _WIDE * min(positive):
        return min(positive) / 1.1, max(values) * 1.1
    margin = 0.06 * (max(values) - min(values)) or 0.01
    scale = unit(tables[0].metric)
    return scale * (min(values) - margin), scale * (max(values) + margin)


def _set_score_axis(panel: Axes, metric: str, limits: tuple[float, float]) -> None:
    """Set the limits of the vertical axis, which is logarithmic for wide ranges of perplexity."""
    if metric in _LOGARITHMIC and limits[1] > _WIDE * limits[0] > 0:
        panel.set_yscale("log")
    panel.set_ylim(limits)


def draw_noise(
    panel: Axes, noise: NoiseScores, styles: Mapping[str, Style], prefix: str = ""
) -> None:
    """Draw score against noise level; the ids are those of `draw_drift`.

    Args:
        panel: Axes to draw on.
        noise: From `noise_scores`.
        styles: From `variant_styles`.
        prefix: Begins every id.
    """
    positions = [100 * level for level in noise.levels]
    _draw_lines(panel, noise.rows, positions, noise.metric, styles, prefix)
    _draw_digital(panel, noise.digital, noise.metric, styles, prefix)
    panel.set_xticks(positions, [f"{position:g}" for position in positions])
    panel.set_xlabel("noise std (% of the largest value)")
    panel.set_ylabel(metric_title(noise.metric))
    _set_score_axis(panel, noise.metric, noise.limits)


def noise_scores(
    tables: Sequence[DeviceTable],
    measured: Sequence[Variant],
    adapters: Sequence[AdapterRecord],
) -> list[NoiseScores]:
    """Return scores against noise level per task, metric and placement with several levels.

    Args:
        tables: Tables of a comparison.
        measured: The variants in the order of the tables.
        adapters: Give the digital scores.
    """
    subjects: dict[tuple[str, str], dict[float, DeviceTable]] = {}
    for table in tables:
        level = noise_level(table.device)
        if level is not None:
            subjects.setdefault((table.task, table.metric), {})[level] = table
    found = []
    for (task, metric), by_level in subjects.items():
        levels = sorted(by_level)
        same = [by_level[level] for level in levels]
        rows = {
            index: ScoreRow(row.label, tuple(table.scores[index].summaries[0] for table in same))
            for index, row in enumerate(same[0].scores)
        }
        digital, limits = digital_means(same[0], adapters), score_limits(same, adapters)
        for placement in dict.fromkeys(variant.placement for variant in measured):
            own = {i: row for i, row in rows.items() if measured[i].placement == placement}
            found.append(NoiseScores(task, metric, placement, levels, own, digital, limits))
    return [noise for noise in found if len(noise.levels) > 1]


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


def noise_target(placement: str, weights: str = "analog") -> str:
    """Return what the device noise affects, for a title.

    Args:
        placement: Placement of the adapter.
        weights: Placement of the frozen weights, analog or digital.

    Example:
        >>> noise_target("digital"), noise_target("programmed", "digital")
        ('frozen weights', 'adapter')
    """
    if weights == "digital":
        return "adapter"
    return {
        "programmed": "frozen weights and adapter",
        "folded": "weights with the adapter folded in",
    }.get(placement, "frozen weights")


def accuracy_vs_noise(
    measurements: Sequence[Measurement],
    path_stem: Path | str,
    *,
    adapters: Sequence[AdapterRecord] = (),
    weights: str = "analog",
) -> list[Path]:
    """Draw score against noise level where a run has several levels of the Gaussian card.

    One panel per task, metric and placement, drawn as in `accuracy_vs_drift`.

    Args:
        measurements: Measurements of a complete or partial run.
        path_stem: The path without its suffix.
        adapters: Give the order of the lines and the digital scores.
        weights: Placement of the frozen weights, as in the settings.

    Returns:
        The paths of the PNG, the SVG and the PDF; none with fewer than two levels.

    Raises:
        OSError: A file cannot be written.

    Example:
        >>> accuracy_vs_noise([], "accuracy_vs_noise")
        []
    """
    measured = ordered_variants(measurements, adapters)
    found = noise_scores(comparison_tables(measurements, adapters), measured, adapters)
    if not found:
        return []
    return write_figure(lambda: _noise_figure(found, variant_styles(measured), weights), path_stem)


def _noise_figure(
    found: Sequence[NoiseScores], styles: Mapping[str, Style], weights: str
) -> Figure:
    width, height = _NOISE_PANEL_INCHES
    figure = Figure(
        figsize=(max(width * len(found) + 0.4, 4.4), height + 0.7), layout="constrained"
    )
    axes = figure.subplots(1, len(found), squeeze=False)[0]
    for number, (panel, noise) in enumerate(zip(axes, found, strict=True), 1):
        draw_noise(panel, noise, styles, f"panel{number}-")
        panel.set_title(f"noise on the {noise_target(noise.placement, weights)}")
        panel.set_ylabel(f"{noise.task}: {metric_title(noise.metric)}")
    with_digital = any(noise.digital for noise in found)
    draw_legend(figure, _legend_handles(styles, with_digital=with_digital))
    return figure


def draw_weight_error(panel: Axes, chips: Sequence[ChipSummary]) -> None:
    """Draw weight error against time; the ids are ``series0``, ... for the chips."""
    times = sorted({seconds for chip in chips for seconds in chip.errors})
    positions = dict(zip(times, time_positions(times), strict=True))
    for index, chip in enumerate(chips):
        x = [positions[seconds] for seconds in chip.errors]
        y = [100 * error for error in chip.errors.values()]
        panel.plot(x, y, color=PALETTE[index % len(PALETTE)], marker=MARKERS[0],
                   markeredgecolor="white", gid=f"series{index}")  # fmt: skip
    panel.set_ylim(bottom=0)
    panel.set_ylabel("weight error (%)")
    draw_time_axis(panel, times)
    panel.set_xlabel("time since programming")


def draw_utilisation(panel: Axes, chip: ChipSummary) -> None:
    """Draw the utilisation of each layer's tiles; the ids are ``series0``, ... for the bars."""
    for index, layer in enumerate(chip.layers):
        (bar,) = panel.bar(index + 1, 100 * layer.use, 0.7, color=PALETTE[0])
        bar.set_gid(f"series{index}")
    panel.set_xlim(0.4, len(chip.layers) + 0.6)
    panel.set_ylim(0, 100)
    panel.locator_params(axis="x", integer=True)
    panel.set_ylabel("cross-points in use (%)")
    panel.set_xlabel("layer")


def _legend_handles(styles: Mapping[str, Style], *, with_digital: bool) -> list[Artist]:
    handles: list[Artist] = [
        Line2D([], [], color=colour, marker=marker, markeredgecolor="white", label=label)
        for label, (_, colour, marker) in styles.items()
    ]
    if with_digital:
        handles.append(Line2D([], [], color=AXIS_COLOUR, label="digital model", **DASHED))
    return handles
