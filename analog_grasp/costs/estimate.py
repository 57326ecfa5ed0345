"""Energy, latency and programming cost of a deployment on one hardware.

A pipeline over layers, whose tiles may be too few; the programming of a chip; a year of operation.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from analog_grasp.costs.table import costs_text
from analog_grasp.costs.work import LayerWork, Work, count_work
from analog_grasp.crossbar import Deployment
from analog_grasp.crossbar.write_tolerance import mean_pulses
from analog_grasp.devices.cost_model import CostModel, Figure, Range, sum_of, times


class Stage(NamedTuple):
    """A layer in a pipeline."""

    name: str
    tiles: int
    reads: float
    """Input vectors per sequence."""


class Load(NamedTuple):
    """Layers that are on the chip at the same time, in the order of the model."""

    stages: tuple[Stage, ...]
    parts: int = 1
    """Rewrites of the tiles, above 1 for a single layer that needs more tiles than there are."""


@dataclass(frozen=True)
class Pipeline:
    """Layers as the stages of a pipeline.

    A vector enters each layer as soon as the layer before has read it. With fewer tiles than
    needed, as many of the first layers as possible stay on the chip, so that the fewest tiles are
    rewritten. The others share the remaining tiles, which are rewritten in every batch with as
    many of the next layers as fit; the tiles of a load are rewritten at the same time (choices of
    this project).

    Attributes:
        stages: The layers, in the order of the model.
        read_time: Time of a tile read, s; None if not stated.
        tile_time: Time to rewrite a tile, s; None if not stated.
        available: The tiles that are available; None for all that are needed.

    Example:
        >>> stages = [Stage("a", 2, 10), Stage("b", 2, 10), Stage("c", 2, 10)]
        >>> shared = Pipeline(stages, 1e-7, 1e-3, available=4)
        >>> [[stage.name for stage in load.stages] for load in shared.loads], shared.rewritten
        ([['a', 'b'], ['c']], 4)
    """

    stages: Sequence[Stage]
    read_time: float | None
    tile_time: float | None
    available: int | None = None

    @property
    def needed(self) -> int:
        """Tiles that hold all layers."""
        return sum(stage.tiles for stage in self.stages)

    @property
    def resident(self) -> int:
        """The number of layers, from the first one on, that stay on the chip."""
        if self.available is None or self.needed <= self.available:
            return len(self.stages)
        tiles = [stage.tiles for stage in self.stages]
        count = 0
        while sum(tiles[: count + 1]) + max(tiles[count + 1 :], default=0) <= self.available:
            count += 1
        return count

    @property
    def loads(self) -> list[Load]:
        """The layers that are on the chip together, one load after the other."""
        fixed, rest = self.stages[: self.resident], self.stages[self.resident :]
        if not rest:
            return [Load(tuple(fixed))]
        assert self.available is not None
        room = self.available - sum(stage.tiles for stage in fixed)
        groups: list[list[Stage]] = [[]]
        for stage in rest:
            if groups[-1] and sum(s.tiles for s in groups[-1]) + stage.tiles > room:
                groups.append([])
            groups[-1].append(stage)
        # The layers that stay work together with the first of the others.
        groups[0] = [*fixed, *groups[0]]
        return [
            Load(tuple(group), math.ceil(group[0].tiles / room) if len(group) == 1 else 1)
            for group in groups
        ]

    @property
    def rewritten(self) -> int:
        """Tiles that are rewritten per batch."""
        return sum(stage.tiles for stage in self.stages[self.resident :])

    def latency(self, batch: float = 1) -> float | None:
        """Return the time of a batch of sequences, s; None if a time is not stated."""
        if self.read_time is None or (self.rewritten and self.tile_time is None):
            return None
        time = 0.0
        for load in self.loads:
            reads = [batch * stage.reads for stage in load.stages if stage.reads]
            if reads:
                time += load.parts * self.read_time * (len(reads) - 1 + max(reads))
        if self.rewritten:
            assert self.tile_time is not None
            time += self.tile_time * sum(load.parts for load in self.loads)
        return time

    def throughput(self, batch: float = 1) -> float | None:
        """Return the sequences per second with batches of a size, one batch after the other."""
        latency = self.latency(batch)
        return None if not latency else batch / latency


@dataclass(frozen=True)
class Programming:
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
        """Return the programming of weights.

        Args:
            model: The cost model.
            weights: Weights on tiles.
            pulses: Pulses per device, where write tolerances set them; else the cost model's.

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
        energy, time = costs.pulse_energy, costs.pulse_time
        return cls(
            devices,
            per_device,
            _of_pulses(devices, energy, per_device),
            _of_pulses(devices / at_once, time, per_device),
        )


