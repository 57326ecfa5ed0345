"""The page's interactive figures of a comparison: score against drift time and against noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analog_grasp.report.charts import Chart, draw_level, draw_line, new_plot, show_times
from analog_grasp.report.curves import (
    Look,
    adapter_colours,
    curve,
    time_positions,
    unit,
    variant_looks,
)
from analog_grasp.report.noise_levels import noise_level, noise_on
from analog_grasp.report.switches import Switches
from analog_grasp.report.tables import DeviceTable, ScoreRow, metric_title
from analog_grasp.study.records import AdapterRecord
from analog_grasp.study.statistics import Variant
from analog_grasp.utils.time import format_time

_CHANCE_COLOUR = "#808080"


def drift_charts(
    tables: Sequence[DeviceTable],
    measured: Sequence[Variant],
    adapters: Sequence[AdapterRecord],
    switches: Switches,
    chance: Mapping[tuple[str, str], float],
) -> list[Chart]:
    """Score against the time since programming, a figure a device.

    Args:
        tables: The comparison.
        measured: The variants, in the order of the tables' rows.
        adapters: Give the digital scores.
        switches: Those of the page.
        chance: Score of guessing by task and metric.
    """
    looks = variant_looks(measured)
    charts = []
    for table in tables:
        levels = _digital(table, adapters)
        guess = chance.get((table.task, table.metric))
        alike = [t for t in tables if (t.task, t.metric) == (table.task, table.metric)]
        seen = [*_scores(alike), *levels.values(), *([] if guess is None else [guess])]
        scale, title = unit(table.metric), metric_title(table.metric)
        plot = new_plot("time since programming", title, scale * min(seen), scale * max(seen))
        positions = time_positions(table.times)
        show_times(plot, table.times)
        for variant, row in zip(measured, table.scores, strict=True):
            times = [format_time(cell.time_s) for cell in row.cells if cell]
            _draw(plot, row, positions, table.metric, looks, switches.variant(variant), time=times)
        for adapter, colour in adapter_colours(looks).items():
            if adapter in levels:
                tokens = " ".join(
                    switches.variant(variant) for variant in measured if variant.adapter == adapter
                )
                draw_level(plot, scale * levels[adapter], colour, "dashed", tokens)
        if guess is not None:
            draw_level(plot, scale * guess, _CHANCE_COLOUR, "dotted")
        named = f"{table.device}, {table.task}"
        charts.append(
            Chart(
                named,
                f"{title} against the time since programming on {named}; the table of the same"
                " name holds the figures.",
                plot,
                switches.devices([table.device]),
            )
        )
    return charts


def noise_charts(
    tables: Sequence[DeviceTable],
    measured: Sequence[Variant],
    switches: Switches,
    weights: str = "analog",
) -> list[Chart]:
    """Score against noise level where there are several, a figure for each placement.

    The devices do not drift; the score is that of the first time. `weights` says where the frozen
    ones live, as the settings have it.
    """
    subjects: dict[tuple[str, str], dict[float, DeviceTable]] = {}
    for table in tables:
        level = noise_level(table.device)
        if level is not None:
            subjects.setdefault((table.task, table.metric), {})[level] = table
    placements = dict.fromkeys(variant.placement for variant in measured)
    return [
        _noise_chart(
            dict(sorted(known.items())), measured, placement, noise_on(placement, weights), switches
        )
        for known in subjects.values()
        for placement in placements
        if len(known) > 1
    ]


def _noise_chart(
    known: Mapping[float, DeviceTable],
    measured: Sequence[Variant],
    placement: str,
    noisy: str,
    switches: Switches,
) -> Chart:
    first, *_ = known.values()
    scale, title = unit(first.metric), metric_title(first.metric)
    seen = _scores(list(known.values()))
    label = "standard deviation (% of the largest value)"
    plot = new_plot(label, title, scale * min(seen), scale * max(seen))
    looks, levels = variant_looks(measured), [100 * level for level in known]
    for index, variant in enumerate(measured):
        if variant.placement == placement:
            rows = [table.scores[index] for table in known.values()]
            row = ScoreRow(rows[0].label, tuple(row.cells[0] for row in rows))
            _draw(plot, row, levels, first.metric, looks, switches.variant(variant))
    named = f"{first.task}, noise on the {noisy}"
    description = f"{title} against the standard deviation of the noise: {named}."
    return Chart(named, description, plot, switches.placement(placement))


def _draw(
    plot: Any,
    row: ScoreRow,
    positions: Sequence[float],
    metric: str,
    looks: Mapping[str, Look],
    tokens: str,
    **columns: Sequence[str],
) -> None:
    found = curve(row, positions, metric)
    if not len(found.x):
        return
    chips = [cell.n for cell in row.cells if cell]
    named = {name: f"@{name}" for name in columns} or {"noise": "@x{0.##} %"}
    places = "0.0" if unit(metric) > 1 else "0.000"
    draw_line(
        plot,
        {
            "x": found.x,
            "y": found.mean,
            "low": found.low,
            "high": found.high,
            "name": np.repeat(row.label, len(chips)).tolist(),
            "chips": chips,
            **columns,
        },
        colour=looks[row.label].colour,
        marker=looks[row.label].marker,
        tooltips=[
            ("adapter", "@name"),
            *named.items(),
            (metric, f"@y{{{places}}} (@low{{{places}}} to @high{{{places}}})"),
            ("chips", "@chips"),
        ],
        tokens=tokens,
    )


def _digital(table: DeviceTable, adapters: Sequence[AdapterRecord]) -> dict[str, float]:
    """The score of the digital model by adapter, where it is known."""
    return {
        record.adapter: record.digital[table.metric]
        for record in adapters
        if record.task == table.task and table.metric in record.digital
    }


def _scores(tables: Sequence[DeviceTable]) -> list[float]:
    """All that is to be seen of the tables: means, and the ends of their intervals."""
    cells = [cell for table in tables for row in table.scores for cell in row.cells if cell]
    ends = [end for cell in cells for end in (cell.low, cell.high) if end is not None]
    return [*(cell.mean for cell in cells), *ends]
