"""Plotting by matplotlib: style, file formats, axes and legends.

A time axis is logarithmic; 0 s is drawn on its left, beyond a break in the axis.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import rc_context, rc_file, rcdefaults, rcParams
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analog_grasp.report.comparison import Comparison
from analog_grasp.utils.io import write_atomically
from analog_grasp.utils.time import format_time

STYLE = Path(__file__).with_name("analog_grasp.mplstyle")
# Okabe and Ito's palette, which readers with any common colour vision can distinguish.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# One per placement: an adapter has the same colour at every placement.
MARKERS = ("o", "s", "^", "D")
AXIS_COLOUR = "#444444"
DASHED: dict[str, Any] = {"linestyle": (0, (5, 2.5)), "linewidth": 1.1}
# File formats, with the metadata that would differ from one run to the next.
_FORMATS: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}


class Series(NamedTuple):
    """Labels and tokens of a series that is drawn, for the page.

    Attributes:
        labels: One for each of its points, or one for the whole series.
        tokens: From `Comparison.tokens`; it is hidden where all of one kind are switched off.
    """

    labels: Sequence[str] = ()
    tokens: str = ""


type Drawn = Mapping[str, Series]
"""The series that a function has drawn, by their element id (`gid`)."""


@contextmanager
def figure_style() -> Iterator[None]:
    """Draw in the project's style, whatever the user's own matplotlib settings are."""
    with rc_context():
        rcdefaults()
        rc_file(STYLE)
        yield


def write_figure(draw: Callable[[], Figure], path_stem: Path | str) -> list[Path]:
    """Draw a figure and write it as PNG, SVG and PDF; the same figure gives the same bytes.

    Args:
        draw: Returns the figure.
        path_stem: The path without its suffix; a dot in it is part of the name.

    Returns:
        The paths of the PNG, the SVG and the PDF.

    Raises:
        OSError: A file cannot be written; an older one is then unchanged.
    """
    paths = []
    with figure_style():
        figure = draw()
        for kind, metadata in _FORMATS.items():
            content = io.BytesIO()
            figure.savefig(content, format=kind, metadata=metadata)
            paths.append(Path(f"{path_stem}.{kind}"))
            write_atomically(paths[-1], content.getvalue())
    return paths


def svg_text(figure_size: tuple[float, float], draw: Callable[[Axes], Drawn]) -> tuple[str, Drawn]:
    """Draw a figure of one panel, and return it as SVG together with what is drawn.

    Its background is transparent, and its text remains text.
    """
    content = io.StringIO()
    with figure_style():
        rcParams["svg.fonttype"] = "none"
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


def line_styles(comparison: Comparison) -> list[dict[str, Any]]:
    """Return colour and marker of each variant's line, as arguments of `Axes.plot`."""
    return [
        {
            "color": colour_of(comparison.names.index(variant.adapter)),
            "marker": marker_of(comparison.placements.index(variant.placement)),
        }
        for variant in comparison.variants
    ]


def time_positions(times: Sequence[float]) -> list[float]:
    """Return log10 of each time in seconds, ascending, and a place left of the first for 0 s.

    Example:
        >>> time_positions([0.0, 10.0, 1000.0])
        [0.4, 1.0, 3.0]
    """
    logarithms = [math.log10(time) for time in times if time > 0]
    if not logarithms:
        return [0.0 for _ in times]
    gap = max(0.6, 0.14 * (logarithms[-1] - logarithms[0]))
    return [math.log10(time) if time > 0 else logarithms[0] - gap for time in times]


def draw_time_axis(panel: Axes, times: Sequence[float]) -> None:
    """Draw the ticks of the times, and a break after 0 s."""
    positions = time_positions(times)
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


def draw_legend(figure: Figure, handles: list[Artist]) -> None:
    """Draw a legend above the panels, in as many columns as fit."""
    inches = [0.65 + 0.072 * len(str(handle.get_label())) for handle in handles]
    width = figure.get_figwidth()
    columns = len(handles) if sum(inches) <= width else max(1, int(width / max(inches)))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns)
