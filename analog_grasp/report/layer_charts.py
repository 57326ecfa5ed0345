"""The page's interactive figures of the chips: weight error against time, and use of the tiles."""

from __future__ import annotations

from collections.abc import Sequence

from bokeh.models import ColumnDataSource, HoverTool, Range1d

from analog_grasp.report.charts import Chart, draw_line, new_plot, show_times
from analog_grasp.report.chips import ChipSummary
from analog_grasp.report.curves import MARKERS, PALETTE, time_positions
from analog_grasp.report.switches import Switches
from analog_grasp.utils.time import format_time

_USE_COLOUR = "#56B4E9"


def layer_charts(chips: Sequence[ChipSummary], switches: Switches) -> list[Chart]:
    """Weight error against time, and the use of the tiles, once for devices whose tiles are alike.

    Args:
        chips: One a device.
        switches: Those of the page.
    """
    alike: dict[tuple[tuple[str, int, float], ...], list[ChipSummary]] = {}
    for chip in chips:
        use = tuple((layer.layer, layer.tiles, layer.use) for layer in chip.layers)
        alike.setdefault(use, []).append(chip)
    return [_error_chart(chips, switches), *(_use_chart(same, switches) for same in alike.values())]


def _error_chart(chips: Sequence[ChipSummary], switches: Switches) -> Chart:
    times = sorted({seconds for chip in chips for seconds in chip.errors})
    places = dict(zip(times, time_positions(times), strict=True))
    most = 100 * max(error for chip in chips for error in chip.errors.values())
    plot = new_plot("time since programming", "weight error (%)", 0, most)
    plot.y_range = Range1d(start=0, end=1.06 * most)
    show_times(plot, times)
    legend = []
    for index, chip in enumerate(chips):
        colour, tokens = PALETTE[index % len(PALETTE)], switches.devices([chip.device])
        legend.append((chip.device, colour, tokens))
        draw_line(
            plot,
            {
                "x": [places[seconds] for seconds in chip.errors],
                "y": [100 * error for error in chip.errors.values()],
                "device": [chip.device] * len(chip.errors),
                "time": [format_time(seconds) for seconds in chip.errors],
            },
            colour=colour,
            marker=MARKERS[0],
            tooltips=[("device", "@device"), ("time", "@time"), ("weight error", "@y{0.00} %")],
            tokens=tokens,
        )
    description = "Weight error against the time since programming, a line a device."
    devices = switches.devices(chip.device for chip in chips)
    return Chart("Weight error", description, plot, devices, legend)


def _use_chart(same: Sequence[ChipSummary], switches: Switches) -> Chart:
    """Of devices with the same tiles, each layer's use."""
    first, names = same[0], [chip.device for chip in same]
    plot = new_plot("layer", "cross-points in use (%)", 0, 100)
    plot.y_range = Range1d(start=0, end=100)
    columns = {
        "x": [place + 1 for place in range(len(first.layers))],
        "use": [100 * layer.use for layer in first.layers],
        "name": [layer.layer for layer in first.layers],
        "tiles": [layer.tiles for layer in first.layers],
        "cells": [layer.cells for layer in first.layers],
    }
    bars = plot.vbar(
        "x", 0.7, "use", source=ColumnDataSource(columns), fill_color=_USE_COLOUR, line_color=None
    )
    tooltips = [
        ("layer", "@name"), ("tiles", "@tiles"), ("weights", "@cells{0,0}"), ("use", "@use{0.0} %")
    ]  # fmt: skip
    plot.add_tools(HoverTool(renderers=[bars], tooltips=tooltips, visible=False))
    title = (
        f"Tile use on {', '.join(names)}: {first.cells:,} weights on {first.tiles:,} tiles,"
        f" {first.use:.0%} in use"
    )
    description = "The share of each layer's tiles that holds weights."
    return Chart(title, description, plot, switches.devices(names))
