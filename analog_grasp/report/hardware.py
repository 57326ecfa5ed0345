"""Hardware in a report: tiles and weight error of the chips, energy and latency.

The costs are the rows of costs.csv, per sequence; see `analog_grasp.study.runner`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from analog_grasp.costs.estimate import NOT_STATED, CostRow, quantity
from analog_grasp.report.figures import (
    LEGEND_ROW_INCHES,
    MARKERS,
    PALETTE,
    Drawn,
    Series,
    colour_of,
    draw_legend,
    draw_time_axis,
    figure_files,
    line_styles,
    log_positions,
    marker_of,
)
from analog_grasp.report.findings import coverage
from analog_grasp.report.html import Chart, FigureFile, Section, swatch
from analog_grasp.report.tables import (
    MISSING,
    Comparison,
    TextTable,
    metric_title,
    score_text,
    unit,
)
from analog_grasp.study.records import LayerRecord, TreatedAdapter
from analog_grasp.study.statistics import Summary
from analog_grasp.utils.metrics import lower_is_better
from analog_grasp.utils.time import format_time

_CHIPS_LEGEND = (
    "Weight error: root mean square of (present weight - target) over all weights on the first"
    " chip instance of each device, in per cent of the column maximum, with drift compensation,"
    " as the first adapter is deployed. Utilisation: share of the tiles' cross-points that hold a"
    " weight."
)
_COSTS_CAPTION = (
    "Energy of one sequence from published figures of the hardware, not measured here; the table"
    " has its range and what is not stated. A bar marked * lacks parts that are not stated. Dashed"
    " line: the Pareto front, scores that no point with less energy reaches."
)
_ENERGY, _TOTAL = "energy, ", "all parts"
_ADAPTER_MACS = "adapter multiply-adds"
_MICROJOULE = 1e6
_BAR_INCHES = 0.32
_GREY = "#9a9a9a"


class ChipSummary(NamedTuple):
    """One chip instance of a device, summed over its layers."""

    device: str
    layers: Sequence[LayerRecord]
    """Right after programming."""
    tiles: int
    weights: int
    utilisation: float
    """Share of the tiles' cross-points that hold a weight."""
    errors: Mapping[float, float]
    """Root mean square weight error by time in seconds, in units of the column maximum."""


def chip_summaries(layers: Sequence[LayerRecord]) -> list[ChipSummary]:
    """Return one summary per device, in order of first appearance."""
    devices: dict[str, dict[float, list[LayerRecord]]] = {}
    for record in layers:
        if record.tiles:
            devices.setdefault(record.device, {}).setdefault(record.time_s, []).append(record)
    found = []
    for device, by_time in devices.items():
        errors = {}
        for seconds, own in sorted(by_time.items()):
            squares = sum(layer.cells * layer.weight_error**2 for layer in own)
            errors[seconds] = (squares / sum(layer.cells for layer in own)) ** 0.5
        first = by_time[min(by_time)]
        weights = sum(layer.cells for layer in first)
        use = weights / sum(layer.cells / layer.use for layer in first)
        tiles = sum(layer.tiles for layer in first)
        found.append(ChipSummary(device, first, tiles, weights, use, errors))
    return found


def chip_text(chips: Sequence[ChipSummary]) -> TextTable:
    """Return the chips as text, with the weight error at each time; see `_CHIPS_LEGEND`."""
    times = sorted({seconds for chip in chips for seconds in chip.errors})
    rows = []
    for chip in chips:
        errors = (f"{chip.errors[t]:.2%}" if t in chip.errors else MISSING for t in times)
        counts = (f"{chip.tiles:,}", f"{chip.weights:,}", f"{chip.utilisation:.1%}")
        rows.append((chip.device, *counts, *errors))
    titles = (f"error at {format_time(seconds)}" for seconds in times)
    columns = ("device", "tiles", "weights", "utilisation", *titles)
    return TextTable("Tiles and weight error", columns, rows)


