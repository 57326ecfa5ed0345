"""Figures of a comparison: score against drift time and noise level, weight error, tile use.

Every series is drawn with an element id (`gid`), by which the page finds it in the SVG.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

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
    Points,
    Style,
    adapter_colours,
    digital_scores,
    draw_legend,
    draw_time_axis,
    row_points,
    score_limits,
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
    metric_title,
    ordered_variants,
)
from analog_grasp.study.records import AdapterRecord, Measurement
from analog_grasp.study.statistics import Variant

_PANEL_INCHES = (2.9, 2.2)
_NOISE_PANEL_INCHES = (3.4, 2.6)
_NOISE_LABEL = "noise std (% of the largest value)"


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
        ...     Measurement("reviews", "accuracy", "grasp", "digital", "pcm", time, 0, 0, 0.8)
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
    for index, row in enumerate(table.scores):
        points = row_points(row, positions, table.metric)
        if len(positions) > 1:
            draw_line(panel, points, styles[row.label], f"{prefix}{{}}{index}")
        else:
            _draw_errorbar(panel, points, styles[row.label], index, len(table.scores), prefix)
    scores = digital_scores(table, adapters)
    for index, (adapter, colour) in enumerate(adapter_colours(styles).items()):
        if adapter in scores:
            score = unit(table.metric) * scores[adapter]
            panel.axhline(score, color=colour, zorder=1, gid=f"{prefix}digital{index}", **DASHED)
    draw_time_axis(panel, table.times)
    panel.set_xlabel("time since programming")
    panel.set_ylabel(metric_title(table.metric))
    panel.set_ylim(limits)


def draw_line(panel: Axes, points: Points, style: Style, gid: str) -> None:
    """Draw points, joined by a line, and the band of their intervals.

    Args:
        panel: Axes to draw on.
        points: From `row_points`.
        style: Colour and marker.
        gid: Format of the ids, as in ``"{}0"`` for ``series0`` and ``band0``.
    """
    x, mean, low, high = points
    panel.plot(x, mean, color=style.colour, marker=style.marker, markeredgecolor="white",
               zorder=3, gid=gid.format("series"))  # fmt: skip
    panel.fill_between(x, low, high, color=style.colour, alpha=0.18, linewidth=0, zorder=2,
                       gid=gid.format("band"))  # fmt: skip


def _draw_errorbar(
    panel: Axes, points: Points, style: Style, index: int, count: int, prefix: str
) -> None:
    """Draw the score at a single time, side by side with those of the other variants."""
    x, mean, low, high = points
    x = x + 0.8 * ((index + 1) / (count + 1) - 0.5)
    bars = np.stack([mean - low, high - mean])
    line, caps, (interval,) = panel.errorbar(
        x, mean, bars, color=style.colour, marker=style.marker, capsize=3, linestyle="none"
    )
    line.set_gid(f"{prefix}series{index}")
    for part, artist in enumerate((interval, *caps)):
        artist.set_gid(f"{prefix}band{index}-{part}")


def draw_noise(
    panel: Axes, rows: Mapping[int, ScoreRow], levels: Sequence[float], metric: str,
    styles: Mapping[str, Style], limits: tuple[float, float], prefix: str = "",
) -> None:  # fmt: skip
    """Draw score against noise level; the ids are those of `draw_drift`.

    Args:
        panel: Axes to draw on.
        rows: Scores by index of the variant, one summary per level.
        levels: Standard deviations relative to the largest value, ascending.
        metric: Gives the unit.
        styles: From `variant_styles`.
        limits: Of the vertical axis, from `score_limits`.
        prefix: Begins every id.
    """
    positions = [100 * level for level in levels]
    for index, row in rows.items():
        points = row_points(row, positions, metric)
        draw_line(panel, points, styles[row.label], f"{prefix}{{}}{index}")
    panel.set_xticks(positions, [f"{position:g}" for position in positions])
    panel.set_xlabel(_NOISE_LABEL)
    panel.set_ylabel(metric_title(metric))
    panel.set_ylim(limits)


def noise_rows(
    tables: Sequence[DeviceTable], measured: Sequence[Variant], placement: str
) -> dict[int, ScoreRow]:
    """Return the scores at the first time by index of the variant, a summary per table.

    Args:
        tables: One per noise level; the noise of these devices does not change with time.
        measured: The variants in the order of the tables.
        placement: Only variants with this placement.
    """
    return {
        index: ScoreRow(
            tables[0].scores[index].label,
            tuple(table.scores[index].summaries[0] for table in tables),
        )
        for index, variant in enumerate(measured)
        if variant.placement == placement
    }


def noise_tables(tables: Sequence[DeviceTable]) -> list[dict[float, DeviceTable]]:
    """Return per task and metric the Gaussian devices by noise level, where there are several."""
    subjects: dict[tuple[str, str], dict[float, DeviceTable]] = {}
    for table in tables:
        level = noise_level(table.device)
        if level is not None:
            subjects.setdefault((table.task, table.metric), {})[level] = table
    return [dict(sorted(levels.items())) for levels in subjects.values() if len(levels) > 1]


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
    subjects = noise_tables(comparison_tables(measurements, adapters))
    if not subjects:
        return []
    measured = ordered_variants(measurements, adapters)
    return write_figure(lambda: _noise_figure(subjects, measured, adapters, weights), path_stem)


def _noise_figure(
    subjects: Sequence[Mapping[float, DeviceTable]],
    measured: Sequence[Variant],
    adapters: Sequence[AdapterRecord],
    weights: str,
) -> Figure:
    placements = list(dict.fromkeys(variant.placement for variant in measured))
    panels = list(itertools.product(subjects, placements))
    width, height = _NOISE_PANEL_INCHES
    figure = Figure(
        figsize=(max(width * len(panels) + 0.4, 4.4), height + 0.7), layout="constrained"
    )
    styles = variant_styles(measured)
    colours = adapter_colours(styles)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for number, (panel, (levels, placement)) in enumerate(zip(axes, panels, strict=True), 1):
        tables = list(levels.values())
        rows, metric = noise_rows(tables, measured, placement), tables[0].metric
        limits = score_limits(tables, adapters)
        draw_noise(panel, rows, list(levels), metric, styles, limits, f"panel{number}-")
        for adapter, score in digital_scores(tables[0], adapters).items():
            if adapter in colours:
                panel.axhline(unit(metric) * score, color=colours[adapter], zorder=1, **DASHED)
        panel.set_title(f"noise on the {noise_target(placement, weights)}")
        panel.set_ylabel(f"{tables[0].task}: {metric_title(metric)}")
    draw_legend(figure, _legend_handles(styles, with_digital=bool(adapters)))
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
        (bar,) = panel.bar(index + 1, 100 * layer.use, 0.7, color=PALETTE[5])
        bar.set_gid(f"series{index}")
    panel.set_ylim(0, 100)
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
