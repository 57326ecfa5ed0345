"""Hardware-aware training: noise on the weights of the tiles, without touching the weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from analog_grasp.adapters.frozen import FrozenLayer, LayerPattern, frozen_layers
from analog_grasp.devices.noise_model import CardNoiseModel
from analog_grasp.kernels.programming import fits_kernel
from analog_grasp.kernels.rng import Floats, fill_normal, normal, row_key
from analog_grasp.kernels.threads import parallel_kernel
from analog_grasp.training.loss import card_at_time


class WeightNoise:
    """Noise on the weights that go onto tiles, relative to the largest weight of each column.

    A column is a bit line, that is one output of the layer: deployment scales each to its
    largest conductance, and injection follows the same scale. The weights themselves are never
    written: within `applied`, a noisy stand-in takes their place in the module, and they are put
    back whatever ends the block. Weights that are trained get the gradient of their stand-in.

    Args:
        model: The model whose layers get noise.
        strength: Standard deviation of Gaussian noise in units of the column maximum, 0 for none;
            or ``"NAME@TIME"`` for that of a device card's devices at a drift time, brought back to
            the mean magnitude of the weights as drift compensation does.
        pattern: Which layers, as in `frozen_layers`.

    Raises:
        ValueError: The strength is negative or names no card and time, or the pattern matches no
            layer.

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
        self, model: nn.Module, strength: float | str, pattern: LayerPattern = "all-linear"
    ) -> None:
        self._disturb = _from_card(strength) if isinstance(strength, str) else _gaussian(strength)
        self._layers = [layer for _, layer in frozen_layers(model, pattern)] if strength else []
        self._noisy: list[nn.Parameter] = []
        self._largest: dict[int, Tensor] = {}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the layers compute with freshly drawn noisy weights."""
        self._draw()
        weights = [layer.weight for layer in self._layers]
        try:
            for layer, weight, noisy in zip(self._layers, weights, self._noisy, strict=True):
                # Past the setter of modules, which takes no tensor that has a history.
                layer._parameters["weight"] = (
                    _StandIn.apply(weight, noisy) if weight.requires_grad else noisy
                )
            yield
        finally:
            for layer, weight in zip(self._layers, weights, strict=True):
                layer.weight = weight

    @torch.no_grad()
    def _draw(self) -> None:
        """Fill the stand-ins, which are allocated once."""
        if not self._noisy:
            self._noisy = [
                nn.Parameter(torch.empty_like(layer.weight), requires_grad=False)
                for layer in self._layers
            ]
        for i, (layer, noisy) in enumerate(zip(self._layers, self._noisy, strict=True)):
            # From torch's own random state, so that whoever seeds it seeds this noise.
            key = int(torch.randint(2**62, ()))
            self._disturb(layer, self._column_maximum(i, layer), key, noisy)

    def _column_maximum(self, index: int, layer: FrozenLayer) -> Tensor:
        """The largest magnitude of each output's weights; found once where they are frozen."""
        if index not in self._largest or layer.weight.requires_grad:
            inputs = 0 if isinstance(layer, Conv1D) else 1
            self._largest[index] = layer.weight.abs().amax(dim=inputs, keepdim=True)
        return self._largest[index]


class _StandIn(torch.autograd.Function):
    """A noisy weight in place of a trained one, which gets its gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, noisy: Tensor) -> Tensor:
        return noisy.view_as(noisy)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


_Disturb = Callable[[FrozenLayer, Tensor, int, Tensor], None]


def _gaussian(strength: float) -> _Disturb:
    if not strength >= 0:
        raise ValueError(f"injection is {strength}: a spread must be 0 or more.")

    def disturb(layer: FrozenLayer, largest: Tensor, key: int, out: Tensor) -> None:
        _perturb(layer.weight.detach(), strength * largest, key, out.detach())

    return disturb


def _from_card(text: str) -> _Disturb:
    card, seconds = card_at_time("injection", text)

    def disturb(layer: FrozenLayer, largest: Tensor, key: int, out: Tensor) -> None:
        target = layer.weight / largest.clamp_min(torch.finfo(largest.dtype).tiny)
        read = CardNoiseModel(card, key).read_weights(target.contiguous(), seconds)
        gain = target.abs().mean() / read.abs().mean()
        torch.mul(read, gain * largest, out=out)

    return disturb


def _perturb(weight: Tensor, spread: Tensor, key: int, out: Tensor) -> None:
    """Put weight + spread * N(0, 1) into ``out``; the numbers are the same on every processor."""
    if not fits_kernel(weight):
        noise = normal(key, weight.shape, device=weight.device, dtype=weight.dtype)
        torch.addcmul(weight, noise, spread, out=out)
        return
    spreads = np.broadcast_to(spread.numpy(), weight.shape)
    _perturb_rows(len(out), weight.numpy(), spreads, np.uint64(key), out.numpy())


@parallel_kernel
def _perturb_rows(
    first: int, end: int, weight: Floats, spread: Floats, key: np.uint64, out: Floats
) -> None:
    for row in range(first, end):
        fill_normal(row_key(key + np.uint64(row)), out[row])
        for column in range(out.shape[1]):
            out[row, column] = weight[row, column] + spread[row, column] * out[row, column]
