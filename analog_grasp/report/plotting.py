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

from analog_grasp.report.tables import variant_labels
from analog_grasp.study.statistics import Variant, is_fraction
from analog_grasp.utils.io import write_atomically
from analog_grasp.utils.time import format_time

STYLE = Path(__file__).with_name("analog_grasp.mplstyle")
# Okabe and Ito's palette, which readers with any common colour vision can distinguish.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# One per placement: an adapter has the same colour at every placement.
MARKERS = ("o", "s", "^", "D")
AXIS_COLOUR = "#444444"
PAGE_INCHES = (4.6, 2.7)
"""Width and height of a figure of the page."""
DASHED: dict[str, Any] = {"linestyle": (0, (5, 2.5)), "linewidth": 1.1}
# File formats, with the metadata that would differ from one run to the next.
_FORMATS: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}


class Style(NamedTuple):
    """Colour and marker of a variant's line; the marker is one of `MARKERS`."""

    adapter: str
    colour: str
    marker: str


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
        OSError: A file cannot be written; an older one is then left unchanged.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [path.name for path in write_figure(Figure, Path(folder) / "empty")]
        ['empty.png', 'empty.svg', 'empty.pdf']
    """
    with figure_style():
        figure = draw()
        paths = [Path(f"{path_stem}.{kind}") for kind in _FORMATS]
        for path, (kind, metadata) in zip(paths, _FORMATS.items(), strict=True):
            content = io.BytesIO()
            figure.savefig(content, format=kind, metadata=metadata)
            write_atomically(path, content.getvalue())
    return paths


def svg_text(draw: Callable[[], Figure]) -> str:
    """Return a figure as SVG on a transparent background, with its text as text elements."""
    content = io.StringIO()
    with figure_style():
        rcParams["svg.fonttype"] = "none"
        draw().savefig(content, format="svg", metadata={"Date": None}, transparent=True)
    return content.getvalue()


def unit(metric: str) -> float:
    """Return the factor from a score to the value drawn: 100 for a fraction."""
    return 100.0 if is_fraction(metric) else 1.0


def variant_styles(measured: Sequence[Variant]) -> dict[str, Style]:
    """Return the style of every line by its label.

    Example:
        >>> variant_styles([Variant("grasp", "digital")])["grasp"].colour
        '#0072B2'
    """
    names = list(dict.fromkeys(variant.adapter for variant in measured))
    placements = list(dict.fromkeys(variant.placement for variant in measured))
    return {
        label: Style(
            variant.adapter,
            PALETTE[names.index(variant.adapter) % len(PALETTE)],
            MARKERS[placements.index(variant.placement) % len(MARKERS)],
        )
        for variant, label in variant_labels(measured).items()
    }


def adapter_colours(styles: Mapping[str, Style]) -> dict[str, str]:
    """Return the colour of every adapter, whatever its placement."""
    return {style.adapter: style.colour for style in styles.values()}


def time_positions(times: Sequence[float]) -> list[float]:
    """Return log10 of each time in seconds, and a place left of the first for 0 s.

    Args:
        times: Seconds, ascending.

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
    """Draw a break in the horizontal axis: two strokes with a gap between them.

    Args:
        panel: Axes to draw on.
        middle, half: Middle and half width of the gap, in the units of the axis.
    """
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
