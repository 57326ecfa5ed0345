"""The state of the tiles that share their inputs."""

from typing import Any

import torch
from torch import Tensor, nn

from analog_grasp.kernels.matmul import Limbs, pack
from analog_grasp.kernels.reference import Variance


class Split(nn.Module):
    """The state of the tiles that share their inputs.

    Attributes:
        rows: The inputs.
        weight: The weights now, ``(D_out, width)``; the largest of a column is about 1.
        scale: The scale of each column, ``(D_out,)``.
        gain: Column scale times drift compensation, ``(D_out,)``.
        reference: The compensation's read-out after programming, ``(D_out,)``.
        variance: The variance of the weights from read to read.
        limbs: The weights as integers, from the first read on, where products are computed so.
        ends: The smallest and the largest target, ``(2,)``.

    Args:
        rows: The inputs.
        frozen: Their frozen weights, ``(D_out, width)``.
        dtype: The type in which the weights are stored.
    """

    weight: Tensor
    scale: Tensor
    gain: Tensor
    reference: Tensor

    def __init__(self, rows: slice, frozen: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.rows = rows
        self.register_buffer("weight", frozen.new_empty(frozen.shape, dtype=dtype), False)
        ones = frozen.new_ones(len(frozen), dtype=torch.float32)
        for name in ("scale", "gain", "reference"):
            self.register_buffer(name, ones, persistent=False)
        self.variance: Variance = None
        self.limbs: Limbs | None = None

    def map(self, weight: Tensor, scale: Tensor) -> None:
        """Set the scale of the columns for weights that are programmed, ``(D_out, width)``."""
        self.scale = self.gain = scale
        self.reference = torch.ones_like(scale)
        ends = [(weight.amin(1) / scale).min(), (weight.amax(1) / scale).max()]
        self.ends = torch.stack(ends).clamp_(-1, 1)
        self.limbs = None

    def packed(self, limbs: int, dac_step: float) -> Limbs | None:
        """Return the weights as this number of limbs; None for 0."""
        if self.limbs is None and limbs:
            self.limbs = pack(self.weight, limbs, dac_step)
        return self.limbs

    def matrix(self) -> Tensor:
        """Return the memory for the variance of each weight; once made, the same for all times."""
        if isinstance(self.variance, Tensor):
            return self.variance
        # Variances are too small for the range of float16.
        wide = self.weight.dtype != torch.float16
        return torch.empty_like(self.weight, dtype=None if wide else torch.bfloat16)

    def move_to(self, device: torch.device) -> None:
        """Move the tiles to another device."""
        for name in ("weight", "scale", "gain", "reference", "ends"):
            setattr(self, name, getattr(self, name).to(device))
        if isinstance(self.variance, Tensor):
            self.variance = self.variance.to(device)
        self.limbs = None

    def __getstate__(self) -> dict[str, Any]:
        # Limbs are not copied or saved; they are made again at the next read.
        return {**self.__dict__, "limbs": None}
