"""A linear layer on crossbar tiles: programmed, drifting, read through converters."""

import math

import torch
from torch import Tensor, nn

from analog_grasp.adapters.frozen import FrozenLayer, by_output
from analog_grasp.crossbar.converters import read_settings, readout
from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.noise_model import CardNoiseModel
from analog_grasp.kernels import cpu
from analog_grasp.kernels.matmul import Packed, pack
from analog_grasp.kernels.reference import Variance, of_tile, read, read_exactly
from analog_grasp.utils.seed import derive_seed
from analog_grasp.utils.types import DriftCompensation

STORED_TYPES = (torch.float32, torch.bfloat16, torch.float16)

# aihwkit's least read-out, so that a dead tile is not scaled up without bound.
_LEAST_READOUT = 1e-4


class CrossbarLinear(nn.Module):
    """A frozen linear layer on tiles.

    The weight is cut to the card's tiles; each column of a tile is scaled to [-1, 1]. The tiles
    that share their inputs are read in one product. Without noise the result is that of aihwkit's
    torch tile, vector by vector; with it, it is equal in distribution.

    The layer refers to the frozen weight, which it never writes, and holds one copy of its own:
    the weights as they are now (two where the noise from read to read differs by conductance: it
    is kept beside them). Where they are multiplied in bytes, these come beside them with the first
    read. Every random number is a function of the chip, the tile and the place, so that the state
    at any drift time follows from the targets, tile by tile, without another copy.

    Input ``(..., D)``, output ``(..., D_out)``.

    Args:
        layer: ``nn.Linear``, or ``Conv1D`` whose weight is stored transposed.
        card: The device.
        name: Names the layer's tiles on the chip.
        compensation: How drift is compensated: ``"global"`` scales the outputs of a tile so that
            the mean magnitude of a known read-out is what it was after programming;
            ``"per-column"`` each column by itself; ``"exact"`` as global, against the read-out
            that the targets would have given; ``"none"`` not at all.
        dtype: What the weights are kept in: float32, bfloat16 or float16. Rounding to bfloat16,
            2^-9 relative, is small beside what a device misses its target by. They are read in
            float32; products with those in bfloat16 are computed in bfloat16 or in bytes where the
            processor is faster so, see `analog_grasp.kernels.matmul`.

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
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.name, self.card, self.compensation = name, card, compensation
        converters = card.converters
        self._settings = None if converters is None else read_settings(converters)
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
            _Split(rows, self._frozen[:, rows], dtype) for rows in self._rows
        )
        for split in self._splits():
            for columns in self._columns:
                split.weight[columns] = self._target(split, columns)
        self._chip = 0
        self._unread = False

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
        """Program the weights onto a chip instance; it is then 0 s old.

        The weights at 0 s are read when they are first needed, since most chips are aged at once.

        Raises:
            RuntimeError: The frozen weight was changed in place since the layer was made.
        """
        self._check_frozen()
        self._chip, self._unread = chip, True
        # The compensation's reference is read as soon as a device is programmed: no 1/f noise yet.
        fresh = self.card.model_copy(update={"read": None})
        for split in self._splits():
            if self.compensation == "exact":
                sizes = [self._target(split, part).abs_().mean(1) for part in self._columns]
                split.reference = self._by_tile(torch.cat(sizes))
            elif self.compensation != "none":
                self._read_back(split, fresh, 0.0)
                split.reference = self._readout(split, "reference")

    def drift_to(self, seconds: float) -> None:
        """Let the tiles age to a time since programming, s; to any, in any order.

        Raises:
            RuntimeError: As `program`.
        """
        self._check_frozen()
        self._unread = False
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
        for split in self._now():
            compensation = (split.gain / split.scale)[:, None]
            for part in self._columns:
                error = split.weight[part] * compensation[part] - self._target(split, part)
                squares += float(error.square_().sum())
        return (squares / self.cells) ** 0.5

    def forward(self, x: Tensor) -> Tensor:
        """Compute ``(..., D_out)`` from ``(..., D)``."""
        if self.digital:
            return nn.functional.linear(x, self._frozen.to(x.dtype), self.bias)
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        # What is analog is not computed in a lower precision because digital layers are.
        with torch.autocast(x.device.type, enabled=False):
            y = self._fast(rows.float()) if self._is_fast(x) else self._slow(rows)
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _is_fast(self, x: Tensor) -> bool:
        differentiable = torch.is_grad_enabled() and x.requires_grad
        plain = x.device.type == "cpu" and x.dtype in STORED_TYPES
        return plain and self._settings is not None and not differentiable

    def _fast(self, x: Tensor) -> Tensor:
        y = x.new_empty(len(x), self.out_features)
        start = x.new_zeros(self.out_features) if self.bias is None else self.bias.float()
        assert self._settings is not None
        for split in self._now():
            if split.packed is None:
                split.packed = pack(split.weight, self._settings.dac_step)
            cpu.read(
                x,
                split.rows.start,
                split.weight,
                split.packed,
                split.variance,
                self._settings,
                self.input_range,
                _key(),
                self._columns,
                split.gain,
                start if split.rows.start == 0 else None,
                y,
            )
        return y

    def _slow(self, x: Tensor) -> Tensor:
        y = x.new_zeros(len(x), self.out_features)
        for split in self._now():
            part = x[:, split.rows].float()
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
        return y if self.bias is None else y + self.bias

    def _splits(self) -> "list[_Split]":
        return list(self.splits)  # type: ignore[arg-type]

    def _now(self) -> "list[_Split]":
        """The splits as they are at the present time."""
        if self._unread:
            # A tensor made in inference mode would be refused where a gradient is asked later.
            with torch.inference_mode(False), torch.no_grad():
                self.drift_to(0.0)
        return self._splits()

    def _check_frozen(self) -> None:
        if self._frozen._version != self._version:
            raise RuntimeError(
                f"The frozen weight of the layer {self.name} was changed in place after it was "
                "deployed: deploy the model again."
            )

    def _target(self, split: "_Split", columns: slice, out: Tensor | None = None) -> Tensor:
        """The targets of one tile of a split, float32, ``(columns, width)``."""
        weight = self._frozen[columns, split.rows]
        return torch.div(weight, split.scale[columns, None], out=out)

    def _tiles(self, split: "_Split") -> list[tuple[slice, int]]:
        """The columns of each tile, and the seed of its devices."""
        return [
            (part, tile_seed(self._chip, self.name, split.rows, part)) for part in self._columns
        ]

    def _read_back(self, split: "_Split", card: DeviceCard, seconds: float) -> None:
        """Put the weights at a time, and their variance from read to read, tile by tile."""
        constant = CardNoiseModel(card).constant_short_term_variance(split.ends)
        matrix = split.matrix() if constant is None else None
        split.variance = constant or matrix
        split.packed = None
        for columns, seed in self._tiles(split):
            # In float32 these are the stored tensors themselves; else copies of one tile.
            weight = split.weight[columns]
            now = weight.float()
            spread = None if matrix is None else matrix[columns].float()
            self._target(split, columns, out=now)
            noise = CardNoiseModel(card, seed, self._chip)
            noise.read_weights(now, seconds, out=now, variance_out=spread)
            weight.copy_(now)
            if matrix is not None and spread is not None:
                matrix[columns] = spread

    def _readout(self, split: "_Split", purpose: str, seconds: float = 0.0) -> Tensor:
        columns = [
            readout(
                split.weight[part].float(),
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
        packed: The weights in bytes, where they are multiplied so, once they have been read.
        ends: The least and the largest target, ``(2,)``.

    Args:
        rows: Which inputs.
        frozen: Their frozen weights, ``(D_out, width)``.
        dtype: Of the weights kept.
    """

    weight: Tensor
    scale: Tensor
    gain: Tensor
    reference: Tensor

    def __init__(self, rows: slice, frozen: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.rows = rows
        scale = column_scale(frozen)
        self.register_buffer("weight", frozen.new_empty(frozen.shape, dtype=dtype))
        self.register_buffer("scale", scale)
        self.register_buffer("gain", scale)
        self.register_buffer("reference", torch.ones_like(scale))
        self.variance: Variance = None
        self.packed: Packed | None = None
        self.ends = torch.stack([(frozen.amin(1) / scale).min(), (frozen.amax(1) / scale).max()])

    def matrix(self) -> Tensor:
        """Where the variance of each weight is kept; once made, the same for all times."""
        if isinstance(self.variance, Tensor):
            return self.variance
        # Variances are too small for the range of float16.
        wide = self.weight.dtype != torch.float16
        return torch.empty_like(self.weight, dtype=None if wide else torch.bfloat16)


def column_scale(weight: Tensor) -> Tensor:
    """The largest magnitude of each column, ``(D_out,)`` of ``(D_out, width)``, float32.

    A column is a bit line, one output; one of zeros has the scale 1. Divided by it, the weights of
    a column lie in [-1, 1].
    """
    # Not abs(), which would make a copy of the weight.
    scale = torch.maximum(weight.amax(1), -weight.amin(1)).float()
    return torch.where(scale > 0, scale, 1.0)


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
