"""A linear layer on crossbar tiles: programmed, drifting, read through converters."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from analog_grasp.adapters.frozen import FrozenLayer, by_output
from analog_grasp.crossbar.converters import (
    ReadSettings,
    Variance,
    of_tile,
    read,
    read_exactly,
    read_fast,
    readout,
)
from analog_grasp.devices import CardNoiseModel, DeviceCard, derive_seed

DriftCompensation = Literal["global", "per-column", "exact", "none"]

# aihwkit's least read-out, so that a dead tile is not scaled up without bound.
_LEAST_READOUT = 1e-4


class CrossbarLinear(nn.Module):
    """A frozen linear layer on tiles.

    The weight is cut to the card's tiles; each column of a tile is scaled to [-1, 1]. The tiles
    that share their inputs are read in one product. Without noise the result is that of aihwkit's
    torch tile, vector by vector; with it, it is equal in distribution.

    The layer refers to the frozen weight, which it never writes, and holds one copy of its own:
    the weights as they are now. Every random number is a function of the chip, the tile and the
    place, so that the state at any drift time follows from the targets.

    Input ``(..., D)``, output ``(..., D_out)``.

    Args:
        layer: ``nn.Linear``, or ``Conv1D`` whose weight is stored transposed.
        card: The device.
        name: Names the layer's tiles on the chip.
        compensation: How drift is compensated: ``"global"`` scales the outputs of a tile so that
            the mean magnitude of a known read-out is what it was after programming;
            ``"per-column"`` each column by itself; ``"exact"`` as global, against the read-out
            that the targets would have given; ``"none"`` not at all.

    Source:
        METHOD 3; aihwkit (Rasch et al., AICAS 2021); global drift compensation: Joshi et al.,
        Nat. Commun. 11, 2473 (2020).

    Example:
        >>> layer = CrossbarLinear(nn.Linear(700, 8), DeviceCard.load("pcm-hermes-2"), "dense")
        >>> layer.tiles, layer(torch.ones(4, 700)).shape
        (3, torch.Size([4, 8]))
    """

    bias: Tensor | None

    def __init__(
        self,
        layer: FrozenLayer,
        card: DeviceCard,
        name: str,
        compensation: DriftCompensation = "global",
    ) -> None:
        super().__init__()
        self.name, self.card, self.compensation = name, card, compensation
        converters = card.converters
        self._settings = None if converters is None else ReadSettings.of(converters)
        self.input_range: float | None = None
        self.digital = False
        self._frozen = by_output(layer)
        self._version = self._frozen._version
        self.out_features: int = self._frozen.shape[0]
        self.in_features: int = self._frozen.shape[1]
        bias: Tensor | None = layer.bias
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self._rows = parts(self.in_features, card.tile.rows)
        self._columns = parts(self.out_features, card.tile.columns)
        self.splits = nn.ModuleList(
            _Split(rows, *scaled_columns(self._frozen[:, rows])) for rows in self._rows
        )
        self._chip = 0

    @property
    def weight(self) -> Tensor:
        """The frozen weight that was put on the tiles, ``(D_out, D)``."""
        return self._frozen

    @property
    def tiles(self) -> int:
        """How many tiles the layer takes."""
        return len(self._rows) * len(self._columns)

    @property
    def cells(self) -> int:
        """Cross-points that hold a weight."""
        return self.in_features * self.out_features

    def program(self, chip: int) -> None:
        """Program the weights onto a chip instance; to be followed by `drift_to`.

        Raises:
            RuntimeError: The frozen weight was changed in place since the layer was made.
        """
        self._chip = chip
        # The compensation's reference is read as soon as a device is programmed: no 1/f noise yet.
        fresh = self.card.model_copy(update={"read": None})
        for split in self._splits():
            if self.compensation == "exact":
                split.reference = self._by_tile(self._target(split).abs().mean(1))
            elif self.compensation != "none":
                self._read_back(split, fresh, 0.0)
                split.reference = self._readout(split, "reference")

    def drift_to(self, seconds: float) -> None:
        """Let the tiles age to a time since programming, s.

        Raises:
            RuntimeError: As `program`.
        """
        for split in self._splits():
            self._read_back(split, self.card, seconds)
            split.gain = split.scale
            if self.compensation != "none":
                split.gain = split.scale * (
                    split.reference / self._readout(split, "read-out", seconds)
                )

    def weight_error(self) -> float:
        """Root mean square of (weight now - target), in units of the column maximum.

        The weight now is what the digital side makes of it, drift compensation applied.
        """
        squares = 0.0
        for split in self._splits():
            now = split.weight * (split.gain / split.scale)[:, None]
            squares += float((now - self._target(split)).square().sum())
        return (squares / self.cells) ** 0.5

    def forward(self, x: Tensor) -> Tensor:
        """Compute ``(..., D_out)`` from ``(..., D)``."""
        if self.digital:
            return nn.functional.linear(x, self._frozen.to(x.dtype), self.bias)
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        y = self._fast(rows) if self._is_fast(x) else self._slow(rows)
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype).view(*x.shape[:-1], -1)

    def _is_fast(self, x: Tensor) -> bool:
        differentiable = torch.is_grad_enabled() and x.requires_grad
        plain = x.device.type == "cpu" and x.dtype == torch.float32
        return plain and self._settings is not None and not differentiable

    def _fast(self, x: Tensor) -> Tensor:
        y = x.new_zeros(len(x), self.out_features)
        assert self._settings is not None
        for split in self._splits():
            read_fast(
                x,
                split.rows.start,
                split.weight,
                split.variance,
                self._settings,
                self.input_range,
                _key(),
                self._columns,
                split.gain,
                y,
            )
        return y

    def _slow(self, x: Tensor) -> Tensor:
        y = x.new_zeros(len(x), self.out_features)
        for split in self._splits():
            part = x[:, split.rows].to(split.weight.dtype)
            if self._settings is None:
                out = read_exactly(part, split.weight, split.variance, _key())
            else:
                out = read(
                    part,
                    split.weight,
                    split.variance,
                    self._settings,
                    self.input_range,
                    _key(),
                    self._columns,
                )
            y = y + out * split.gain
        return y

    def _splits(self) -> "list[_Split]":
        return list(self.splits)  # type: ignore[arg-type]

    def _target(self, split: "_Split") -> Tensor:
        """The targets of the tiles of a split, ``(D_out, width)``."""
        if self._frozen._version != self._version:
            raise RuntimeError(
                f"The frozen weight of the layer {self.name} was changed in place after it was "
                "deployed: deploy the model again."
            )
        return self._frozen[:, split.rows].float() / split.scale[:, None]

    def _tiles(self, split: "_Split") -> list[tuple[slice, int]]:
        """The columns of each tile, and the seed of its devices."""
        return [
            (part, tile_seed(self._chip, self.name, split.rows, part)) for part in self._columns
        ]

    def _read_back(self, split: "_Split", card: DeviceCard, seconds: float) -> None:
        """Put the weights at a time, and their variance from read to read."""
        target = self._target(split)
        constant = CardNoiseModel(card).constant_short_term_variance(target)
        matrix = torch.empty_like(target) if constant is None else None
        split.variance = constant or matrix
        for columns, seed in self._tiles(split):
            CardNoiseModel(card, seed, self._chip).read_weights(
                target[columns],
                seconds,
                out=split.weight[columns],
                variance_out=None if matrix is None else matrix[columns],
            )

    def _readout(self, split: "_Split", purpose: str, seconds: float = 0.0) -> Tensor:
        columns = [
            readout(
                split.weight[part],
                of_tile(split.variance, part),
                self._settings,
                derive_seed(seed, purpose, seconds),
            )
            for part, seed in self._tiles(split)
        ]
        return self._by_tile(torch.cat(columns)).clamp(min=_LEAST_READOUT)

    def _by_tile(self, columns: Tensor) -> Tensor:
        """A read-out of each column, ``(D_out,)``, as the compensation takes it."""
        if self.compensation == "per-column":
            return columns
        tiles = [columns[part] for part in self._columns]
        return torch.cat([tile.mean().expand(len(tile)) for tile in tiles])


class _Split(nn.Module):
    """The state of the tiles that share their inputs.

    Attributes:
        rows: Which inputs.
        weight: The weights as they are now, ``(D_out, width)``; the largest of a column is about 1.
        scale: The scale of each column, ``(D_out,)``.
        gain: Column scale times drift compensation, ``(D_out,)``.
        reference: The compensation's read-out after programming, ``(D_out,)``.
        variance: Of the weights from read to read.
    """

    weight: Tensor
    scale: Tensor
    gain: Tensor
    reference: Tensor

    def __init__(self, rows: slice, weight: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.rows = rows
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("gain", scale)
        self.register_buffer("reference", torch.ones_like(scale))
        self.variance: Variance = None


def scaled_columns(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight ``(D_out, width)`` with each column scaled to [-1, 1], and the scales ``(D_out,)``.

    A column is a bit line, one output; one of zeros has the scale 1.
    """
    weight = weight.float()
    scale = weight.abs().amax(1)
    scale = torch.where(scale > 0, scale, 1.0)
    return weight / scale[:, None], scale


def tile_seed(chip: int, layer: str, rows: slice, columns: slice) -> int:
    """Names the devices of one tile of a chip instance."""
    return derive_seed(chip, layer, rows.start, columns.start)


def parts(size: int, largest: int) -> list[slice]:
    """Cut an axis as aihwkit does: into parts as even as can be, the larger ones first."""
    count = math.ceil(size / largest)
    ends = [-(-size * i // count) for i in range(count + 1)]
    return [slice(*ends[i : i + 2]) for i in range(count)]


def _key() -> int:
    """Names the noise of a read; from torch's random state, so that whoever seeds it seeds this."""
    return int(torch.randint(2**62, ()))