def draw_weight_error(panel: Axes, comparison: Comparison, chips: Sequence[ChipSummary]) -> Drawn:
    """Draw weight error against time; the ids are ``series0``, ... for the chips."""
    times = sorted({seconds for chip in chips for seconds in chip.errors})
    positions = dict(zip(times, log_positions(times), strict=True))
    drawn = {}
    for index, chip in enumerate(chips):
        x = [positions[seconds] for seconds in chip.errors]
        y = [100 * error for error in chip.errors.values()]
        panel.plot(x, y, color=colour_of(index), marker=MARKERS[0], markeredgecolor="white",
                   gid=f"series{index}")  # fmt: skip
        labels = [f"{chip.device}, {format_time(t)}: {e:.2%}" for t, e in chip.errors.items()]
        drawn[f"series{index}"] = Series(labels, comparison.tokens(devices=[chip.device]))
    panel.set_ylim(bottom=0)
    panel.set_ylabel("weight error (%)")
    draw_time_axis(panel, times)
    return drawn


def draw_utilisation(panel: Axes, chip: ChipSummary, tokens: str) -> Drawn:
    """Draw the utilisation of each layer's tiles; the ids are ``series0``, ... for the bars."""
    drawn = {}
    for index, layer in enumerate(chip.layers):
        (bar,) = panel.bar(index + 1, 100 * layer.use, 0.7, color=PALETTE[0])
        bar.set_gid(f"series{index}")
        tiles = f"{layer.tiles} tile{'' if layer.tiles == 1 else 's'}"
        label = f"{layer.layer}: {layer.use:.1%} of {tiles}, {layer.cells:,} weights"
        drawn[f"series{index}"] = Series([label], tokens)
    panel.set_xlim(0.4, len(chip.layers) + 0.6)
    panel.set_ylim(0, 100)
    panel.locator_params(axis="x", integer=True)
    panel.set_ylabel("cross-points in use (%)")
    panel.set_xlabel("layer")
    return drawn


def chip_section(layers: Sequence[LayerRecord], comparison: Comparison) -> Section:
    """Return the section of the page: the weight error, and the tiles in use.

    Devices with the same tiles share a figure.
    """
    chips = chip_summaries(layers)
    if not chips:
        return Section("Chips", sentences=coverage(layers))
    charts = [
        Chart(
            "Weight error",
            "Weight error against the time since programming, one line per device.",
            partial(draw_weight_error, comparison=comparison, chips=chips),
            comparison.tokens(devices=(chip.device for chip in chips)),
            [
                (chip.device, swatch("o", colour_of(i)), comparison.tokens(devices=[chip.device]))
                for i, chip in enumerate(chips)
            ],
        )
    ]
    same_tiles: dict[tuple[tuple[str, int, float], ...], list[ChipSummary]] = {}
    for chip in chips:
        use = tuple((layer.layer, layer.tiles, layer.use) for layer in chip.layers)
        same_tiles.setdefault(use, []).append(chip)
    for first, *others in same_tiles.values():
        devices = [chip.device for chip in (first, *others)]
        title = (
            f"Utilisation of the tiles of {', '.join(devices)}: {first.weights:,} weights on"
            f" {first.tiles:,} tiles, {first.utilisation:.0%}"
        )
        tokens = comparison.tokens(devices=devices)
        draw = partial(draw_utilisation, chip=first, tokens=tokens)
        charts.append(Chart(title, "Share of each layer's tiles in use.", draw, tokens))
    tables = [chip_text(chips)]
    return Section("Chips", _CHIPS_LEGEND, charts, tables=tables, sentences=coverage(layers))


class Bar(NamedTuple):
    """The energy of one adapter on one hardware, J."""

    adapter: str
    cost_model: str
    parts: Mapping[str, float | None]
    """By part; None for what is not stated."""
    others: Mapping[str, float]
    """Of the same work on digital hardware."""

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
    score: Summary
    energy: float

    @property
    def position(self) -> tuple[float, float]:
        """Energy and score, as drawn."""
        return _MICROJOULE * self.energy, unit(self.score.metric) * self.score.mean


