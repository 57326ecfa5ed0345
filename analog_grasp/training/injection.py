"""Hardware-aware training: noise on the frozen weights, without touching the frozen weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import numba
import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from analog_grasp.adapters.frozen import FrozenLayer, LayerPattern, frozen_layers
from analog_grasp.devices.random import (
    NORMAL_TABLE,
    Floats,
    fill_normal,
    normal,
    row_key,
    use_torch_threads,
)


class WeightNoise:
    """Gaussian noise on frozen weights, relative to the largest weight of each column.

    A column is a bit line, that is one output of the layer: deployment scales each to its
    largest conductance, and injection follows the same scale. The frozen tensors are never
    written: within `applied`, a noisy stand-in takes their place in the module, and they are put
    back whatever ends the block.

    Args:
        model: The model whose frozen layers get noise.
        strength: Standard deviation in units of the column maximum; 0 for none.
        pattern: Which layers, as in `frozen_layers`.

    Raises:
        ValueError: The strength is negative, or the pattern matches no layer.

    Source:
        Hardware-aware noise injection: Joshi et al., Nat. Commun. 11, 2473 (2020); by column as
        in AHWA-LoRA (Li et al., arXiv 2411.17367).

    Example:
        >>> linear = nn.Linear(4, 2)
        >>> noise, frozen = WeightNoise(nn.Sequential(linear), 0.1), linear.weight
        >>> with noise.applied():
        ...     linear.weight is frozen
        False
        >>> linear.weight is frozen
        True
    """

    def __init__(
        self, model: nn.Module, strength: float, pattern: LayerPattern = "all-linear"
    ) -> None:
        if not strength >= 0:
            raise ValueError(f"injection is {strength}: a spread must be 0 or more.")
        self.strength = strength
        self._layers = [layer for _, layer in frozen_layers(model, pattern)] if strength else []
        self._noisy: list[nn.Parameter] = []
        self._spreads: list[Tensor] = []

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the layers compute with freshly drawn noisy weights."""
        self._draw()
        frozen = [layer.weight for layer in self._layers]
        try:
            for layer, noisy in zip(self._layers, self._noisy, strict=True):
                layer.weight = noisy
            yield
        finally:
            for layer, weight in zip(self._layers, frozen, strict=True):
                layer.weight = weight

    @torch.no_grad()
    def _draw(self) -> None:
        """Fill the stand-ins, allocated once: W + strength * column maximum * N(0, 1)."""
        if not self._noisy:
            self._noisy = [
                nn.Parameter(torch.empty_like(layer.weight), requires_grad=False)
                for layer in self._layers
            ]
            self._spreads = [self._spread(layer) for layer in self._layers]
        for layer, noisy, spread in zip(self._layers, self._noisy, self._spreads, strict=True):
            # From torch's own random state, so that whoever seeds it seeds this noise.
            _perturb(layer.weight, spread, int(torch.randint(2**62, ())), noisy)

    def _spread(self, layer: FrozenLayer) -> Tensor:
        inputs = 0 if isinstance(layer, Conv1D) else 1
        return self.strength * layer.weight.abs().amax(dim=inputs, keepdim=True)


def _perturb(weight: Tensor, spread: Tensor, key: int, out: Tensor) -> None:
    """Put weight + spread * N(0, 1) into ``out``; the numbers are the same on every processor."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not weight.is_contiguous():
        noise = normal(key, weight.shape, device=weight.device, dtype=weight.dtype)
        torch.addcmul(weight, noise, spread, out=out)
        return
    use_torch_threads()
    spreads = np.broadcast_to(spread.numpy(), weight.shape)
    _perturb_rows(weight.numpy(), spreads, np.uint64(key), NORMAL_TABLE, out.numpy())


@numba.njit(parallel=True, cache=True)
def _perturb_rows(
    weight: Floats, spread: Floats, key: np.uint64, table: Floats, out: Floats
) -> None:
    for row in numba.prange(out.shape[0]):
        fill_normal(row_key(key + np.uint64(row)), table, out[row])
        for column in range(out.shape[1]):
            out[row, column] = weight[row, column] + spread[row, column] * out[row, column]
