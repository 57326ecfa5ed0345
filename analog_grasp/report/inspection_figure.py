"""The figure of what adapters have learned: a density a layer, one above the other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analog_grasp.report.curves import PALETTE
from analog_grasp.report.drawing import write_figure
from analog_grasp.report.modality import Values

if TYPE_CHECKING:
    from analog_grasp.report.inspection import LayerModes

_PANEL_INCHES = (2.9, 3.3)
_COLOURS = {"one": PALETTE[0], "several": PALETTE[1]}
# How far a density rises into the layers above it, in layers.
_RISE = 1.8
# How far all layers together stand above the last one, in layers.
_APART = 2
# Equal numbers have a density too: the least bandwidth, as a share of the panel's width.
_LEAST_BANDWIDTH = 1 / 150
_POINTS = 400


def draw(found: Sequence[LayerModes], path_stem: Path) -> list[Path]:
    """Draw the density of every layer, a column an adapter and a row a parameter.

    Args:
        found: As `inspected` returns it.
        path_stem: The path without its suffix.

    Returns:
        The paths of the PNG, of the SVG and of the PDF.

    Raises:
        OSError: A file cannot be written.
    """
    return write_figure(partial(_draw, found), path_stem)


def _draw(found: Sequence[LayerModes]) -> Figure:
    panels: dict[str, dict[str, list[LayerModes]]] = {}
    for modes in found:
        panels.setdefault(modes.parameter, {}).setdefault(modes.adapter, []).append(modes)
    adapters = list(dict.fromkeys(modes.adapter for modes in found))
    width, height = _PANEL_INCHES
    figure = Figure(
        figsize=(width * len(adapters) + 0.8, height * len(panels) + 0.6), layout="constrained"
    )
    # Adapters without sigmas leave a place empty.
    grid = figure.subplots(len(panels), len(adapters), sharex="row", squeeze=False)
    for row, (parameter, columns) in zip(grid, panels.items(), strict=True):
        for panel, adapter in zip(row, adapters, strict=True):
            if adapter not in columns:
                panel.set_axis_off()
                continue
            every = np.concatenate([modes.values for own in columns.values() for modes in own])
            _draw_layers(panel, columns[adapter], float(every.min()), float(every.max()))
            panel.set_xlabel(parameter)
            panel.set_title(adapter)
        row[0].set_ylabel("layer")
    handles = [
        Line2D([], [], color=colour, label=label)
        for label, colour in (
            ("one mode not rejected", _COLOURS["one"]),
            ("several modes", _COLOURS["several"]),
        )
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


def _draw_layers(panel: Axes, rows: Sequence[LayerModes], low: float, high: float) -> None:
    """The first layer at the bottom, and all layers together set off above the last."""
    margin = 0.06 * (high - low) or 0.5
    x = np.linspace(low - margin, high + margin, _POINTS)
    for place, modes in enumerate(rows):
        base = place + _APART * (place + 1 == len(rows))
        density = _density(modes.values, x)
        top = base + _RISE * density / density.max()
        colour = _COLOURS[modes.modes]
        panel.fill_between(x, base, top, color="white", linewidth=0, zorder=-place)
        panel.fill_between(x, base, top, color=colour, alpha=0.35, linewidth=0, zorder=-place)
        panel.plot(x, top, color=colour, linewidth=0.9, zorder=-place)
    count = len(rows) - 1
    ticks = list(range(0, count, max(1, count // 6)))
    panel.set_yticks([*ticks, count + _APART], [*(str(tick + 1) for tick in ticks), "all"])
    panel.grid(visible=False)
    panel.set_xlim(x[0], x[-1])
    # A spread around 0.1 has long labels, which run into each other where there are many.
    panel.locator_params(axis="x", nbins=5)


def _density(values: Values, x: Values) -> Values:
    """A sum of Gaussians of Silverman's bandwidth at the points `x`."""
    spread = min(values.std(), np.subtract(*np.percentile(values, [75, 25])) / 1.34)
    bandwidth = max(0.9 * spread * len(values) ** -0.2, _LEAST_BANDWIDTH * np.ptp(x))
    return np.exp(-0.5 * ((x - values[:, None]) / bandwidth) ** 2).sum(axis=0)