def bars(rows: Sequence[CostRow]) -> list[Bar]:
    """Return the energies of every adapter and hardware.

    Example:
        >>> row = CostRow("grasp", "pcm", "hermes", "energy, tile reads", "J", 1e-6, 2e-6, 3e-6)
        >>> bars([row, row._replace(quantity="energy, all parts")])[0].energy
        2e-06
    """
    found = []
    for (adapter, cost_model), quantities in _by_hardware(rows).items():
        energies = {
            name.removeprefix(_ENERGY): row.value
            for name, row in quantities.items()
            if name.startswith(_ENERGY)
        }
        names = list(energies)
        if _TOTAL not in names:
            raise ValueError(
                f"The file costs.csv is damaged: it lacks the row '{_ENERGY}{_TOTAL}' of {adapter} "
                f"on {cost_model}; remove it, or run the study again."
            )
        total = names.index(_TOTAL)
        parts = {name: energies[name] for name in names[:total]}
        others = {n: joules for n in names[total + 1 :] if (joules := energies[n]) is not None}
        found.append(Bar(adapter, cost_model, parts, others))
    return found


def _by_hardware(rows: Sequence[CostRow]) -> dict[tuple[str, str], dict[str, CostRow]]:
    """Return the rows by adapter and cost model, whose devices have the same costs."""
    found: dict[tuple[str, str], dict[str, CostRow]] = {}
    for row in rows:
        found.setdefault((row.adapter, row.cost_model), {})[row.quantity] = row
    return found


def points(rows: Sequence[CostRow], comparison: Comparison) -> list[Point]:
    """Return last score and energy of every variant and device, for the primary metric."""
    cost_models = {row.device: row.cost_model for row in rows}
    energy = {(bar.adapter, bar.cost_model): bar.energy for bar in bars(rows)}
    found = []
    for table in comparison.subjects[0]:
        for place, cells in enumerate(table.scores):
            # A recalibrated adapter costs what the adapter costs.
            adapter = TreatedAdapter.parse(comparison.variants[place].adapter).adapter
            joules = energy.get((adapter, cost_models.get(table.device, "")))
            measured = [cell for cell in cells if cell]
            if measured and joules is not None:
                found.append(Point(place, measured[-1], joules))
    return found


def front(found: Sequence[Point]) -> list[Point]:
    """Return the points that no point with less energy reaches, by ascending energy."""
    sign = -1 if lower_is_better(found[0].score.metric) else 1
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
        for index, name in enumerate(_drawn_parts(found)):
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


def _drawn_parts(found: Sequence[Bar]) -> list[str]:
    """Return the parts that any bar has."""
    names = dict.fromkeys(part for bar in found for part in bar.parts)
    return [name for name in names if any(bar.parts.get(name) for bar in found)]


def draw_front(panel: Axes, comparison: Comparison, found: Sequence[Point]) -> Drawn:
    """Draw score against energy and the Pareto front; the ids are ``point0``, ...."""
    styles, drawn, metric = line_styles(comparison), {}, found[0].score.metric
    devices = list(dict.fromkeys(point.score.device for point in found))
    # A marker per device, and others for the variants whose lines share a colour.
    forms = list(dict.fromkeys(style["marker"] for style in styles))
    for index, point in enumerate(found):
        device, style = point.score.device, styles[point.place]
        marker = marker_of(devices.index(device) + len(devices) * forms.index(style["marker"]))
        where = f"{comparison.labels[point.place]}, {device}"
        panel.plot(
            *point.position, color=style["color"], marker=marker, markersize=6,
            markeredgecolor="white", linestyle="none", zorder=3, gid=f"point{index}",
            label=where,
        )  # fmt: skip
        score = f"{score_text(point.score.mean, metric)}, {quantity(point.energy, 'J')}"
        tokens = comparison.tokens(comparison.variants[point.place], devices=[device])
        drawn[f"point{index}"] = Series([f"{where}: {score}"], tokens)
    x, y = zip(*(point.position for point in front(found)), strict=True)
    panel.step(x, y, where="post", color=_GREY, linestyle="--", linewidth=1.0, zorder=1)
    panel.set_xlabel("energy per sequence (µJ)")
    panel.set_ylabel(f"{metric_title(metric)} at {format_time(found[0].score.time_s)}")
    return drawn


