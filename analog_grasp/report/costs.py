"""Costs in a report: energy by part, score against energy, and a table.

The rows are those of costs.csv, per sequence; see `analog_grasp.study.runner`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analog_grasp.costs.table import NOT_STATED, CostRow, costs_csv, quantity
from analog_grasp.report.html import Chart, PageTable, Section, Series, page_svg, swatch
from analog_grasp.report.plotting import (
    MARKERS,
    PALETTE,
    draw_legend,
    unit,
    variant_styles,
    write_figure,
)
from analog_grasp.report.tables import (
    Entry,
    TextRow,
    TextTable,
    comparison_tables,
    metric_title,
    ordered_variants,
    score_text,
)
from analog_grasp.study.records import AdapterRecord, Measurement
from analog_grasp.study.statistics import Variant
from analog_grasp.utils.io import write_atomically
from analog_grasp.utils.time import format_time
from analog_grasp.utils.types import LOWER_IS_BETTER

_ENERGY, _TOTAL = "energy, ", "energy, all parts"
_MICROJOULE = 1e6
_BAR_INCHES = 0.32
CAPTION = (
    "Energy of one sequence from published figures of the hardware, not measured here; the table"
    " has its range and what is not stated. A bar marked * lacks parts that are not stated. Dashed"
    " line: the Pareto front, scores that no point with less energy reaches."
)


class _Tokens(Protocol):
    """The tokens of a page's switches."""

    def variant(self, variant: Variant) -> str: ...
    def devices(self, names: Sequence[str]) -> str: ...


@dataclass(frozen=True)
class Bar:
    """The energy of one adapter on one hardware.

    Attributes:
        adapter: The adapter's name.
        cost_model: The cost model's name.
        devices: The devices that it describes.
        parts: Energy by part, J; None for what is not stated.
        others: Energy of the same work on digital hardware, J.
    """

    adapter: str
    cost_model: str
    devices: tuple[str, ...]
    parts: Mapping[str, float | None]
    others: Mapping[str, float]

    @property
    def label(self) -> str:
        """The label of the bar; * marks that parts are not stated."""
        mark = "" if all(part is not None for part in self.parts.values()) else " *"
        return f"{self.adapter}, {self.cost_model}{mark}"

    @property
    def energy(self) -> float:
        """The energy of the parts that are stated, J."""
        return sum(part for part in self.parts.values() if part is not None)


class Point(NamedTuple):
    """The score of a variant on a device at the last drift time, and its energy."""

    variant: Variant
    label: str
    device: str
    time_s: float
    energy: float
    score: float


def bars(rows: Sequence[CostRow]) -> list[Bar]:
    """Return the energies of every adapter and hardware.

    Example:
        >>> row = CostRow("grasp", "pcm", "hermes", "energy, tile reads", "J", 1e-6, 2e-6, 3e-6)
        >>> bars([row, row._replace(quantity="energy, all parts")])[0].energy
        2e-06
    """
    found: dict[tuple[str, str], dict[str, list[CostRow]]] = {}
    for row in rows:
        own = found.setdefault((row.adapter, row.cost_model), {})
        own.setdefault(row.device, []).append(row)
    return [_bar(*key, by_device) for key, by_device in found.items()]


def _bar(adapter: str, cost_model: str, by_device: Mapping[str, Sequence[CostRow]]) -> Bar:
    rows = next(iter(by_device.values()))
    energies = [row for row in rows if row.quantity.startswith(_ENERGY)]
    total = next(i for i, row in enumerate(energies) if row.quantity == _TOTAL)
    parts = {row.quantity.removeprefix(_ENERGY): row.value for row in energies[:total]}
    others = {
        row.quantity.removeprefix(_ENERGY): row.value
        for row in energies[total + 1 :]
        if row.value is not None
    }
    return Bar(adapter, cost_model, tuple(by_device), parts, others)


