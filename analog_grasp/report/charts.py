"""The page's interactive figures, drawn by bokeh: what they share, and how they get into the page.

A figure of the page is a :class:`Chart`. Its colours for axes and text come from the page, which
is light or dark; those of its data are read on both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from bokeh.embed import json_item
from bokeh.models import ColumnDataSource, FixedTicker, HoverTool, NoOverlap, Range1d
from bokeh.plotting import figure
from bokeh.resources import Resources

from analog_grasp.report.curves import time_positions
from analog_grasp.report.switches import swatch
from analog_grasp.utils.time import format_time

# The markers of `MARKERS`, as bokeh calls them.
_SHAPES = {"o": "circle", "s": "square", "^": "triangle", "D": "diamond"}
_HEIGHT = 280
_FONT = "system-ui, sans-serif"
# Black is not seen on a dark page.
_ON_BOTH = {"#000000": "#808080"}


@dataclass(frozen=True)
class Chart:
    """An interactive figure.

    Attributes:
        title: What stands above it.
        description: What it shows, for those who do not see it.
        plot: The figure.
        tokens: Of what it shows; see `Switches`.
        legend: Label, colour and tokens of each line, where the switches do not tell them.
    """

    title: str
    description: str
    plot: figure
    tokens: str = ""
    legend: Sequence[tuple[str, str, str]] = ()


def shown_colour(colour: str) -> str:
    """The colour as it is seen on a light page and on a dark one."""
    return _ON_BOTH.get(colour, colour)


def new_plot(x_label: str, y_label: str, low: float, high: float) -> figure:
    """An empty figure as wide as the page lets it be.

    Args:
        x_label, y_label: What the axes show.
        low, high: The lowest and the highest value to be seen.
    """
    margin = 0.06 * (high - low) or 1.0
    plot: figure = figure(
        height=_HEIGHT,
        sizing_mode="stretch_width",
        tools="box_zoom,pan,reset,save",
        toolbar_location="right",
        # A finger that moves over it scrolls the page.
        active_drag=None,
        x_axis_label=x_label,
        y_axis_label=y_label,
        y_range=Range1d(start=low - margin, end=high + margin),
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
    )
    plot.toolbar.logo = None
    plot.toolbar.autohide = True
    plot.toolbar.styles = {"background-color": "transparent"}
    plot.xgrid.grid_line_color = None
    for axis in plot.axis:
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_font = axis.major_label_text_font = _FONT
        axis.axis_label_text_font_size = axis.major_label_text_font_size = "12px"
        axis.minor_tick_line_color = None
    return plot


def show_times(plot: figure, times: Sequence[float]) -> None:
    """Make the lower axis one of time: logarithmic, with 0 s to the left, where it has a place.

    Args:
        plot: What is drawn at `time_positions` of the times.
        times: Seconds, ascending.
    """
    positions = time_positions(times)
    margin = 0.06 * (positions[-1] - positions[0]) or 0.5
    plot.x_range = Range1d(start=positions[0] - margin, end=positions[-1] + margin)
    axis = plot.xaxis[0]
    axis.ticker = FixedTicker(ticks=positions)
    axis.major_label_overrides = dict(zip(positions, map(format_time, times), strict=True))
    axis.major_label_policy = NoOverlap()


def draw_line(
    plot: figure,
    columns: Mapping[str, Any],
    *,
    colour: str,
    marker: str,
    tooltips: Sequence[tuple[str, str]],
    tokens: str = "",
) -> None:
    """Draw points with a line through them and the band of their intervals.

    Args:
        plot: The figure.
        columns: ``x`` and ``y``; ``low`` and ``high`` where there is a band; and those that the
            tooltips name.
        colour: Of all three.
        marker: One of `MARKERS`.
        tooltips: Label and column, as bokeh writes it: ``("accuracy", "@y{0.0}")``.
        tokens: See `Switches`.
    """
    colour = shown_colour(colour)
    drawn: dict[str, Any] = {"source": ColumnDataSource(dict(columns))}
    parts: list[Any] = [plot.line("x", "y", line_color=colour, line_width=2, **drawn)]
    if "low" in columns:
        # Below every line, of whichever adapter.
        drawn["level"] = "underlay"
        parts += [
            plot.varea("x", "low", "high", fill_color=colour, fill_alpha=0.18, **drawn),
            plot.segment("x", "low", "x", "high", line_color=colour, line_alpha=0.5, **drawn),
        ]
    for part in parts:
        part.tags = tokens.split()
    draw_points(plot, columns, colour=colour, marker=marker, tooltips=tooltips, tokens=tokens)


def draw_points(
    plot: figure,
    columns: Mapping[str, Any],
    *,
    colour: str,
    marker: str,
    tooltips: Sequence[tuple[str, str]],
    tokens: str = "",
) -> None:
    """Draw points that tell about themselves; the arguments are those of `draw_line`."""
    points = plot.scatter(
        "x",
        "y",
        source=ColumnDataSource(dict(columns)),
        marker=_SHAPES[marker],
        size=8,
        color=shown_colour(colour),
    )
    points.tags = tokens.split()
    plot.add_tools(HoverTool(renderers=[points], tooltips=list(tooltips), visible=False))


def draw_level(plot: figure, value: float, colour: str, dash: str, tokens: str = "") -> None:
    """Draw a level line across the figure."""
    line = plot.hspan(y=[value], line_color=shown_colour(colour), line_dash=dash, line_width=1.3)
    line.tags = tokens.split()


def charts_html(charts: Sequence[Chart]) -> str:
    """The places of charts in the page, which `charts_script` fills in their order."""
    return f'<div class="charts">{"".join(map(_place, charts))}</div>'


def charts_script(charts: Sequence[Chart]) -> str:
    """Bokeh itself and the charts as data, for the page's own script to bring together."""
    # So that no name in it can end the element.
    data = json.dumps([_item(chart.plot) for chart in charts]).replace("<", "\\u003c")
    library = Resources(mode="inline", components=["bokeh"], log_level="error").js_raw
    scripts = "".join(f"<script>{script}</script>\n" for script in library)
    return f'{scripts}<script type="application/json" id="charts">{data}</script>'


def _place(chart: Chart) -> str:
    legend = "".join(
        f'<li data-of="{tokens}">{swatch("o", shown_colour(colour))}{escape(label)}</li>'
        for label, colour, tokens in chart.legend
    )
    return (
        f'<figure data-of="{chart.tokens}"><figcaption>{escape(chart.title)}</figcaption>'
        f'<div class="chart" role="img" aria-label="{escape(chart.description)}"></div>'
        f"{f'<ul>{legend}</ul>' if legend else ''}</figure>"
    )


def _item(plot: figure) -> Any:
    """The figure as data, its parts numbered from one: bokeh counts on from figure to figure."""
    numbers: dict[str, str] = {}

    def numbered(part: Any) -> Any:
        if isinstance(part, list):
            return [numbered(item) for item in part]
        if not isinstance(part, dict):
            return part
        # A dict of the plot's data is a "map" here, so that "id" is that of a part of it.
        return {
            key: numbers.setdefault(value, f"p{len(numbers) + 1}")
            if key in ("id", "root_id")
            else numbered(value)
            for key, value in part.items()
        }

    return numbered(json_item(plot))
