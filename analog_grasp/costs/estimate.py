"""Energy, latency and programming cost of a deployment, as text and as rows of a CSV file."""

import csv
import io
import math
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from analog_grasp.costs.work import LayerWork, Pipeline, Stage, Work, count_work
from analog_grasp.crossbar import Deployment
from analog_grasp.crossbar.write_tolerance import mean_pulses
from analog_grasp.devices.cost_model import (
    Accelerator,
    CostModel,
    Figure,
    Range,
    joules_of,
    sum_of,
    times,
)
from analog_grasp.utils.errors import check_finite, check_whole

NOT_STATED = "not stated"
_JOULE = ((1e-12, "pJ"), (1e-9, "nJ"), (1e-6, "uJ"), (1e-3, "mJ"), (1.0, "J"), (1e3, "kJ"))
_SECOND = ((1e-9, "ns"), (1e-6, "us"), (1e-3, "ms"), (1.0, "s"))
_BATCHES = (1, 8, 64, 512)


class Programming(NamedTuple):
    """Program-and-verify of a number of weights; None for what the cost model does not state."""

    devices: int | None
    pulses: Range | None
    """Pulses per device."""
    energy: Range | None
    """Energy, J."""
    time: Range | None
    """Time to program one tile after the other, s."""

    @classmethod
    def of(cls, model: CostModel, weights: int, pulses: float | None = None) -> "Programming":
        """Return the programming of weights, with the cost model's pulses per device or others.

        Example:
            >>> Programming.of(CostModel.load("neurram"), 1000).devices
            2000
        """
        costs = model.programming
        if costs is None:
            return cls(None, None, None, None)
        devices = weights * costs.devices_per_weight
        stated = None if costs.pulses_per_device is None else costs.pulses_per_device.range
        per_device = stated if pulses is None else (pulses, pulses, pulses)
        at_once = 1.0 if costs.parallel_devices is None else costs.parallel_devices.value

        def of_pulses(pulse: Figure[float] | None) -> Range | None:
            if pulse is None or per_device is None:
                return None
            low, value, high = map(operator.mul, pulse.range, per_device)
            return low, value, high

        energy, seconds = of_pulses(costs.pulse_energy), of_pulses(costs.pulse_time)
        return cls(devices, per_device, times(devices, energy), times(devices / at_once, seconds))