def points(
    rows: Sequence[CostRow], measurements: Sequence[Measurement], adapters: Sequence[AdapterRecord]
) -> list[Point]:
    """Return score and energy of every variant and device, for the primary metric."""
    energy = {(bar.adapter, device): bar.energy for bar in bars(rows) for device in bar.devices}
    measured = ordered_variants(measurements, adapters)
    tables = comparison_tables(measurements, adapters)
    first = [t for t in tables if (t.task, t.metric) == (tables[0].task, tables[0].metric)]
    return [
        Point(variant, row.label, table.device, cell.time_s, joules, cell.mean)
        for table in first
        for variant, row in zip(measured, table.scores, strict=True)
        if (cell := next((c for c in reversed(row.summaries) if c), None)) is not None
        # A recalibrated adapter costs what the adapter costs.
        and (joules := energy.get((variant.adapter.partition("+")[0], table.device))) is not None
    ]


def front(found: Sequence[Point], metric: str) -> list[Point]:
    """Return the points that no point with less energy reaches, by ascending energy.

    Example:
        >>> low, high = (Point(Variant("a", "digital"), "a", "pcm", 0.0, e, 0.5) for e in (1, 2))
        >>> [point.energy for point in front([high, low], "accuracy")]
        [1]
    """
    sign = -1 if metric in LOWER_IS_BETTER else 1
    best: list[Point] = []
    for point in sorted(found, key=lambda p: (p.energy, -sign * p.score)):
        if not best or sign * point.score > sign * best[-1].score:
            best.append(point)
    return best


def draw_energy(panel: Axes, found: Sequence[Bar], prefix: str = "") -> None:
    """Draw stacked bars of the energy by part, and bars of digital hardware below them.

    The ids are ``part0-0``, ... for part j of bar i, and ``other0``, ....
    """
    names = _drawn(found)
    labels = [bar.label for bar in found]
    for place, bar in enumerate(found):
        left = 0.0
        for index, name in enumerate(names):
            width = _MICROJOULE * (bar.parts.get(name) or 0.0)
            if width:
                (drawn,) = panel.barh(place, width, 0.7, left=left, color=_colour(index))
                drawn.set_gid(f"{prefix}part{place}-{index}")
                left += width
    for index, (name, joules) in enumerate(found[0].others.items()):
        (drawn,) = panel.barh(len(labels), _MICROJOULE * joules, 0.7, color="#9a9a9a")
        drawn.set_gid(f"{prefix}other{index}")
        labels.append(name)
    panel.set_yticks(range(len(labels)), labels)
    panel.invert_yaxis()
    panel.grid(visible=False, axis="y")
    panel.grid(visible=True, axis="x")
    panel.set_xlabel("energy per sequence (µJ)")


def draw_front(panel: Axes, found: Sequence[Point], metric: str, prefix: str = "") -> None:
    """Draw score against energy and the Pareto front; the ids are ``point0``, ...."""
    colours = variant_styles(list(dict.fromkeys(point.variant for point in found)))
    devices = list(dict.fromkeys(point.device for point in found))
    for index, point in enumerate(found):
        panel.plot(
            [_MICROJOULE * point.energy], [unit(metric) * point.score],
            color=colours[point.label].colour, markeredgecolor="white", linestyle="none",
            marker=MARKERS[devices.index(point.device) % len(MARKERS)], markersize=6, zorder=3,
            gid=f"{prefix}point{index}",
        )  # fmt: skip
    best = front(found, metric)
    panel.step(
        [_MICROJOULE * point.energy for point in best],
        [unit(metric) * point.score for point in best],
        where="post", color="#9a9a9a", linestyle="--", linewidth=1.0, zorder=1,
    )  # fmt: skip
    panel.set_xlabel("energy per sequence (µJ)")
    panel.set_ylabel(f"{metric_title(metric)} at {format_time(found[0].time_s)}")


def write_costs(
    rows: Sequence[CostRow],
    measurements: Sequence[Measurement],
    adapters: Sequence[AdapterRecord],
    directory: Path,
) -> list[Path]:
    """Write costs.csv, energy_by_part and accuracy_vs_energy, both as PNG, SVG and PDF.

    Returns:
        The paths; none without rows.

    Raises:
        OSError: A file cannot be written.
    """
    if not rows:
        return []
    found, scored = bars(rows), points(rows, measurements, adapters)
    metric = comparison_tables(measurements, adapters)[0].metric
    table = directory / "costs.csv"
    write_atomically(table, costs_csv(rows).encode())
    paths = [table, *write_figure(lambda: _energy_figure(found), directory / "energy_by_part")]
    if scored:
        stem = directory / "accuracy_vs_energy"
        paths += write_figure(lambda: _front_figure(scored, metric), stem)
    return paths


