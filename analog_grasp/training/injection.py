"""Hardware-aware training: noise on the frozen weights, without touching the frozen weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from analog_grasp.adapters.frozen import FrozenLayer, LayerPattern, frozen_layers


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
            torch.addcmul(layer.weight, noisy.normal_(), spread, out=noisy)

    def _spread(self, layer: FrozenLayer) -> Tensor:
        inputs = 0 if isinstance(layer, Conv1D) else 1
        return self.strength * layer.weight.abs().amax(dim=inputs, keepdim=True)
