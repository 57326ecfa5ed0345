"""The figure of score against noise level: Gaussian noise of several spreads, as papers sweep it.

Noise on the frozen weights and noise on the adapter have panels of their own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analog_grasp.devices.card import DeviceCard
from analog_grasp.report.curves import Look, adapter_colours, curve, unit, variant_looks
from analog_grasp.report.drawing import write_figure
from analog_grasp.report.tables import (
    DeviceTable,
    ScoreRow,
    comparison_tables,
    metric_title,
    ordered_variants,
)
from analog_grasp.study.records import AdapterRecord, Measurement

WEIGHTS, ADAPTER, BOTH = "frozen weights", "adapter", "frozen weights and adapter"
_PANEL_INCHES = (3.4, 2.6)
_DIGITAL_LINE = (0, (5, 2.5))


def noise_level(device: str) -> float | None:
    """The spread of a Gaussian device, relative to the largest weight; None for another device.

    Example:
        >>> noise_level("gaussian:0.02"), noise_level("gaussian"), noise_level("pcm-hermes-2")
        (0.02, 0.05, None)
    """
    if not re.fullmatch(r"gaussian(:.+)?", device):
        return None
    card = DeviceCard.load(device)
    assert card.programming is not None
    spread = card.programming.constant(card.conductance.g_max)
    assert spread is not None
    return spread / card.conductance.g_max


def noise_on(placement: str, weights: str = "analog") -> str:
    """What is noisy where the adapter and the frozen weights live as they do.

    Example:
        >>> noise_on("digital"), noise_on("programmed"), noise_on("programmed", "digital")
        ('frozen weights', 'frozen weights and adapter', 'adapter')
    """
    if weights == "digital":
        return ADAPTER
    return {"programmed": BOTH, "folded": "weights with the adapter folded in"}.get(
        placement, WEIGHTS
    )


def accuracy_vs_noise(
    measurements: Sequence[Measurement],
    path_stem: Path | str,
    *,
    adapters: Sequence[AdapterRecord] = (),
    weights: str = "analog",
) -> list[Path]:
    """Draw score against noise level where a run has two levels or more.

    A panel for each task, metric and placement, whose title tells what the noise is on. Each
    adapter is a line with the band of its 95 % interval over chip instances; a dashed line of its
    colour is the score of its digital model. The time is the earliest: this noise does not change.

    Args:
        measurements: those of a whole or a partial run.
        path_stem: the path without its suffix.
        adapters: give the order of the lines and the digital scores.
        weights: where the frozen weights live, as the settings have it.

    Returns:
        The paths of the PNG, of the SVG and of the PDF; none with fewer than two levels.

    Raises:
        OSError: a file cannot be written.

    Example:
        >>> accuracy_vs_noise([], "accuracy_vs_noise")
        []
    """
    levels = {d: noise_level(d) for d in dict.fromkeys(cell.device for cell in measurements)}
    noisy = [cell for cell in measurements if levels[cell.device] is not None]
    known = {device: level for device, level in levels.items() if level is not None}
    if len(set(known.values())) < 2:
        return []
    return write_figure(partial(_draw, noisy, known, adapters, weights), path_stem)


def _draw(
    measurements: Sequence[Measurement],
    levels: dict[str, float],
    adapters: Sequence[AdapterRecord],
    weights: str,
) -> Figure:
    panels: dict[tuple[str, str, str], list[Measurement]] = {}
    for cell in measurements:
        panels.setdefault((cell.task, cell.metric, cell.placement), []).append(cell)
    width, height = _PANEL_INCHES
    figure = Figure(
        figsize=(max(width * len(panels) + 0.4, 4.4), height + 0.7), layout="constrained"
    )
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    # An adapter keeps its colour and its marker in every panel.
    looks = {
        look.adapter: look
        for look in variant_looks(ordered_variants(measurements, adapters)).values()
    }
    for panel, ((task, metric, placement), cells) in zip(row, panels.items(), strict=True):
        _draw_panel(panel, comparison_tables(cells, adapters), levels, looks)
        _draw_digital(panel, task, metric, adapters, looks)
        panel.set_title(f"noise on the {noise_on(placement, weights)}")
        panel.set_ylabel(f"{task}: {metric_title(metric)}")
        panel.set_xlabel("standard deviation, % of the largest value")
    handles = [
        Line2D([], [], color=look.colour, marker=look.marker, markeredgecolor="white", label=name)
        for name, look in looks.items()
    ]
    if adapters:
        handles.append(Line2D([], [], color="#444444", linestyle=_DIGITAL_LINE, lw=1.1,
                              label="digital model"))  # fmt: skip
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


def _draw_panel(
    panel: Axes,
    tables: Sequence[DeviceTable],
    levels: dict[str, float],
    looks: dict[str, Look],
) -> None:
    ascending = sorted(tables, key=lambda table: levels[table.device])
    positions = [100 * levels[table.device] for table in ascending]
    by_label: dict[str, list[ScoreRow]] = {}
    for table in ascending:
        for row in table.scores:
            by_label.setdefault(row.label, []).append(row)
    for adapter, rows in by_label.items():
        line = ScoreRow(adapter, tuple(row.cells[0] for row in rows))
        x, mean, low, high = curve(line, positions, tables[0].metric)
        look = looks[adapter]
        panel.plot(
            x, mean, color=look.colour, marker=look.marker, markeredgecolor="white", zorder=3
        )
        panel.fill_between(x, low, high, color=look.colour, alpha=0.18, linewidth=0, zorder=2)
    panel.set_xticks(positions, [f"{position:g}" for position in positions])


def _draw_digital(
    panel: Axes,
    task: str,
    metric: str,
    adapters: Sequence[AdapterRecord],
    looks: dict[str, Look],
) -> None:
    colours = adapter_colours({look.adapter: look for look in looks.values()})
    for record in adapters:
        score = record.digital.get(metric)
        if record.task == task and record.adapter in colours and score is not None:
            panel.axhline(unit(metric) * score, color=colours[record.adapter], lw=1.1,
                          linestyle=_DIGITAL_LINE, zorder=1)  # fmt: skip
