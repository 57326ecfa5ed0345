"""The energy, latency and programming cost of a deployment on one hardware."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from analog_grasp.costs.pipeline import Pipeline, Stage
from analog_grasp.costs.programming import Programming
from analog_grasp.costs.table import costs_text
from analog_grasp.costs.work import LayerWork, Work, count_work
from analog_grasp.crossbar import Deployment
from analog_grasp.crossbar.write_tolerance import mean_pulses
from analog_grasp.devices.cost_model import CostModel, Range, times


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
        parts = [energy for energy in self.energies.values() if energy is not None]
        if len(parts) < len(self.energies):
            return None
        low, value, high = (sum(part[i] for part in parts) for i in range(3))
        return low, value, high

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
