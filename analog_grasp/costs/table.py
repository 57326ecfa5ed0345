"""Costs as text, and as rows of a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from analog_grasp.devices.cost_model import Accelerator, Range, joules_of

if TYPE_CHECKING:
    from analog_grasp.costs.estimate import Costs

NOT_STATED = "not stated"
_JOULE = ((1e-12, "pJ"), (1e-9, "nJ"), (1e-6, "uJ"), (1e-3, "mJ"), (1.0, "J"), (1e3, "kJ"))
_SECOND = ((1e-9, "ns"), (1e-6, "us"), (1e-3, "ms"), (1.0, "s"))
_BATCHES = (1, 8, 64, 512)


class CostRow(NamedTuple):
    """One quantity of one batch, in a unit or none."""

    adapter: str
    """The adapter's name in its run."""
    device: str
    """The device of the run that the cost model describes."""
    cost_model: str
    quantity: str
    """Such as "energy, tile reads"."""
    unit: str
    low: float | None
    """The smallest value; None if the cost model does not state it."""
    value: float | None
    high: float | None


def cost_rows(costs: Costs, adapter: str, device: str) -> list[CostRow]:
    """Return every quantity of one batch.

    Example:
        >>> from analog_grasp.costs import CostModel, Costs, LayerWork, Work
        >>> work = Work((LayerWork("dense", 256, 256, reads=1),))
        >>> cost_rows(Costs(CostModel.load("hermes-1phase"), work), "grasp", "pcm")[0].quantity
        'tokens'
    """

    def row(quantity: str, unit: str, value: Range | float | None) -> CostRow:
        ends = value if isinstance(value, tuple) else (value, value, value)
        return CostRow(adapter, device, costs.model.name, quantity, unit, *ends)

    return [row(*each) for each in _quantities(costs)]


def costs_csv(rows: Iterable[CostRow]) -> str:
    """Return rows as the text of costs.csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CostRow._fields)
    writer.writerows(rows)
    return text.getvalue()


def read_costs(path: Path) -> list[CostRow]:
    """Return the rows of a costs.csv; none if the file does not exist.

    Raises:
        ValueError: The file is not one of `costs_csv`.
    """
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))
    if not lines or tuple(lines[0]) != CostRow._fields:
        raise ValueError(f"The file {path} is damaged: remove it, or run the study again.")
    return [
        CostRow(*line[:5], *(float(value) if value else None for value in line[5:]))  # type: ignore[arg-type]
        for line in lines[1:]
    ]


def costs_text(costs: Costs) -> str:
    """Return the table of the costs of one batch, as text."""
    tokens, parts = costs.work.tokens, costs.energies
    total = costs.energy
    rows = [("", "per token", "per batch", "share")]
    for name, unit, value in _quantities(costs):
        part = parts.get(name.removeprefix("energy, "))
        share = f"{part[1] / total[1]:.1%}" if part is not None and total and total[1] else ""
        one = ""
        if name.startswith("energy, ") and isinstance(value, tuple):
            low, stated, high = value
            one = quantity((low / tokens, stated / tokens, high / tokens), unit)
        rows.append((name, one, quantity(value, unit), share))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    head = (
        f"{costs.model.title}; {costs.work.batch} x {costs.work.sequence} tokens; a tile read "
        f"includes {', '.join(costs.model.tile.includes)}"
    )
    lines = [
        f"{row[0]:{widths[0]}}  " + "  ".join(f"{row[i]:>{widths[i]}}" for i in (1, 2, 3))
        for row in rows
    ]
    return "\n".join((head, *(line.rstrip() for line in lines), *_sharing(costs)))


def quantity(value: Range | float | None, unit: str) -> str:
    """Return a quantity with three digits and its range.

    Example:
        >>> quantity((1e-6, 2e-6, 3e-6), "J"), quantity(None, "s"), quantity(1234.0, "")
        ('2 uJ (1 to 3)', 'not stated', '1,234')
    """
    if value is None:
        return NOT_STATED
    low, stated, high = value if isinstance(value, tuple) else (value, value, value)
    if not unit:
        return f"{stated:,.0f}"
    scales = {"J": _JOULE, "s": _SECOND}.get(unit, ((1.0, unit),))
    factor, name = next((scale for scale in scales if stated < 1000 * scale[0]), scales[-1])
    text = f"{_digits(stated / factor)} {name}"
    if low == high:
        return text
    return f"{text} ({_digits(low / factor)} to {_digits(high / factor)})"


def _quantities(costs: Costs) -> Iterator[tuple[str, str, Range | float | None]]:
    """Yield name, unit and value of every quantity of a batch, in the order of the table."""
    work, programming, pipeline = costs.work, costs.programming, costs.pipeline
    counts: Mapping[str, int] = {
        "tokens": work.tokens,
        "analog multiply-adds": work.analog_macs,
        f"adapter multiply-adds{f' ({work.adapter})' if work.adapter else ''}": work.adapter_macs,
        "attention multiply-adds": work.attention_macs,
        "norm multiply-adds": work.norm_macs,
        "other digital multiply-adds": work.linear_macs,
    }
    for name, count in counts.items():
        yield name, "", count
    for name, energy in costs.energies.items():
        yield f"energy, {name}", "J", energy
    total, operations = costs.energy, 2 * work.macs
    yield "energy, all parts", "J", total
    yield "efficiency", "TOPS/W", _efficiency(operations, total)
    yield "energy, all digital on this node", "J", costs.model.digital_energy(work.macs)
    for accelerator in Accelerator.shipped():
        energy = joules_of(operations, accelerator.tops_per_watt.range)
        yield f"energy, {accelerator.title}", "J", energy
    latency, throughput = costs.latency_s, costs.throughput
    yield "latency", "s", latency
    yield "speed", "TOPS", None if not latency else operations / latency / 1e12
    yield "throughput, tokens per second", "", throughput
    yield "tiles", "", costs.tiles
    yield "area of the tiles", "mm2", costs.area_mm2
    yield "tiles rewritten per batch", "", pipeline.rewritten
    yield "key-value cache, bytes", "", work.cache_bytes
    yield "key-value cache, bytes moved", "", work.cache_traffic
    yield "devices to program", "", programming.devices
    yield "pulses per device", "pulses", programming.pulses
    yield "energy to program them", "J", programming.energy
    yield "time to program them", "s", programming.time
    yield "bytes to rewrite the adapter", "", work.adapter_bytes
    yield "energy to rewrite the adapter", "J", costs.model.memory_energy(work.adapter_bytes)


def _sharing(costs: Costs) -> list[str]:
    """Return which layers share tiles, and the throughput against batch size, as sentences."""
    pipeline = costs.pipeline
    if not pipeline.rewritten:
        return []
    loads = pipeline.loads
    lines = [
        f"{costs.available} of {costs.tiles} tiles: {pipeline.resident} layers stay, "
        f"{len(pipeline.stages) - pipeline.resident} share the other tiles, which are rewritten "
        f"{sum(load.parts for load in loads)} times per batch"
    ]
    speeds = [(batch, pipeline.throughput(batch)) for batch in _BATCHES]
    known = [f"{speed:.3g} at {batch}" for batch, speed in speeds if speed is not None]
    if known:
        lines.append(f"sequences per second by batch size: {', '.join(known)}")
    return lines


def _efficiency(operations: float, energy: Range | None) -> Range | None:
    if energy is None or not energy[1]:
        return None
    low, value, high = energy
    return operations / high / 1e12, operations / value / 1e12, operations / low / 1e12


def _digits(value: float) -> str:
    """Return a number with three digits, without an exponent above 1,000."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
