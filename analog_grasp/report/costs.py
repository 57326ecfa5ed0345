"""Costs in a report: energy by part, score against energy, and a table.

The rows are those of costs.csv, per sequence; see `analog_grasp.study.runner`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analog_grasp.costs.table import NOT_STATED, CostRow, costs_csv, quantity
from analog_grasp.report.comparison import Comparison
from analog_grasp.report.html import Chart, PageTable, Section, swatch
from analog_grasp.report.plotting import (
    Drawn,
    Series,
    colour_of,
    draw_legend,
    line_styles,
    marker_of,
    write_figure,
)
from analog_grasp.report.tables import TextTable, metric_title, score_text, unit
from analog_grasp.study.records import TreatedAdapter
from analog_grasp.study.statistics import Summary
from analog_grasp.utils.io import write_atomically
from analog_grasp.utils.time import format_time
from analog_grasp.utils.types import LOWER_IS_BETTER

_ENERGY, _TOTAL = "energy, ", "all parts"
_MICROJOULE = 1e6
_BAR_INCHES = 0.32
_GREY = "#9a9a9a"
CAPTION = (
    "Energy of one sequence from published figures of the hardware, not measured here; the table"
    " has its range and what is not stated. A bar marked * lacks parts that are not stated. Dashed"
    " line: the Pareto front, scores that no point with less energy reaches."
)


class Bar(NamedTuple):
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
    devices: Sequence[str]
    parts: Mapping[str, float | None]
    others: Mapping[str, float]

    @property
    def label(self) -> str:
        """The label of the bar; * marks that parts are not stated."""
        mark = " *" if None in self.parts.values() else ""
        return f"{self.adapter}, {self.cost_model}{mark}"

    @property
    def energy(self) -> float:
        """The energy of the parts that are stated, J."""
        return sum(part for part in self.parts.values() if part is not None)


class Point(NamedTuple):
    """A variant on a device: its place in the comparison, last score, and energy, J."""

    place: int
    label: str
    score: Summary
    energy: float


def bars(rows: Sequence[CostRow]) -> list[Bar]:
    """Return the energies of every adapter and hardware.

    Example:
        >>> row = CostRow("grasp", "pcm", "hermes", "energy, tile reads", "J", 1e-6, 2e-6, 3e-6)
        >>> bars([row, row._replace(quantity="energy, all parts")])[0].energy
        2e-06
    """
    found = []
    for adapter, cost_model in dict.fromkeys((row.adapter, row.cost_model) for row in rows):
        own = [row for row in rows if (row.adapter, row.cost_model) == (adapter, cost_model)]
        devices = list(dict.fromkeys(row.device for row in own))
        energies = {
            row.quantity.removeprefix(_ENERGY): row.value
            for row in own
            if row.device == devices[0] and row.quantity.startswith(_ENERGY)
        }
        names = list(energies)
        total = names.index(_TOTAL)
        parts = {name: energies[name] for name in names[:total]}
        others = {n: joules for n in names[total + 1 :] if (joules := energies[n]) is not None}
        found.append(Bar(adapter, cost_model, devices, parts, others))
    return found


def points(rows: Sequence[CostRow], comparison: Comparison) -> list[Point]:
    """Return last score and energy of every variant and device, for the primary metric."""
    energy = {(bar.adapter, device): bar.energy for bar in bars(rows) for device in bar.devices}
    found = []
    for table in comparison.subjects[0]:
        for place, cells in enumerate(table.scores):
            # A recalibrated adapter costs what the adapter costs.
            adapter = TreatedAdapter.parse(comparison.variants[place].adapter).adapter
            joules = energy.get((adapter, table.device))
            measured = [cell for cell in cells if cell]
            if measured and joules is not None:
                found.append(Point(place, table.labels[place], measured[-1], joules))
    return found


def front(found: Sequence[Point]) -> list[Point]:
    """Return the points that no point with less energy reaches, by ascending energy."""
    sign = -1 if found[0].score.metric in LOWER_IS_BETTER else 1
    best: list[Point] = []
    for point in sorted(found, key=lambda p: (p.energy, -sign * p.score.mean)):
        if not best or sign * point.score.mean > sign * best[-1].score.mean:
            best.append(point)
    return best


def draw_energy(panel: Axes, found: Sequence[Bar]) -> Drawn:
    """Draw stacked bars of the energy by part, and bars of digital hardware below them.

    The ids are ``part0-0``, ... for part j of bar i, and ``other0``, ....
    """
    drawn, labels = {}, [bar.label for bar in found]
    for place, bar in enumerate(found):
        left = 0.0
        for index, name in enumerate(_drawn(found)):
            width = _MICROJOULE * (bar.parts.get(name) or 0.0)
            if width:
                (part,) = panel.barh(place, width, 0.7, left=left, color=colour_of(index))
                part.set_gid(f"part{place}-{index}")
                text = f"{bar.label}, {name}: {quantity(bar.parts[name], 'J')}"
                drawn[f"part{place}-{index}"] = Series([text])
                left += width
    for index, (name, joules) in enumerate(found[0].others.items()):
        (part,) = panel.barh(len(labels), _MICROJOULE * joules, 0.7, color=_GREY)
        part.set_gid(f"other{index}")
        drawn[f"other{index}"] = Series([f"{name}: {quantity(joules, 'J')}"])
        labels.append(name)
    panel.set_yticks(range(len(labels)), labels)
    panel.invert_yaxis()
    panel.grid(visible=False, axis="y")
    panel.grid(visible=True, axis="x")
    panel.set_xlabel("energy per sequence (µJ)")
    return drawn


def _drawn(found: Sequence[Bar]) -> list[str]:
    """Return the parts that any bar has."""
    names = dict.fromkeys(part for bar in found for part in bar.parts)
    return [name for name in names if any(bar.parts.get(name) for bar in found)]


def draw_front(panel: Axes, comparison: Comparison, found: Sequence[Point]) -> Drawn:
    """Draw score against energy and the Pareto front; the ids are ``point0``, ...."""
    styles, drawn, metric = line_styles(comparison), {}, found[0].score.metric
    devices = list(dict.fromkeys(point.score.device for point in found))
    for index, point in enumerate(found):
        device = point.score.device
        marker = marker_of(devices.index(device))
        panel.plot(
            *_position(point), color=styles[point.place]["color"], marker=marker, markersize=6,
            markeredgecolor="white", linestyle="none", zorder=3, gid=f"point{index}",
        )  # fmt: skip
        score = f"{score_text(point.score.mean, metric)}, {quantity(point.energy, 'J')}"
        tokens = comparison.tokens(comparison.variants[point.place], devices=[device])
        drawn[f"point{index}"] = Series([f"{point.label}, {device}: {score}"], tokens)
    x, y = zip(*map(_position, front(found)), strict=True)
    panel.step(x, y, where="post", color=_GREY, linestyle="--", linewidth=1.0, zorder=1)
    panel.set_xlabel("energy per sequence (µJ)")
    panel.set_ylabel(f"{metric_title(metric)} at {format_time(found[0].score.time_s)}")
    return drawn


def _position(point: Point) -> tuple[float, float]:
    return _MICROJOULE * point.energy, unit(point.score.metric) * point.score.mean


def write_costs(rows: Sequence[CostRow], comparison: Comparison, directory: Path) -> list[Path]:
    """Write costs.csv, energy_by_part and accuracy_vs_energy; nothing without rows."""
    if not rows:
        return []
    found, scored = bars(rows), points(rows, comparison)
    table = directory / "costs.csv"
    write_atomically(table, costs_csv(rows).encode())
    paths = [table, *write_figure(lambda: _energy_figure(found), directory / "energy_by_part")]
    if scored:
        stem = directory / "accuracy_vs_energy"
        paths += write_figure(lambda: _front_figure(comparison, scored), stem)
    return paths


def _energy_figure(found: Sequence[Bar]) -> Figure:
    count = len(found) + len(found[0].others)
    figure = Figure(figsize=(6.4, 1.3 + _BAR_INCHES * count), layout="constrained")
    draw_energy(figure.subplots(), found)
    parts = enumerate(_drawn(found))
    draw_legend(figure, [Patch(color=colour_of(index), label=name) for index, name in parts])
    return figure


def _front_figure(comparison: Comparison, scored: Sequence[Point]) -> Figure:
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    panel = figure.subplots()
    draw_front(panel, comparison, scored)
    for point in scored:
        label = f"{point.label}, {point.score.device}"
        panel.annotate(label, _position(point), (5, 3), textcoords="offset points", fontsize=6.5)
    panel.margins(x=0.2)
    return figure


def cost_text(rows: Sequence[CostRow]) -> TextTable:
    """Return every quantity per sequence, one column per adapter and hardware."""
    columns = list(dict.fromkeys((row.adapter, row.cost_model) for row in rows))
    # The devices of one cost model have the same costs.
    values = {(row.quantity, row.adapter, row.cost_model): row for row in rows}
    return TextTable(
        "Energy, latency and programming per sequence",
        ("", *(f"{adapter}, {model}" for adapter, model in columns)),
        [
            (name, *(_value(values.get((name, *column))) for column in columns))
            for name in dict.fromkeys(row.quantity for row in rows)
        ],
    )


def _value(row: CostRow | None) -> str:
    if row is None or row.value is None or row.low is None or row.high is None:
        return NOT_STATED
    return quantity((row.low, row.value, row.high), row.unit)


def cost_section(rows: Sequence[CostRow], comparison: Comparison) -> Section:
    """Return the section of the page."""
    found, scored = bars(rows), points(rows, comparison)
    charts = [
        Chart(
            "Energy by part",
            "Energy of one sequence by part, and on digital accelerators.",
            partial(draw_energy, found=found),
            legend=[(name, swatch("s", colour_of(i)), "") for i, name in enumerate(_drawn(found))],
        )
    ]
    if scored:
        score = scored[0].score
        title = f"{metric_title(score.metric)} at {format_time(score.time_s)} against energy"
        draw = partial(draw_front, comparison=comparison, found=scored)
        charts.append(Chart(title, f"{title} per sequence, with the Pareto front.", draw))
    tables = [PageTable(cost_text(rows))]
    return Section("Energy and latency", charts=charts, caption=CAPTION, tables=tables)