def cost_text(rows: Sequence[CostRow]) -> TextTable:
    """Return every quantity per sequence, one column per adapter and hardware."""
    columns: dict[tuple[str, str], dict[str, CostRow]] = {}
    for row in rows:
        columns.setdefault((row.adapter, row.cost_model), {}).setdefault(row.quantity, row)
    names = list(dict.fromkeys(row.quantity for row in rows))
    return TextTable(
        "Energy, latency and programming per sequence",
        ("", *(f"{adapter}, {model}" for adapter, model in columns)),
        tuple(
            TextRow(name, tuple(Entry(_value(column.get(name))) for column in columns.values()))
            for name in names
        ),
    )


def cost_section(
    rows: Sequence[CostRow],
    measurements: Sequence[Measurement],
    adapters: Sequence[AdapterRecord],
    switches: _Tokens,
) -> Section:
    """Return the section of the page; without content if there are no rows."""
    if not rows:
        return Section("")
    found, scored = bars(rows), points(rows, measurements, adapters)
    metric = comparison_tables(measurements, adapters)[0].metric
    svg = page_svg(partial(draw_energy, found=found), "energy-", _bar_series(found))
    description = "Energy of one sequence by part, and on digital accelerators."
    legend = [(name, swatch("s", _colour(i)), "") for i, name in enumerate(_drawn(found))]
    charts = [Chart("Energy by part", description, svg, legend=legend)]
    if scored:
        series = {
            f"point{index}": Series(
                f"{switches.variant(point.variant)} {switches.devices([point.device])}",
                [
                    f"{point.label}, {point.device}: {score_text(point.score, metric)},"
                    f" {quantity(point.energy, 'J')}"
                ],
            )
            for index, point in enumerate(scored)
        }
        svg = page_svg(partial(draw_front, found=scored, metric=metric), "front-", series)
        at = format_time(scored[0].time_s)
        title = f"{metric_title(metric)} at {at} against energy"
        charts.append(Chart(title, f"{title} per sequence, with the Pareto front.", svg))
    tables = [PageTable(cost_text(rows))]
    return Section("Energy and latency", charts=charts, caption=CAPTION, tables=tables)


def _bar_series(found: Sequence[Bar]) -> dict[str, Series]:
    names = _drawn(found)
    series = {
        f"part{place}-{index}": Series(
            "", [f"{bar.label}, {name}: {quantity(bar.parts.get(name), 'J')}"]
        )
        for place, bar in enumerate(found)
        for index, name in enumerate(names)
    }
    others = enumerate(found[0].others.items())
    return series | {
        f"other{index}": Series("", [f"{name}: {quantity(joules, 'J')}"])
        for index, (name, joules) in others
    }


def _energy_figure(found: Sequence[Bar]) -> Figure:
    count = len(found) + len(found[0].others)
    figure = Figure(figsize=(6.4, 1.3 + _BAR_INCHES * count), layout="constrained")
    draw_energy(figure.subplots(), found)
    names = _drawn(found)
    handles: list[Artist] = [Patch(color=_colour(i), label=n) for i, n in enumerate(names)]
    draw_legend(figure, handles)
    return figure


def _front_figure(scored: Sequence[Point], metric: str) -> Figure:
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    panel = figure.subplots()
    draw_front(panel, scored, metric)
    for point in scored:
        at = (_MICROJOULE * point.energy, unit(metric) * point.score)
        panel.annotate(
            f"{point.label}, {point.device}", at, (5, 3), textcoords="offset points", fontsize=6.5
        )
    panel.margins(x=0.2)
    return figure


def _drawn(found: Sequence[Bar]) -> list[str]:
    """Return the parts that any bar has."""
    names = dict.fromkeys(part for bar in found for part in bar.parts)
    return [name for name in names if any(bar.parts.get(name) for bar in found)]


def _colour(index: int) -> str:
    return PALETTE[index % len(PALETTE)]


def _value(row: CostRow | None) -> str:
    if row is None or row.value is None or row.low is None or row.high is None:
        return NOT_STATED
    return quantity((row.low, row.value, row.high), row.unit)
