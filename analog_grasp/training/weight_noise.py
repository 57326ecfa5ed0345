"""Noise on the weights in the training loop, drawn for every batch.

Frozen weights are multiplied in bfloat16 on processors that are faster in it, which takes down to a
quarter of the time of float32; the noise is then written in that type.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from numbers import Real
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from llvmlite import binding as llvm
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from analog_grasp.adapters.frozen import (
    FrozenLayer,
    LayerPattern,
    by_output,
    linear_layers,
)
from analog_grasp.crossbar.tile_sets import selected
from analog_grasp.devices.ages import AgeRange, Ages, draw, parse_ages
from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.noise_model import CardNoiseModel, card_on_die
from analog_grasp.kernels.compiled import Floats, parallel_kernel
from analog_grasp.kernels.noise import fits_kernel
from analog_grasp.kernels.rng import fill_normal, normal, row_key
from analog_grasp.utils.errors import shown
from analog_grasp.utils.hooks import replaced_forward
from analog_grasp.utils.seed import derive_seed


class _Weight(NamedTuple):
    """A parameter that holds the weight of a layer, or those of several, fused.

    Attributes:
        module, name: The module, and the parameter's name in it.
        inputs: The axis of the inputs.
    """

    module: nn.Module
    name: str
    inputs: int

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter."""
        parameter: nn.Parameter = getattr(self.module, self.name)
        return parameter

    def by_layer(self, tensor: Tensor) -> Sequence[Tensor]:
        """Return the views of a tensor, of the parameter's shape, that belong to each layer."""
        if tensor.dim() == 3:
            return tensor.unbind()
        return tensor.chunk(3 if self.name == "in_proj_weight" else 1)