@dataclass(frozen=True)
class Costs:
    """The costs of one batch; None means that the cost model does not state a figure.

    Attributes:
        model: The cost model.
        work: The work of the batch.
        available: The tiles that are available; None for all that are needed.
        pulses: Programming pulses per device, where write tolerances set them.

    Raises:
        ValueError: `available` is no whole number of at least 1, or `pulses` is not above 0.

    Example:
        >>> work = Work((LayerWork("dense", 256, 256, reads=100),))
        >>> costs = Costs(CostModel.load("hermes-1phase"), work)
        >>> round(costs.energy[1] * 1e9), costs.tiles
        (1343, 1)
    """

    model: CostModel
    work: Work
    available: int | None = None
    pulses: float | None = None

    def __post_init__(self) -> None:
        if self.available is not None:
            check_whole("tiles", self.available)
        if self.pulses is not None:
            check_finite("pulses", self.pulses, above=True)

    def tiles_of(self, layer: LayerWork) -> int:
        """Return the tiles of a layer."""
        tile = self.model.tile
        return math.ceil(layer.features / tile.rows) * math.ceil(layer.outputs / tile.columns)

    @property
    def tiles(self) -> int:
        """Tiles that hold all layers."""
        return self.pipeline.needed

    @property
    def energies(self) -> dict[str, Range | None]:
        """The energy of each part of the batch, J.

        "tile reads" includes what the cost model lists; "rewriting tiles" is that of `available`
        tiles being too few.
        """
        work, model = self.work, self.model
        reads = sum(self.tiles_of(layer) * layer.reads for layer in work.layers)
        parts: dict[str, Range | None] = {
            name: times(reads, energy) for name, energy in model.read_energy().items()
        }
        # All adapters but LoRA multiply by vectors, not by matrices.
        parts["adapter"] = model.digital_energy(
            work.adapter_macs, not work.adapter.startswith("lora")
        )
        parts["attention"] = model.digital_energy(work.attention_macs)
        parts["norms"] = model.digital_energy(work.norm_macs, elementwise=True)
        parts["other digital layers"] = model.digital_energy(work.linear_macs)
        parts["key-value cache"] = model.memory_energy(work.cache_traffic)
        if self.pipeline.rewritten:
            weights = sum(layer.weights for layer in work.layers[self.pipeline.resident :])
            parts["rewriting tiles"] = Programming.of(model, weights, self.pulses).energy
        return parts

    @property
    def energy(self) -> Range | None:
        """The energy of all parts, J; None if the energy of one of them is not stated."""
        return sum_of(*self.energies.values())

    @property
    def pipeline(self) -> Pipeline:
        """The layers as a pipeline, per sequence."""
        stages = [
            Stage(layer.name, self.tiles_of(layer), layer.reads / self.work.batch)
            for layer in self.work.layers
        ]
        tile = self.model.tile
        per_tile = Programming.of(self.model, tile.rows * tile.columns, self.pulses).time
        seconds = None if per_tile is None else per_tile[1]
        return Pipeline(stages, self.model.read_time(), seconds, self.available)

    @property
    def latency_s(self) -> float | None:
        """Time of the batch, s."""
        return self.pipeline.latency(self.work.batch)

    @property
    def throughput(self) -> float | None:
        """Tokens per second with batches of this size, one after the other."""
        sequences = self.pipeline.throughput(self.work.batch)
        return None if sequences is None else sequences * self.work.sequence

    @property
    def area_mm2(self) -> Range | None:
        """The area of the tiles, mm^2."""
        area = self.model.tile.area
        on_chip = self.tiles if self.available is None else min(self.tiles, self.available)
        return None if area is None else times(on_chip, area.range)

    @property
    def programming(self) -> Programming:
        """Programming of all weights."""
        return Programming.of(self.model, self.work.weights, self.pulses)

    def __str__(self) -> str:
        """Return the table of the costs of one batch, as text."""
        tokens, parts, total = self.work.tokens, self.energies, self.energy
        rows = [("", "per token", "per batch", "share")]
        for name, unit, value in _quantities(self):
            part = parts.get(name.removeprefix("energy, "))
            share = f"{part[1] / total[1]:.1%}" if part is not None and total and total[1] else ""
            one = ""
            if name.startswith("energy, ") and isinstance(value, tuple):
                low, stated, high = value
                one = quantity((low / tokens, stated / tokens, high / tokens), unit)
            rows.append((name, one, quantity(value, unit), share))
        first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
        lines = [
            f"{self.model.title}; {self.work.batch} x {self.work.sequence} tokens; a tile read "
            f"includes {', '.join(self.model.tile.includes)}"
        ]
        for name, *values in rows:
            texts = (f"{text:>{width}}" for text, width in zip(values, widths, strict=True))
            lines.append("  ".join([f"{name:{first}}", *texts]).rstrip())
        return "\n".join([*lines, *_sharing(self)])


def costs(
    deployment: Deployment,
    hardware: str | Path | CostModel = "hermes-1phase",
    *,
    sequence: int | None = None,
    batch: int | None = None,
    tiles: int | None = None,
    inputs: Mapping[str, Tensor] | None = None,
) -> Costs:
    """Return the energy, latency and programming cost of a deployment for one batch.

    The work is counted in one digital forward pass. A read of a tile is charged in full, whether
    the tile is full or not. For a model that this package does not map, state its `Work` and make
    `Costs` from it. Write tolerances of the deployment set the pulses per device.

    Args:
        deployment: The deployment; its chip need not be programmed.
        hardware: A cost model: a name, the path of a TOML file, or a `CostModel`.
        sequence: Tokens per sequence; by default those of `inputs`, or 128.
        batch: Sequences per batch; by default those of `inputs`, or 1.
        tiles: The tiles that are available, which layers share if they are too few; all that are
            needed by default.
        inputs: The model's inputs for one batch; those without ``input_ids`` or ``inputs_embeds``
            count as one token unless `sequence` and `batch` state more.

    Raises:
        ValueError: The cost model is unknown or invalid, a number is below 1 or contradicts the
            inputs, the model has no positions for so many tokens, or it takes other inputs than
            the token ids of one sequence and `inputs` is absent.

    Source:
        The sources of the cost model's figures; docs/method.md.

    Example:
        ``print(costs(deploy(model, "pcm-hermes-2"), "hermes-1phase"))``
    """
    model = CostModel.load(hardware)
    work = count_work(deployment, sequence, batch, inputs)
    return Costs(model, work, tiles, mean_pulses(deployment))


class Year(NamedTuple):
    """Energy of a year of operation, J; None for what the cost model does not state."""

    inference: Range | None
    recalibration: Range | None
    """Of re-fitting the digital adapter on the chip, every month."""
    reprogramming: Range | None
    """Of programming the chip again, every month."""


