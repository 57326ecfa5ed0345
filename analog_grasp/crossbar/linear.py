"""A linear layer on crossbar tiles: programmed, drifting, read through converters."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from analog_grasp.adapters.frozen import FrozenLayer
from analog_grasp.crossbar.chip_layer import ChipLayer
from analog_grasp.crossbar.mapping import Clip, column_scale
from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.noise_model import CardNoiseModel
from analog_grasp.kernels import ReadSettings, cpu, reference
from analog_grasp.kernels.matmul import Limbs, number_of_limbs, pack
from analog_grasp.kernels.noise import fits_kernel
from analog_grasp.kernels.reference import Variance, of_tile
from analog_grasp.kernels.rng import has_triton
from analog_grasp.utils.seed import derive_seed
from analog_grasp.utils.types import DriftCompensation

STORED_TYPES = (torch.float32, torch.bfloat16, torch.float16)

# aihwkit's smallest read-out, so that a dead tile is not scaled up without bound.
_SMALLEST_READOUT = 1e-4


@dataclass(eq=False)
class Split:
    """The tiles that share their inputs.

    Attributes:
        rows: The inputs.
        weight: The weights now, ``(D_out, width)``; the largest of a column is about 1.
        scale: The scale of each column, ``(D_out,)``.
        live: 0 for a column of zeros, whose outputs are ignored, and 1 for others, ``(D_out,)``.
        gain: Column scale times drift compensation, ``(D_out,)``; 0 for a column of zeros.
        reference: The compensation's read-out after programming, ``(D_out,)``.
        ends: The smallest and the largest target of each tile, ``(tiles, 2)``.
        variance: The variance of the weights from read to read.
        keeps_limbs: Keep the weights as integers from the first read on.
        limbs: The weights as integers, where products are computed so and they are kept.
    """

    rows: slice
    weight: Tensor
    keeps_limbs: bool = True
    scale: Tensor = field(init=False)
    live: Tensor = field(init=False)
    gain: Tensor = field(init=False)
    reference: Tensor = field(init=False)
    ends: Tensor = field(init=False)
    variance: Variance = None
    limbs: Limbs | None = None

    def packed(self, limbs: int, dac_step: float) -> Limbs | None:
        """Return the weights as this number of limbs; None for 0."""
        if self.limbs is not None or not limbs:
            return self.limbs
        packed = pack(self.weight, limbs, dac_step)
        if self.keeps_limbs:
            self.limbs = packed
        return packed

    def variances(self) -> Tensor:
        """Return the memory for the variance of each weight; once made, the same for all times."""
        if isinstance(self.variance, Tensor):
            return self.variance
        # Variances are too small for the range of float16.
        wide = self.weight.dtype != torch.float16
        return torch.empty_like(self.weight, dtype=None if wide else torch.bfloat16)

    def __getstate__(self) -> dict[str, Any]:
        # Limbs are not copied or saved; they are made again at the next read.
        return {**vars(self), "limbs": None}


class CrossbarLinear(ChipLayer):
    """A frozen linear layer on tiles.

    The weight is split to the card's tiles; each column of a tile is scaled to [-1, 1]. The tiles
    that share their inputs are read in one product. Without noise the result is that of aihwkit's
    torch tile, vector by vector; with noise it is equal in distribution.

    The layer stores one copy of its weight: the weights as they are now (two where the noise from
    read to read differs by conductance: its variance is a second). Where products are sums of
    integers, the first read adds one byte per weight and limb, unless `keeps_limbs` is False. Each
    random number is a function of the chip, the tile and the position, so that the state at any
    drift time follows from the targets, tile by tile.

    Args:
        layer, card, name: As for `ChipLayer`.
        compensation: How drift is compensated: ``"global"`` scales the outputs of a tile so that
            the mean magnitude of a known read-out is what it was after programming;
            ``"per-column"`` scales each column; ``"exact"`` as global, relative to the read-out
            that the targets would give; ``"none"`` not at all.
        dtype: The type in which the weights are stored: float32, bfloat16 or float16. The
            rounding of bfloat16, 2^-9 relative, is small compared with programming noise. Behind
            a DAC of at most 8 bits products are sums of integers, with weights of 24, 8 or 16
            bits for these types; otherwise they are computed in float32. See
            `analog_grasp.kernels.matmul`.
        clip: How large weights are clipped as they are mapped; see `column_scale`.
        keeps_limbs: Keep the integers for further reads; otherwise each read makes them.

    Attributes:
        splits: The tiles, by the inputs that they share.
        write_tolerance: Tolerances to which the weights are written, broadcast to ``(D_out, D)``;
            see `analog_grasp.crossbar.write_tolerance`. None for the card's own.

    Source:
        docs/method.md, "Analog deployment"; aihwkit (Rasch et al., AICAS 2021); global drift
        compensation: Joshi et al., Nat. Commun. 11, 2473 (2020).

    Example:
        >>> from torch.nn import Linear
        >>> layer = CrossbarLinear(Linear(700, 8), DeviceCard.load("pcm-hermes-2"), "dense")
        >>> layer.tiles, layer(torch.ones(4, 700)).shape
        (3, torch.Size([4, 8]))
    """

    write_tolerance: Tensor | None = None

    def __init__(
        self,
        layer: FrozenLayer,
        card: DeviceCard,
        name: str,
        compensation: DriftCompensation = "global",
        dtype: torch.dtype = torch.float32,
        clip: Clip | None = None,
        keeps_limbs: bool = True,
    ) -> None:
        super().__init__(layer, card, name)
        self.compensation, self._clip = compensation, clip
        self._converters = None if card.converters is None else card.converters.read_settings()
        frozen = (self.frozen[:, rows] for rows in self._rows)
        stored = [weight.new_empty(weight.shape, dtype=dtype) for weight in frozen]
        self.splits = [Split(*pair, keeps_limbs) for pair in zip(self._rows, stored, strict=True)]
        self.erase()

    def targets(self) -> Tensor:
        """Return the target weights, ``(D_out, D)``, in units of the column maximum of a tile."""
        return torch.cat([self._target(split, slice(None)) for split in self.splits], 1)

    def rescale(self, input_scale: Tensor) -> None:
        """Map ``W diag(r)`` to the tiles, which are then fed with ``x / r``; program it afterwards.

        Args:
            input_scale: r, ``(D,)``, above 0.
        """
        self.input_scale = input_scale.float()
        self.erase()

    def tile_outputs(self, x: Tensor) -> list[list[Tensor]]:
        """Return what an exact chip with converters gives the ADC of each tile.

        Args:
            x: Inputs after `rescale`, ``(N, D)``.

        Returns:
            For each part of the inputs, for each tile ``(N, columns)``, in units of a full-scale
            input times the largest weight.
        """
        assert self._converters is not None
        found = []
        for split in self.splits:
            part = x[:, split.rows].float()
            largest: Tensor | float = self.input_range or 1.0
            if self._converters.by_maximum and self.input_range is None:
                largest = part.abs().amax(1, keepdim=True)
                largest = torch.where(largest > 0, largest, 1.0)
            y = (part / largest).clamp(-1, 1) @ self._target(split, slice(None)).float().T
            found.append([y[:, columns] for columns in self._columns])
        return found

    def erase(self) -> None:
        self._unread = False
        for split in self.splits:
            split.variance = None
            weight = self._programmed_weight(slice(None), split.rows)
            split.scale = scale = column_scale(weight, self._clip, self.card)
            split.reference = torch.ones_like(scale)
            ends = torch.stack([weight.amin(1), weight.amax(1)]) / scale
            split.live = ends.ne(0).any(0).to(scale.dtype)
            split.gain = scale * split.live
            by_tile = [ends[:, part].aminmax() for part in self._columns]
            split.ends = torch.stack([torch.stack(pair) for pair in by_tile]).clamp_(-1, 1)
            split.limbs = None
            for columns in self._columns:
                split.weight[columns] = self._target(split, columns)

    @torch.inference_mode(False)
    @torch.no_grad()
    def program(self, chip: int) -> None:
        """Program the weights; those at 0 s are computed when they are first needed.

        Raises:
            RuntimeError: The frozen weight was changed in place since the layer was made.
        """
        self._check_frozen()
        self._chip, self._unread = chip, True
        # The reference is read as soon as a device is programmed: there is no 1/f noise yet.
        fresh = self.card.model_copy(update={"read": None})
        for split in self.splits:
            if self.compensation == "exact":
                sizes = [self._target(split, part).abs_().mean(1) for part in self._columns]
                split.reference = self._by_tile(torch.cat(sizes))
            elif self.compensation != "none":
                self._read_back(split, fresh, 0.0)
                split.reference = self._readout(split, "reference")

    @torch.inference_mode(False)
    @torch.no_grad()
    def drift_to(self, seconds: float) -> None:
        self._check_frozen()
        self._unread = False
        for split in self.splits:
            self._read_back(split, self.card, seconds)
            split.gain = split.scale * split.live
            if self.compensation != "none":
                readout = self._readout(split, "read-out", seconds)
                split.gain = split.gain * (split.reference / readout)

    def weight_error(self) -> float:
        squares = 0.0
        for split in self._present_splits():
            compensation = (split.gain / split.scale)[:, None]
            for part in self._columns:
                error = split.weight[part] * compensation[part] - self._target(split, part)
                squares += float(error.square_().sum())
        return (squares / self.cells) ** 0.5

    def present_weight(self) -> Tensor:
        weight = torch.cat(
            [split.weight.float() * split.gain[:, None] for split in self._present_splits()], 1
        )
        return weight if self.input_scale is None else weight / self.input_scale

    def _read(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.input_scale is not None:
            x = x / self.input_scale.to(x.dtype)
        differentiable = torch.is_grad_enabled() and x.requires_grad
        supported = x.device.type == "cpu" and x.dtype in STORED_TYPES
        # Mixed precision applies to digital layers only.
        with torch.autocast(x.device.type, enabled=False):
            if supported and self._converters is not None and not differentiable:
                y = self._read_by_kernels(x, bias)
            else:
                y = self._read_by_torch(x.reshape(-1, x.shape[-1]), bias)
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _read_by_kernels(self, x: Tensor, bias: Tensor | None) -> Tensor:
        converters, splits = self._converters, self._present_splits()
        assert converters is not None
        step = converters.dac_step
        limbs = min(number_of_limbs(split.weight, step) for split in splits)
        inputs = cpu.convert(
            x,
            self._rows,
            converters,
            self.input_range,
            coded=limbs > 0,
            with_squares=any(isinstance(split.variance, float) for split in splits),
        )
        x = x.reshape(-1, x.shape[-1]).contiguous().float()
        y = x.new_empty(len(x), self.out_features)
        start = x.new_zeros(self.out_features) if bias is None else bias.float()
        ranges: Sequence[list[float] | None] = self.output_ranges or [None] * len(splits)
        for split, converted, of_tiles in zip(splits, inputs, ranges, strict=True):
            cpu.read(
                x[:, split.rows],
                converted,
                split.weight,
                split.packed(limbs, step),
                split.variance,
                converters,
                self.input_range,
                _noise_key(),
                self._columns,
                split.gain,
                start if split.rows.start == 0 else None,
                y,
                of_tiles,
            )
        return y

    def _read_by_torch(self, x: Tensor, bias: Tensor | None) -> Tensor:
        y = x.new_zeros(len(x), self.out_features)
        splits = self._present_splits()
        ranges: Sequence[list[float] | None] = self.output_ranges or [None] * len(splits)
        for split, of_tiles in zip(splits, ranges, strict=True):
            part = x[:, split.rows].float()
            if self._converters is None:
                out = reference.read_exactly(part, split.weight, split.variance, _noise_key())
            else:
                out = reference.read(
                    part,
                    split.weight,
                    split.variance,
                    self._converters,
                    self.input_range,
                    _noise_key(),
                    self._columns,
                    self._limbs_on_gpu(part, split),
                    of_tiles,
                )
            y = y + out * split.gain
        return y if bias is None else y + bias

    def _limbs_on_gpu(self, x: Tensor, split: Split) -> Limbs | None:
        """Return the weights for a GPU's integer units; None for products in float32."""
        assert self._converters is not None
        if not x.is_cuda or not len(x) or (torch.is_grad_enabled() and x.requires_grad):
            return None
        step = self._converters.dac_step
        return split.packed(number_of_limbs(split.weight, step), step)

    def _present_splits(self) -> list[Split]:
        """Return the splits as they are at the present time."""
        if self._unread:
            self.drift_to(0.0)
        return self.splits

    def _target(self, split: Split, columns: slice, out: Tensor | None = None) -> Tensor:
        """Return the targets of one tile of a split, float32, ``(columns, width)``."""
        weight = self._programmed_weight(columns, split.rows)
        target = torch.div(weight, split.scale[columns, None], out=out)
        return target if self._clip is None else target.clamp_(-1, 1)

    def _programmed_weight(self, columns: slice, rows: slice) -> Tensor:
        """Return a part of the weight that is programmed, in frozen units."""
        weight = self.frozen[columns, rows]
        return weight if self.input_scale is None else weight * self.input_scale[rows]

    def _read_back(self, split: Split, card: DeviceCard, seconds: float) -> None:
        """Compute the weights at a time, and their variance from read to read, tile by tile."""
        of_chip = CardNoiseModel(card, chip=self._chip)
        constants = {of_chip.constant_short_term_variance(ends) for ends in split.ends}
        # With one device per weight it depends on the ends of the tile.
        constant = constants.pop() if len(constants) == 1 else None
        matrix = split.variances() if constant is None else None
        split.variance = constant or matrix
        split.limbs = None
        tolerances = self.write_tolerance
        if _on_gpu(split.weight) and tolerances is None and not of_chip.is_exact:
            # The weight of a Conv1D is transposed.
            targets, tiles = self._target(split, slice(None)).contiguous(), self._tiles(split.rows)
            of_chip.read_tiles(targets, split.ends, tiles, seconds, split.weight, matrix)
            return
        tolerances = None if tolerances is None else tolerances.expand(self.frozen.shape)
        for columns, seed in self._tiles(split.rows):
            # In float32 these are the stored tensors themselves; else copies of one tile.
            weight = split.weight[columns]
            now = weight.float()
            variance = None if matrix is None else matrix[columns].float()
            self._target(split, columns, out=now)
            tolerance = None if tolerances is None else tolerances[columns, split.rows]
            noise = CardNoiseModel(card, seed, self._chip, tolerance)
            noise.read_weights(now, seconds, out=now, variance_out=variance)
            weight.copy_(now)
            if matrix is not None and variance is not None:
                matrix[columns] = variance

    def _readout(self, split: Split, purpose: str, seconds: float = 0.0) -> Tensor:
        """Return the read-out that drift compensation divides by, ``(D_out,)``."""
        settings = self._converters or ReadSettings()
        tiles = [(p, derive_seed(seed, purpose, seconds)) for p, seed in self._tiles(split.rows)]
        if _on_gpu(split.weight):
            from analog_grasp.kernels.cuda_noise import column_readouts

            columns = column_readouts(split.weight, split.variance, settings, tiles)
        else:
            columns = torch.cat([self._tile_readout(split, *tile, settings) for tile in tiles])
        return self._by_tile(columns).clamp_(min=_SMALLEST_READOUT)

    def _tile_readout(self, split: Split, part: slice, key: int, settings: ReadSettings) -> Tensor:
        """Return the read-out of each column of one tile."""
        weight, variance = split.weight[part].float(), of_tile(split.variance, part)
        kernel = cpu if fits_kernel(weight) else reference
        return kernel.column_readout(weight, variance, settings, key)

    def _by_tile(self, columns: Tensor) -> Tensor:
        """Average the read-outs of columns, ``(D_out,)``, over each tile, unless per column."""
        if self.compensation == "per-column":
            return columns
        tiles = [columns[part] for part in self._columns]
        return torch.cat([tile.mean().expand(len(tile)) for tile in tiles])

    def _move_tiles(self, device: torch.device) -> None:
        for split in self.splits:
            for name in ("weight", "scale", "gain", "reference", "ends"):
                setattr(split, name, getattr(split, name).to(device))
            if isinstance(split.variance, Tensor):
                split.variance = split.variance.to(device)
            split.limbs = None


def _on_gpu(weight: Tensor) -> bool:
    """Return whether the kernels for GPUs program tiles with these weights."""
    return weight.is_cuda and has_triton()


def _noise_key() -> int:
    """Return the key of the noise of a read, from torch's random state."""
    return int(torch.randint(2**62, ()))
