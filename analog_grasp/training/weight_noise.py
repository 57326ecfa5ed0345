"""Weight noise in training: noisy copies of frozen weights, drawn for every batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from analog_grasp.adapters.frozen import FrozenLayer, LayerPattern, frozen_layers
from analog_grasp.devices.ages import AgeRange, Ages, draw, parse_ages
from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.noise_model import CardNoiseModel
from analog_grasp.kernels.noise import fits_kernel
from analog_grasp.kernels.rng import Floats, fill_normal, normal, row_key
from analog_grasp.kernels.threads import parallel_kernel


class WeightNoise:
    """Noise on the weights that are deployed on tiles, relative to each column's largest weight.

    A column is a bit line, which is one output of the layer. Deployment scales each column to its
    largest conductance, and the injected noise follows the same scale. The weights are never
    written: within `applied`, a noisy copy replaces them in the module, and they are restored
    however the block ends. Trainable weights receive the gradient of their noisy copy.

    Args:
        model: The model whose layers receive noise.
        strength: Standard deviation of Gaussian noise in units of the column maximum, 0 for none;
            or devices at drift times, such as ``"pcm-hermes-2@1d"``, ``"pcm-hermes-2@1h..1y"`` or
            several of these separated by commas (see `parse_ages`). Their programming noise, drift
            and read noise are drawn and then rescaled to the mean magnitude of the weights, as
            drift compensation does. Device and age are drawn for every batch.
        pattern: The layers, as in `frozen_layers`.

    Raises:
        ValueError: The strength is negative, a device or a time is unknown, a range is reversed,
            or the pattern matches no layer.

    Source:
        Noise injection: Joshi et al., Nat. Commun. 11, 2473 (2020); per column as in AHWA-LoRA
        (Li et al., arXiv 2411.17367).

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
        self,
        model: nn.Module,
        strength: float | Ages,
        pattern: LayerPattern = "all-linear",
    ) -> None:
        if isinstance(strength, int | float):
            noise = _gaussian_noise(strength)
            self._next_noise = lambda: noise
        else:
            self._next_noise = _device_noises(parse_ages(strength))
        self._layers = [layer for _, layer in frozen_layers(model, pattern)] if strength else []
        self._noisy: list[nn.Parameter] = []
        self._largest: dict[int, Tensor] = {}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the layers compute with newly drawn noisy weights within the block."""
        self._draw()
        weights = [layer.weight for layer in self._layers]
        try:
            for layer, weight, noisy in zip(self._layers, weights, self._noisy, strict=True):
                # Module's setter rejects a tensor that has a history.
                layer._parameters["weight"] = (
                    _NoisyCopy.apply(weight, noisy) if weight.requires_grad else noisy
                )
            yield
        finally:
            for layer, weight in zip(self._layers, weights, strict=True):
                layer.weight = weight

    @torch.no_grad()
    def _draw(self) -> None:
        """Fill the noisy copies, which are allocated once."""
        if not self._noisy:
            self._noisy = [
                nn.Parameter(torch.empty_like(layer.weight), requires_grad=False)
                for layer in self._layers
            ]
        perturb = self._next_noise()
        for i, (layer, noisy) in enumerate(zip(self._layers, self._noisy, strict=True)):
            # The key comes from torch's random state, so that torch.manual_seed seeds the noise.
            key = int(torch.randint(2**62, ()))
            perturb(layer, self._column_maximum(i, layer), key, noisy)

    def _column_maximum(self, index: int, layer: FrozenLayer) -> Tensor:
        """Return the largest magnitude of each output's weights, cached where they are frozen."""
        if index not in self._largest or layer.weight.requires_grad:
            inputs = 0 if isinstance(layer, Conv1D) else 1
            self._largest[index] = layer.weight.abs().amax(dim=inputs, keepdim=True)
        return self._largest[index]


class _NoisyCopy(torch.autograd.Function):
    """A noisy weight in place of a trainable one, which receives its gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, noisy: Tensor) -> Tensor:
        return noisy.view_as(noisy)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


_Perturb = Callable[[FrozenLayer, Tensor, int, Tensor], None]


def _gaussian_noise(strength: float) -> _Perturb:
    if not strength >= 0:
        raise ValueError(
            f"injection is {strength}: a standard deviation of at least 0, or a device at a time "
            "such as 'pcm-hermes-2@1d', is accepted."
        )

    def perturb(layer: FrozenLayer, largest: Tensor, key: int, out: Tensor) -> None:
        _add_gaussian(layer.weight.detach(), strength * largest, key, out.detach())

    return perturb


def _device_noises(ranges: Sequence[AgeRange]) -> Callable[[], _Perturb]:
    """Return a function that returns the noise of the next batch."""
    first = ranges[0]
    if len(ranges) == 1 and first.first == first.last:
        noise = _device_noise(first.card, first.first)
        return lambda: noise

    def next_noise() -> _Perturb:
        index, seconds = draw(ranges, int(torch.randint(2**62, ())))
        return _device_noise(ranges[index].card, seconds)

    return next_noise


def _device_noise(card: DeviceCard, seconds: float) -> _Perturb:
    def perturb(layer: FrozenLayer, largest: Tensor, key: int, out: Tensor) -> None:
        target = layer.weight / largest.clamp_min(torch.finfo(largest.dtype).tiny)
        read = CardNoiseModel(card, key).read_weights(target.contiguous(), seconds)
        gain = target.abs().mean() / read.abs().mean()
        torch.mul(read, gain * largest, out=out)

    return perturb


def _add_gaussian(weight: Tensor, std: Tensor, key: int, out: Tensor) -> None:
    """Write ``weight + std * N(0, 1)`` into ``out``, equal on every processor."""
    if not fits_kernel(weight):
        noise = normal(key, weight.shape, device=weight.device, dtype=weight.dtype)
        torch.addcmul(weight, noise, std, out=out)
        return
    stds = np.broadcast_to(std.numpy(), weight.shape)
    _add_gaussian_rows(len(out), weight.numpy(), stds, np.uint64(key), out.numpy())


@parallel_kernel
def _add_gaussian_rows(
    first: int, end: int, weight: Floats, std: Floats, key: np.uint64, out: Floats
) -> None:
    for row in range(first, end):
        fill_normal(row_key(key + np.uint64(row)), out[row])
        for column in range(out.shape[1]):
            out[row, column] = weight[row, column] + std[row, column] * out[row, column]