def year_of_operation(
    costs: Costs, *, batches_per_day: float = 10_000, examples: int = 64, passes: int = 6400
) -> Year:
    """Return the energy of a year with monthly recalibration, and of monthly reprogramming.

    A recalibration reads examples on the chip, again and again, with a backward pass of twice the
    multiply-adds in digital arithmetic for each; the digital model's outputs are computed once for
    each example and for each changed one, which are half of those read after the first time; the
    adapter is rewritten once.

    Args:
        costs: The costs of one batch.
        batches_per_day: Batches per day.
        examples: Examples of a recalibration, each a sequence.
        passes: Passes of an example through the chip in one recalibration; by default those of
            `recalibrate`, 200 steps of 32 examples.

    Raises:
        ValueError: A number is negative or not finite, or examples or passes are below 1.

    Source:
        docs/method.md, "Energy, latency and programming cost".

    Example:
        ``year_of_operation(ag.costs(deployment, "neurram")).reprogramming``
    """
    check_finite("batches_per_day", batches_per_day)
    check_whole("examples", examples)
    check_whole("passes", passes)
    model, work = costs.model, costs.work
    months = 12
    changed = max(0, passes - examples) // 2
    macs = work.macs // work.batch
    fit = sum_of(
        times(passes / work.batch, costs.energy),
        model.digital_energy(macs * (2 * passes + examples + changed)),
        model.memory_energy(work.adapter_bytes),
    )
    return Year(
        times(365 * batches_per_day, costs.energy),
        times(months, fit),
        times(months, costs.programming.energy),
    )


class CostRow(NamedTuple):
    """One quantity of one batch, such as "energy, tile reads"; None where it is not stated."""

    adapter: str
    device: str
    cost_model: str
    quantity: str
    unit: str
    low: float | None
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
    return [
        CostRow(adapter, device, costs.model.name, name, unit, *_ends(value))
        for name, unit, value in _quantities(costs)
    ]


def costs_csv(rows: Iterable[CostRow]) -> str:
    """Return rows as the text of costs.csv."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([CostRow._fields, *rows])
    return text.getvalue()


def read_costs(path: Path) -> list[CostRow]:
    """Return the rows of a costs.csv; none if the file does not exist.

    Raises:
        ValueError: The file is not one of `costs_csv`.
    """
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *lines = csv.reader(file)
        rows = [
            CostRow._make([*line[:5], *(float(value) if value else None for value in line[5:])])
            for line in lines
        ]
    except (ValueError, TypeError, csv.Error):
        header, rows = [], []
    if tuple(header) != CostRow._fields:
        raise ValueError(f"The file {path} is damaged: remove it, or run the study again.")
    return rows


def quantity(value: Range | float | None, unit: str) -> str:
    """Return a quantity with three digits and its range.

    Example:
        >>> quantity((1e-6, 2e-6, 3e-6), "J"), quantity(None, "s"), quantity(1234.0, "")
        ('2 uJ (1 to 3)', 'not stated', '1,234')
    """
    if value is None:
        return NOT_STATED
    low, stated, high = _ends(value)
    if not unit:
        return f"{stated:,.0f}"
    scales = {"J": _JOULE, "s": _SECOND}.get(unit, ((1.0, unit),))
    factor, name = next((scale for scale in scales if stated < 1000 * scale[0]), scales[-1])
    text = f"{_digits(stated / factor)} {name}"
    if low == high:
        return text
    return f"{text} ({_digits(low / factor)} to {_digits(high / factor)})"


def _ends[Value: (float, float | None)](value: Range | Value) -> tuple[Value, Value, Value]:
    return value if isinstance(value, tuple) else (value, value, value)


def _quantities(costs: Costs) -> Iterator[tuple[str, str, Range | float | None]]:
    """Yield name, unit and value of every quantity of a batch, in the order of the table."""
    work, programming, pipeline = costs.work, costs.programming, costs.pipeline
    yield "tokens", "", work.tokens
    yield "analog multiply-adds", "", work.analog_macs
    kind = f" ({work.adapter})" if work.adapter else ""
    yield f"adapter multiply-adds{kind}", "", work.adapter_macs
    yield "attention multiply-adds", "", work.attention_macs
    yield "norm multiply-adds", "", work.norm_macs
    yield "other digital multiply-adds", "", work.linear_macs
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
    lines = [
        f"{costs.available} of {costs.tiles} tiles: {pipeline.resident} layers stay, "
        f"{len(pipeline.stages) - pipeline.resident} share the other tiles, which are rewritten "
        f"{sum(load.parts for load in pipeline.loads)} times per batch"
    ]
    speeds = {batch: pipeline.throughput(batch) for batch in _BATCHES}
    known = [f"{speed:.3g} at {batch}" for batch, speed in speeds.items() if speed is not None]
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
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"
