"""Latency of a batch: a pipeline over layers, with all tiles or with tiles that layers share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """A layer in a pipeline.

    Attributes:
        name: The layer's name.
        tiles: Its tiles.
        reads: Its input vectors per sequence.
    """

    name: str
    tiles: int
    reads: float


@dataclass(frozen=True)
class Load:
    """Layers that are on the chip at the same time.

    Attributes:
        stages: The layers, in the order of the model.
        parts: 1, or the number of times that the tiles are rewritten for a single layer that needs
            more tiles than there are.
    """

    stages: tuple[Stage, ...]
    parts: int = 1


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
            Load(tuple(group), math.ceil(max(stage.tiles for stage in group) / room))
            if len(group) == 1
            else Load(tuple(group))
            for group in groups
        ]

    @property
    def rewritten(self) -> int:
        """Tiles that are rewritten per batch."""
        return sum(stage.tiles for stage in self.stages[self.resident :])

    def latency(self, batch: float = 1) -> float | None:
        """Return the time of a batch, s; None if a time that it depends on is not stated.

        Args:
            batch: Sequences per batch.
        """
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