class WeightNoise:
    """Noise on the weights that are deployed on tiles, relative to each column's largest weight.

    A column is a bit line, which is one output of the layer. Deployment scales each column to its
    largest conductance, and the injected noise follows the same scale. The weights are never
    written: within `applied`, a noisy copy replaces them in the module, and they are restored
    however the block ends. Trainable weights receive the gradient of their noisy copy. Each expert
    of a `FusedWeight`, and each of its projections of attention, is a layer.

    Args:
        model: The model whose layers receive noise.
        strength: Standard deviation of Gaussian noise in units of the column maximum, 0 for none;
            or devices at drift times, such as ``"pcm-hermes-2@1d"``, ``"pcm-hermes-2@1h..1y"`` or
            several of these separated by commas (see `parse_ages`). Their programming noise, drift
            and read noise are drawn and then rescaled to the mean magnitude of the weights, as
            drift compensation does. Device and age are drawn for every batch.
        pattern: The layers and fused weights that are on tiles, as for `deploy`.
        reduced: Multiply the frozen float32 weights of all linear layers, on tiles or not, in
            bfloat16, on processors that are made for it.

    Raises:
        ValueError: The strength is negative or not finite, a device or a time is unknown, a range
            is reversed, or the pattern matches no layer.

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
        reduced: bool = False,
    ) -> None:
        self._std = 0.0
        self._ranges: tuple[AgeRange, ...] = ()
        strength = parse_injection(strength)
        if isinstance(strength, tuple):
            self._ranges = strength
        else:
            self._std = strength
        # With LoRA on fused weights too, which are on tiles once it is folded.
        linear, fused = selected(model, pattern)
        every = linear_layers(model, "all-linear") if reduced else ()
        self._reduced = {id(layer): layer for _, layer in every if _is_reducible(layer)}
        self._on_tiles: list[_Weight] = []
        if strength:
            self._on_tiles += [_weight_of(layer) for _, layer in linear]
            for each in fused:
                axis = 1 if each.transposed else -1
                self._on_tiles.append(_Weight(each.module, each.attribute, axis))
        noisy = {id(each.module) for each in self._on_tiles}
        others = [layer for key, layer in self._reduced.items() if key not in noisy]
        self._weights = self._on_tiles + [_weight_of(layer) for layer in others]
        self._noisy: list[nn.Parameter] = []
        self._largest: dict[int, Tensor] = {}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the layers compute with newly drawn noisy weights within the block."""
        self._draw()
        weights = [each.parameter for each in self._weights]
        multiplied = {
            each.module: partial(_multiply, each.module)
            for each, weight, noisy in zip(self._weights, weights, self._noisy, strict=True)
            if noisy.dtype != weight.dtype
        }
        try:
            for (module, name, _), weight, noisy in zip(
                self._weights, weights, self._noisy, strict=True
            ):
                # Module's setter rejects a tensor that has a history.
                module._parameters[name] = (
                    _NoisyCopy.apply(weight, noisy) if weight.requires_grad else noisy
                )
            with replaced_forward(multiplied):
                yield
        finally:
            for (module, name, _), weight in zip(self._weights, weights, strict=True):
                setattr(module, name, weight)

    @torch.no_grad()
    def _draw(self) -> None:
        """Fill the noisy copies, which are allocated once."""
        if not self._noisy:
            for module, name, _ in self._weights:
                dtype = torch.bfloat16 if id(module) in self._reduced else None
                copied = getattr(module, name).detach().to(dtype, copy=True)
                self._noisy.append(nn.Parameter(copied, requires_grad=False))
        if not self._on_tiles:
            return
        device = self._next_device() if self._ranges else None
        # The weights on tiles are the first ones.
        for i, (each, noisy) in enumerate(zip(self._on_tiles, self._noisy, strict=False)):
            tensors = each.parameter.detach(), self._column_maximum(i, each), noisy.data
            for weight, largest, out in zip(*map(each.by_layer, tensors), strict=True):
                # From torch's random state, so that torch.manual_seed seeds the noise.
                key = int(torch.randint(2**62, ()))
                if device is None:
                    _add_gaussian(weight, self._std * largest, key, out)
                else:
                    _add_device_noise(weight, largest, *device, key, out)

    def _next_device(self) -> tuple[DeviceCard, float]:
        """Return the device, on the die of a chip, and the age, s, of the next batch."""
        first = self._ranges[0]
        card, seconds = first.card, first.first
        if len(self._ranges) > 1 or first.first != first.last:
            index, seconds = draw(self._ranges, int(torch.randint(2**62, ())))
            card = self._ranges[index].card
        if card.die_to_die is not None:
            # All layers are on one chip.
            card = card_on_die(card, int(torch.randint(2**62, ())))
        return card, seconds

    def _column_maximum(self, index: int, each: _Weight) -> Tensor:
        """Return the largest magnitude of each output's weights, cached where they are frozen."""
        weight = each.parameter
        if index not in self._largest or weight.requires_grad:
            self._largest[index] = weight.detach().abs().amax(dim=each.inputs, keepdim=True)
        return self._largest[index]


def _weight_of(layer: FrozenLayer) -> _Weight:
    return _Weight(layer, "weight", 0 if isinstance(layer, Conv1D) else 1)


def _is_reducible(layer: FrozenLayer) -> bool:
    """Return whether a layer is no more than a product that is faster in bfloat16."""
    return type(layer) in (nn.Linear, Conv1D) and fits_bfloat16(layer.weight)


def parse_injection(injection: float | Ages) -> float | tuple[AgeRange, ...]:
    """Return the standard deviation, or the devices at ages, of the `strength` of `WeightNoise`.

    Raises:
        ValueError: A standard deviation is negative or not finite; or as `parse_ages`.
    """
    if isinstance(injection, Sequence | DeviceCard):
        return parse_ages(injection)
    if not isinstance(injection, Real) or not 0 <= injection < math.inf:
        raise ValueError(
            f"injection is {shown(injection)}: a finite standard deviation of at least 0, or a "
            "device at a time such as 'pcm-hermes-2@1d', is accepted."
        )
    return float(injection)


def fits_bfloat16(weight: Tensor) -> bool:
    """Return whether a weight is frozen, in float32 and multiplied faster in bfloat16."""
    exact = weight.device.type == "cpu" and weight.dtype == torch.float32
    return exact and not weight.requires_grad and _multiplies_bfloat16()


@functools.cache
def _multiplies_bfloat16() -> bool:
    """Return whether the processor multiplies faster in bfloat16 than in float32."""
    has = torch.cpu.get_capabilities()
    # Without AMX, a Xeon has half the rate of float32 in bfloat16, and an EPYC up to four times it.
    zen = llvm.get_host_cpu_name().startswith("znver")
    return bool(has.get("amx_bf16") or (has.get("avx512_bf16") and zen))


