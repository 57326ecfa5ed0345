"""Figures of a report: the style, axes and files of all of them, and those of a comparison.

A time axis is logarithmic; 0 s is drawn on its left, beyond a break in the axis. Every series is
drawn with an element id (`gid`), by which the page finds it in the SVG; a function that draws
returns labels and tokens by these ids.
"""

import io
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import style as mpl_style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from analog_grasp.report.tables import (
    Comparison,
    DeviceTable,
    interval_text,
    metric_title,
    percent,
    score_text,
    unit,
)
from analog_grasp.study.records import TreatedAdapter
from analog_grasp.study.statistics import Estimate, Summary
from analog_grasp.utils.io import write_atomically
from analog_grasp.utils.metrics import is_fraction
from analog_grasp.utils.time import format_time

STYLE = Path(__file__).with_name("analog_grasp.mplstyle")
"""Style of all figures, whatever the user's own matplotlib settings are."""
# Okabe and Ito's palette, which readers with any common colour vision can distinguish.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "p", "d")
SOLID = "-"
# Solid, dotted, dash-dot and widely dotted.
_LINE_STYLES = (SOLID, (0, (1.2, 1.2)), (0, (4, 1.2, 1.2, 1.2)), (0, (1.2, 3)))
AXIS_COLOUR = "#444444"
DASHED: dict[str, Any] = {"linestyle": (0, (5, 2.5)), "linewidth": 1.1}
# File formats, with the metadata that would differ from one run to the next.
_FORMATS: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}
_PANEL_INCHES = (2.9, 2.2)
LEGEND_ROW_INCHES, _LEGEND_MARGIN_INCHES = 0.19, 0.2
# Metrics drawn on a logarithmic axis where the largest value is this many times the smallest.
_LOGARITHMIC, _WIDE = ("perplexity",), 10.0
# Fractions that are correlations, from -1 to 1.
_CORRELATIONS = ("matthews", "mcc", "pearson", "spearman")


class Series(NamedTuple):
    """Labels and tokens of a series that is drawn, for the page."""

    labels: Sequence[str] = ()
    """One for each of its points, or one for the whole series."""
    tokens: str = ""
    """From `Comparison.tokens`."""


type Drawn = Mapping[str, Series]
"""The series that a function has drawn, by their element id (`gid`)."""


@contextmanager
def figure_files(
    path_stem: Path | str, size: tuple[float, float]
) -> Iterator[tuple[Figure, list[Path]]]:
    """Draw on a figure of a size in inches; then write it as PNG, SVG and PDF, at the paths given.

    The same figure gives the same bytes. A dot in the path, which has no suffix, is part of the
    name.

    Raises:
        OSError: A file cannot be written; an older one is then unchanged.
    """
    paths = {kind: Path(f"{path_stem}.{kind}") for kind in _FORMATS}
    with mpl_style.context(STYLE, after_reset=True):
        figure = Figure(figsize=size, layout="constrained")
        yield figure, list(paths.values())
        for kind, path in paths.items():
            content = io.BytesIO()
            figure.savefig(content, format=kind, metadata=_FORMATS[kind])
            write_atomically(path, content.getvalue())


def svg_text(figure_size: tuple[float, float], draw: Callable[[Axes], Drawn]) -> tuple[str, Drawn]:
    """Draw a figure of one panel, and return it as SVG together with what is drawn.

    Its background is transparent, and its text remains text.
    """
    content = io.StringIO()
    with mpl_style.context([STYLE, {"svg.fonttype": "none"}], after_reset=True):
        figure = Figure(figsize=figure_size, layout="constrained")
        drawn = draw(figure.subplots())
        figure.savefig(content, format="svg", metadata={"Date": None}, transparent=True)
    return content.getvalue(), drawn


def colour_of(index: int) -> str:
    """Return a colour of the palette, which repeats."""
    return PALETTE[index % len(PALETTE)]


def marker_of(index: int) -> str:
    """Return one of the markers, which repeat."""
    return MARKERS[index % len(MARKERS)]