def _of_pulses(count: float, pulse: Figure[float] | None, pulses: Range | None) -> Range | None:
    """Return the energy or the time of devices, from that of a pulse and the pulses of each."""
    if pulse is None or pulses is None:
        return None
    low, value, high = (one * number for one, number in zip(pulse.range, pulses, strict=True))
    return times(count, (low, value, high))


@dataclass(frozen=True)
class Costs:
    """The costs of one batch; None means that the cost model does not state a figure.

    Attributes:
        model: The cost model.
        work: The work of the batch.
        available: The tiles that are available; None for all that are needed.
        pulses: Programming pulses per device, where write tolerances set them.

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
        if self.available is not None and self.available < 1:
            raise ValueError(f"tiles is {self.available}: a number of at least 1 is accepted.")

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
            name: None if energy is None else times(reads, energy)
            for name, energy in model.read_energy().items()
        }
        parts["adapter"] = model.digital_energy(work.adapter_macs, work.is_elementwise)
        parts["attention"] = model.digital_energy(work.attention_macs)
        parts["norms"] = model.digital_energy(work.norm_macs, elementwise=True)
        parts["other digital layers"] = model.digital_energy(work.linear_macs)
        parts["key-value cache"] = model.memory_energy(work.cache_traffic)
        if self.pipeline.rewritten:
            rewritten = work.layers[self.pipeline.resident :]
            weights = sum(layer.features * layer.outputs for layer in rewritten)
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
        return costs_text(self)


def costs(
    deployment: Deployment,
    hardware: str | Path | CostModel = "hermes-1phase",
    *,
    sequence: int = 128,
    batch: int = 1,
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
        sequence: Tokens per sequence.
        batch: Sequences per batch.
        tiles: The tiles that are available, which layers share if they are too few; all that are
            needed by default.
        inputs: The model's inputs for one batch, for models that do not take ``input_ids``.

    Raises:
        ValueError: The cost model is unknown or invalid, a number is below 1, or the model has no
            positions for so many tokens.

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
    costs: Costs, *, batches_per_day: float = 10_000, examples: int = 64, passes: int = 3200
) -> Year:
    """Return the energy of a year with monthly recalibration, and of monthly reprogramming.

    A recalibration reads examples on the chip, again and again, with a backward pass of twice the
    multiply-adds in digital arithmetic for each; the digital model's outputs on the examples are
    computed once, and the adapter is rewritten once.

    Args:
        costs: The costs of one batch.
        batches_per_day: Batches per day.
        examples: Examples of a recalibration, each a sequence.
        passes: Passes of an example through the chip in one recalibration; by default those of
            `recalibrate`, 100 steps of 32 examples.

    Source:
        docs/method.md, "Energy, latency and programming cost".

    Example:
        ``year_of_operation(ag.costs(deployment, "neurram")).reprogramming``
    """
    model, work = costs.model, costs.work
    months = 12
    macs = work.macs // work.batch
    fit = sum_of(
        None if costs.energy is None else times(passes / work.batch, costs.energy),
        model.digital_energy(macs * (2 * passes + examples)),
        model.memory_energy(work.adapter_bytes),
    )
    rewriting = costs.programming.energy
    return Year(
        None if costs.energy is None else times(365 * batches_per_day, costs.energy),
        None if fit is None else times(months, fit),
        None if rewriting is None else times(months, rewriting),
    )