def _multiply(layer: FrozenLayer, x: Tensor) -> Tensor:
    return Bfloat16Product.apply(x, by_output(layer), layer.bias)


class Bfloat16Product(torch.autograd.Function):
    """``x @ weight.T + bias`` with a frozen weight ``(D_out, D)`` in bfloat16, in the type of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        y = x.to(weight.dtype) @ weight.T
        # The sum with a bias in float32 is in float32.
        return (y if bias is None else y + bias).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        (weight,) = ctx.saved_tensors
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad.to(weight.dtype) @ weight).to(grad.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.flatten(0, -2).sum(0)
        return grad_x, None, grad_bias


class _NoisyCopy(torch.autograd.Function):
    """A noisy weight in place of a trainable one, which receives its gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, noisy: Tensor) -> Tensor:
        return noisy.view_as(noisy)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _add_device_noise(
    weight: Tensor, largest: Tensor, card: DeviceCard, seconds: float, key: int, out: Tensor
) -> None:
    """Write the weight as read from a device at an age, at its mean magnitude, into ``out``."""
    target = weight / largest.clamp_min(torch.finfo(largest.dtype).tiny)
    variance = None if card.short_term is None else torch.empty_like(target)
    noise = CardNoiseModel(card, key)
    read = noise.read_weights(target.contiguous(), seconds, variance_out=variance)
    if variance is not None:
        purpose = derive_seed(key, "short-term")
        of_read = normal(purpose, read.shape, device=read.device, dtype=read.dtype)
        read.addcmul_(variance.sqrt_(), of_read)
    # A layer of zeros reads as zeros on some devices.
    gain = target.abs().mean() / read.abs().mean().clamp_min(torch.finfo(read.dtype).tiny)
    torch.mul(read, gain * largest, out=out)


def _add_gaussian(weight: Tensor, std: Tensor, key: int, out: Tensor) -> None:
    """Write ``weight + std * N(0, 1)`` into ``out``, equal on every processor."""
    if not fits_kernel(weight):
        noise = normal(key, weight.shape, device=weight.device, dtype=weight.dtype)
        torch.addcmul(weight, noise, std, out=out)
        return
    # numpy has no bfloat16.
    written = out.view(torch.uint16).numpy() if out.dtype == torch.bfloat16 else out.numpy()
    kernel = _add_gaussian_rows if written.dtype == np.float32 else _add_gaussian_rows_bfloat16
    kernel(len(out), weight.numpy(), std.numpy(), np.uint64(key), written)


@numba.njit(inline="always")
def _noisy_row(row: int, weight: Floats, std: Floats, key: np.uint64, out: Floats) -> None:
    """Fill a row of ``weight + std * N(0, 1)``; `std` has one value per row or per column."""
    fill_normal(row_key(key + np.uint64(row)), out)
    clean, first = weight[row], std[min(row, std.shape[0] - 1)]
    if std.shape[1] == 1:
        scale = first[0]
        for column in range(out.size):
            out[column] = clean[column] + scale * out[column]
    else:
        for column in range(out.size):
            out[column] = clean[column] + first[column] * out[column]


@parallel_kernel
def _add_gaussian_rows(
    first: int, end: int, weight: Floats, std: Floats, key: np.uint64, out: Floats
) -> None:
    for row in range(first, end):
        _noisy_row(row, weight, std, key, out[row])


@parallel_kernel
def _add_gaussian_rows_bfloat16(
    first: int, end: int, weight: Floats, std: Floats, key: np.uint64, out: NDArray[np.uint16]
) -> None:
    noisy = np.empty(out.shape[1], np.float32)
    bits = noisy.view(np.uint32)
    for row in range(first, end):
        _noisy_row(row, weight, std, key, noisy)
        written = out[row]
        for column in range(written.size):
            # To the nearest, ties to even.
            odd = np.uint32(bits[column] >> np.uint32(16)) & np.uint32(1)
            rounded = np.uint32(bits[column] + np.uint32(np.uint32(0x7FFF) + odd))
            written[column] = np.uint16(rounded >> np.uint32(16))