def line_style_of(index: int) -> str | tuple[float, Sequence[float]]:
    """Return a line style for `Axes.plot`, another for each index; none looks like `DASHED`.

    Example:
        >>> line_style_of(0), line_style_of(1), line_style_of(2)
        ('-', (0, (1.2, 1.2)), (0, (4, 1.2, 1.2, 1.2)))
    """
    if index < len(_LINE_STYLES):
        return _LINE_STYLES[index]
    # Long dashes with a number of dots between them.
    return 0, (9, 1.2) + (1.2, 1.2) * (index - len(_LINE_STYLES) + 1)


def line_styles(comparison: Comparison) -> list[dict[str, Any]]:
    """Return colour, line style and marker of each variant's line, as arguments of `Axes.plot`.

    No two variants have the same three. An adapter has one colour; its treatments differ by line
    style and marker, and its placements by marker.
    """
    parts = [TreatedAdapter.parse(variant.adapter) for variant in comparison.variants]
    adapters = list(dict.fromkeys(part.adapter for part in parts))
    treatments = list(dict.fromkeys(["", *(part.treatment for part in parts)]))
    styles = []
    for variant, part in zip(comparison.variants, parts, strict=True):
        index = adapters.index(part.adapter)
        # Adapters whose colour is used already have line styles of their own.
        form = treatments.index(part.treatment) + len(treatments) * (index // len(PALETTE))
        place = comparison.placements.index(variant.placement) + len(comparison.placements) * form
        styles.append({
            "color": colour_of(index), "linestyle": line_style_of(form), "marker": marker_of(place),
        })  # fmt: skip
    return styles


def log_positions(values: Sequence[float]) -> list[float]:
    """Return log10 of each value, and a place left of the smallest for 0.

    Example:
        >>> log_positions([0.0, 10.0, 1000.0])
        [0.4, 1.0, 3.0]
    """
    logarithms = [math.log10(value) for value in values if value]
    if not logarithms:
        return [0.0 for _ in values]
    zero = min(logarithms) - max(0.6, 0.14 * (max(logarithms) - min(logarithms)))
    return [math.log10(value) if value else zero for value in values]


def draw_time_axis(panel: Axes, times: Sequence[float]) -> None:
    """Draw the ticks of the times, and a break after 0 s."""
    positions = log_positions(times)
    width = positions[-1] - positions[0]
    margin = 0.06 * width or 0.5
    panel.set_xlim(positions[0] - margin, positions[-1] + margin)
    panel.set_xticks(positions, _tick_labels(times, positions))
    panel.set_xlabel("time since programming")
    if times[0] == 0 and len(times) > 1:
        break_axis(panel, (positions[0] + positions[1]) / 2, 0.012 * width)


def _tick_labels(times: Sequence[float], positions: Sequence[float]) -> list[str]:
    """Return the labels; one that would overlap goes to a second line, or is empty."""
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


def break_axis(panel: Axes, middle: float, half: float) -> None:
    """Draw a break in the horizontal axis: two strokes with a gap of this middle and half width."""
    transform = panel.get_xaxis_transform()
    common: dict[str, Any] = {"transform": transform, "clip_on": False, "solid_capstyle": "butt"}
    panel.plot([middle - half, middle + half], [0, 0], color="white", lw=2.5, zorder=8, **common)
    for x in (middle - half, middle + half):
        stroke = [x - half / 2, x + half / 2]
        panel.plot(stroke, [-0.02, 0.02], color=AXIS_COLOUR, lw=0.8, zorder=9, **common)


def draw_legend(figure: Figure, handles: Sequence[Artist], line_length: float = 2.0) -> int:
    """Draw a legend above the panels, in as many columns as fit, and return its number of rows.

    The length of its lines is in ems, of 1/8 inch. A wider legend widens the figure.
    """
    inches = [0.4 + line_length / 8 + 0.072 * len(str(handle.get_label())) for handle in handles]
    width = figure.get_figwidth()
    columns = len(handles) if sum(inches) <= width else max(1, int(width / max(inches)))
    legend = figure.legend(
        handles=handles, loc="outside upper center", ncols=columns, handlelength=line_length
    )
    figure.set_figwidth(
        max(width, legend.get_window_extent().width / figure.dpi + _LEGEND_MARGIN_INCHES)
    )
    return math.ceil(len(handles) / columns)


def accuracy_vs_drift(comparison: Comparison, path_stem: Path | str) -> list[Path]:
    """Draw score against drift time, one panel per device, to `figure_files`.

    Each variant is a line with the band of its 95 % interval, as in `line_styles`; a dashed line
    of the adapter's colour is the score of its digital model. Each task and metric has its own rows
    of panels.
    """
    subjects = comparison.subjects
    several_tasks = len({tables[0].task for tables in subjects}) > 1
    # At most as many columns as are readable on a page.
    devices = max(len(tables) for tables in subjects)
    columns = {1: 1, 2: 2, 3: 3, 4: 2, 5: 3, 6: 3}.get(devices, 4)
    rows = [math.ceil(len(tables) / columns) for tables in subjects]
    width, height = _PANEL_INCHES
    size = max(columns * width + 0.6, 4.4), sum(rows) * height + 0.8
    with figure_files(path_stem, size) as (figure, paths):
        grid = figure.add_gridspec(sum(rows), columns)
        for tables, row in zip(subjects, itertools.accumulate(rows, initial=0), strict=False):
            first: Axes | None = None
            for place, table in enumerate(tables):
                position = grid[row + place // columns, place % columns]
                panel = figure.add_subplot(position, sharex=first, sharey=first)
                first = first or panel
                draw_drift(panel, comparison, table)
                prefix_ids(panel, len(figure.axes))
                panel.set_title(f"{table.device}, {table.task}" if several_tasks else table.device)
                inner = place % columns > 0
                panel.tick_params(which="both", labelleft=not inner, left=not inner)
                panel.set_xlabel("")
                panel.set_ylabel("" if inner else metric_title(table.metric))
                panel.tick_params(labelbottom=place + columns >= len(tables))
        figure.supxlabel("time since programming", fontsize=9)
        draw_variants(figure, comparison)
    return paths


def prefix_ids(panel: Axes, number: int) -> None:
    """Make the ids of a panel unique among several."""
    for artist in panel.get_children():
        if artist.get_gid():
            artist.set_gid(f"panel{number}-{artist.get_gid()}")


def draw_variants(figure: Figure, comparison: Comparison) -> None:
    """Draw the legend of the variants, and of the digital model where its score is known."""
    styles = line_styles(comparison)
    handles: list[Artist] = [
        Line2D([], [], **style, markeredgecolor="white", label=label)
        for label, style in zip(comparison.labels, styles, strict=True)
    ]
    if comparison.adapters:
        handles.append(Line2D([], [], color=AXIS_COLOUR, label="digital model", **DASHED))
    # A pattern of dashes is only seen on a longer line.
    is_solid = all(style["linestyle"] == SOLID for style in styles)
    rows = draw_legend(figure, handles, 2.0 if is_solid else 4.0)
    # The panels keep their height.
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW_INCHES * (rows - 1))


def draw_drift(panel: Axes, comparison: Comparison, table: DeviceTable) -> Drawn:
    """Draw score against drift time, on the same scale for all devices of a metric.

    The ids are ``series0``, ``series1``, ... for the lines of `table.scores`, ``band0``, ... for
    their intervals and ``digital0``, ... for the digital scores of the adapters.
    """
    same = [other for other in comparison.tables if other[:2] == table[:2]]
    conditions = list(zip(map(format_time, table.times), log_positions(table.times), strict=True))
    drawn = draw_scores(panel, comparison, same, dict(enumerate(table.scores)), conditions)
    draw_time_axis(panel, table.times)
    return drawn


def draw_scores(
    panel: Axes,
    comparison: Comparison,
    tables: Sequence[DeviceTable],
    rows: Mapping[int, Sequence[Summary | None]],
    conditions: Sequence[tuple[str, float]],
) -> Drawn:
    """Draw the scores of variants at the position of each condition, and the digital scores.

    Several are joined by a line, with the band of their intervals; those at a single condition are
    drawn side by side. The vertical axis shows all scores of the tables.
    """
    metric, drawn = tables[0].metric, {}
    for place, cells in rows.items():
        style = line_styles(comparison)[place]
        side = 0.8 * ((place + 1) / (len(rows) + 1) - 0.5) if len(conditions) == 1 else 0.0
        positions = [position + side for _, position in conditions]
        x, mean, low, high = _points(cells, positions, metric)
        bands: dict[str, Artist]
        if len(conditions) > 1:
            (line,) = panel.plot(x, mean, **style, markeredgecolor="white", zorder=3)
            bands = {"": panel.fill_between(x, low, high, color=style["color"], alpha=0.18,
                                            linewidth=0, zorder=2)}  # fmt: skip
        else:
            bars = np.stack([mean - low, high - mean])
            line, caps, (interval,) = panel.errorbar(
                x, mean, bars, **(style | {"linestyle": "none"}), capsize=3
            )
            bands = {f"-{part}": artist for part, artist in enumerate((interval, *caps))}
        labels = [
            f"{comparison.labels[place]}, {condition}: {interval_text(cell, metric)}"
            f"{percent(metric)}, {_repetitions(cell)}"
            for (condition, _), cell in zip(conditions, cells, strict=True)
            if cell
        ]
        tokens = comparison.tokens(comparison.variants[place])
        line.set_gid(f"series{place}")
        drawn[f"series{place}"] = Series(labels, tokens)
        for part, band in bands.items():
            band.set_gid(f"band{place}{part}")
            drawn[f"band{place}{part}"] = Series(tokens=tokens)
    return drawn | _draw_digital(panel, comparison, tables)


def _points(cells: Sequence[Summary | None], positions: Sequence[float], metric: str) -> np.ndarray:
    """Return place, mean, low and high of the measured scores of a row, of shape (4, n)."""
    points = []
    for x, cell in zip(positions, cells, strict=True):
        if cell is not None:
            scores = (cell.mean, *drawn_interval(cell, metric))
            points.append([x, *(unit(metric) * score for score in scores)])
    return np.array(points).reshape(-1, 4).T


def drawn_interval(cell: Summary | Estimate, metric: str) -> tuple[float, float]:
    """Return the ends of an interval as drawn: at the mean without one, and in a fraction's range.

    A score of the user's that is called a fraction may be in per cent itself.
    """
    low, high = (cell.mean if end is None else end for end in (cell.low, cell.high))
    if not is_fraction(metric):
        return low, high
    least = -1.0 if any(name in metric.lower() for name in _CORRELATIONS) else 0.0
    return min(cell.mean, max(low, least)), max(cell.mean, min(high, 1.0))


def _repetitions(cell: Summary) -> str:
    chips = f"{cell.n} chip{'' if cell.n == 1 else 's'}"
    return chips if cell.trainings == 1 else f"{cell.trainings} trainings on {chips}"


def _draw_digital(
    panel: Axes, comparison: Comparison, tables: Sequence[DeviceTable]
) -> dict[str, Series]:
    metric, digital = tables[0].metric, comparison.digital(tables[0])
    styles = zip(comparison.variants, line_styles(comparison), strict=True)
    colours = {variant.adapter: style["color"] for variant, style in styles}
    drawn = {}
    for index, adapter in enumerate(comparison.names):
        if adapter in digital:
            panel.axhline(unit(metric) * digital[adapter], color=colours[adapter], zorder=1,
                          gid=f"digital{index}", **DASHED)  # fmt: skip
            own = [variant for variant in comparison.variants if variant.adapter == adapter]
            score = score_text(digital[adapter], metric) + percent(metric)
            label = f"{adapter}, digital model: {score}"
            drawn[f"digital{index}"] = Series([label], comparison.tokens(*own))
    panel.set_ylabel(metric_title(metric))
    cells = [cell for table in tables for row in table.scores for cell in row if cell]
    values = [v for cell in cells for v in (cell.mean, *drawn_interval(cell, metric))]
    values += digital.values()
    # An interval may reach below zero, or nearly so.
    lowest = min([*(cell.mean for cell in cells), *digital.values()])
    if metric in _LOGARITHMIC and max(values) > _WIDE * lowest:
        panel.set_yscale("log")
        # The formatters of the scale write formulas, which are shown as they are written.
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter("{x:g}")
        # None with more than three powers of ten, where the labels would overlap.
        panel.yaxis.set_minor_locator(LogLocator(subs=(2, 5), numticks=3))
        panel.set_ylim(max(min(values), lowest / 1.5) / 1.1, max(values) * 1.1)
        return drawn
    margin = 0.06 * (max(values) - min(values)) or 0.01
    panel.set_ylim(unit(metric) * (min(values) - margin), unit(metric) * (max(values) + margin))
    return drawn