def energy_by_part(found: Sequence[Bar], path_stem: Path | str) -> list[Path]:
    """Draw the energy by part with its legend, to `figure_files`."""
    size = 6.4, 1.3 + _BAR_INCHES * (len(found) + len(found[0].others))
    with figure_files(path_stem, size) as (figure, paths):
        draw_energy(figure.subplots(), found)
        parts = enumerate(_drawn_parts(found))
        draw_legend(figure, [Patch(color=colour_of(index), label=name) for index, name in parts])
    return paths


def accuracy_vs_energy(
    comparison: Comparison, found: Sequence[Point], path_stem: Path | str
) -> list[Path]:
    """Draw score against energy with a legend of the points, to `figure_files`."""
    with figure_files(path_stem, (5.2, 3.6)) as (figure, paths):
        panel = figure.subplots()
        draw_front(panel, comparison, found)
        # Labels at the points would overlap, as devices with one cost model have equal energies.
        rows = draw_legend(figure, [line for line in panel.lines if line.get_gid()])
        figure.set_figheight(figure.get_figheight() + LEGEND_ROW_INCHES * (rows - 1))
    return paths


def cost_text(rows: Sequence[CostRow]) -> TextTable:
    """Return every quantity per sequence, one column per adapter and hardware."""
    # The quantity is named after the kind of adapter, which would give each kind a row.
    rows = [
        row._replace(quantity=_ADAPTER_MACS) if row.quantity.startswith(_ADAPTER_MACS) else row
        for row in rows
    ]
    hardware = _by_hardware(rows)
    return TextTable(
        "Energy, latency and programming per sequence",
        ("quantity", *(f"{adapter}, {model}" for adapter, model in hardware)),
        [
            (name, *(_value(quantities.get(name)) for quantities in hardware.values()))
            for name in dict.fromkeys(row.quantity for row in rows)
        ],
    )


def _value(row: CostRow | None) -> str:
    # The adapter or hardware has no such quantity, which "not stated" would call unpublished.
    if row is None:
        return MISSING
    if row.value is None or row.low is None or row.high is None:
        return NOT_STATED
    return quantity((row.low, row.value, row.high), row.unit)


def cost_section(rows: Sequence[CostRow], comparison: Comparison) -> Section:
    """Return the section of the page; an empty one without rows."""
    if not rows:
        return Section("Energy and latency")
    found, scored = bars(rows), points(rows, comparison)
    parts = enumerate(_drawn_parts(found))
    charts = [
        Chart(
            "Energy by part",
            "Energy of one sequence by part, and on digital accelerators.",
            partial(draw_energy, found=found),
            legend=[(name, swatch("s", colour_of(i)), "") for i, name in parts],
        )
    ]
    files = [FigureFile("energy_by_part", partial(energy_by_part, found))]
    if scored:
        score = scored[0].score
        write = partial(accuracy_vs_energy, comparison, scored)
        files.append(FigureFile("accuracy_vs_energy", write))
        axes = f"{metric_title(score.metric)} at {format_time(score.time_s)} against energy"
        draw = partial(draw_front, comparison=comparison, found=scored)
        charts.append(Chart(axes, f"{axes} per sequence, with the Pareto front.", draw))
    return Section(
        "Energy and latency",
        charts=charts,
        files=files,
        caption=_COSTS_CAPTION,
        tables=[cost_text(rows)],
    )
