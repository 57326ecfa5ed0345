"""Converters in the training loop: DACs, output noise and ADCs with straight-through gradients."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from analog_grasp.adapters.frozen import FrozenLayer, LayerPattern, base_name, frozen_layers
from analog_grasp.crossbar.linear import CrossbarLinear
from analog_grasp.devices.card import Device, DeviceCard


class ConverterLoop:
    """A card's converters around the layers that are deployed on tiles.

    Within `applied`, each layer computes what its deployed copy would compute with exact devices:
    quantised inputs, output noise and quantised outputs, per tile and scaled per column. The
    gradient is that of the exact product (straight-through).

    Args:
        model: The model whose layers receive converters.
        device: The device card that states them: a name, a path or a `DeviceCard`.
        pattern: The layers, as in `frozen_layers`.

    Raises:
        ValueError: The device is unknown or states no converters, or the pattern matches no layer.

    Source:
        Straight-through estimator: Bengio, Leonard and Courville, arXiv 1308.3432. Converters in
        the training loop: Joshi et al., Nat. Commun. 11, 2473 (2020).

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 2))
        >>> x = torch.tensor([[1.0, 0.5, 0.251, 0.0]])
        >>> with ConverterLoop(model, "pcm-hermes-2").applied():
        ...     converted = model(x)
        >>> torch.equal(converted, model(x))
        False
    """

    def __init__(
        self, model: nn.Module, device: Device, pattern: LayerPattern = "all-linear"
    ) -> None:
        card = card_with_converters(device)
        self._layers = [
            _ConvertedLayer(layer, base_name(path), card)
            for path, layer in frozen_layers(model, pattern)
        ]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the layers compute through converters within the block.

        Weight noise must be applied inside the block: columns are scaled by the weights at its
        beginning, which are the targets of a chip.
        """
        try:
            for layer in self._layers:
                layer.begin()
            yield
        finally:
            for layer in self._layers:
                layer.end()


def card_with_converters(device: Device) -> DeviceCard:
    """Return the card of a device, which must state converters.

    Raises:
        ValueError: The device is unknown or states no converters.

    Example:
        >>> card_with_converters("pcm-hermes-2").converters.adc_bits
        8
    """
    card = DeviceCard.load(device)
    if card.converters is None:
        raise ValueError(
            f"converters is {card.name!r}, a device that states no converters: give a device "
            "with converters, or none for exact arithmetic."
        )
    return card


class _ConvertedLayer:
    """A frozen layer, and the tiles that it is computed on within the loop."""

    def __init__(self, layer: FrozenLayer, name: str, card: DeviceCard) -> None:
        self._layer, self._name, self._card = layer, name, card
        self._tiles: CrossbarLinear | None = None
        self._filled = False

    def begin(self) -> None:
        if self._tiles is None or self._layer.weight.requires_grad:
            self._tiles = CrossbarLinear(self._layer, self._card, self._name, "none")
            # The bias may be trained, so it is added in `_forward`.
            self._tiles.bias = None
        self._filled = False
        self._layer.__dict__["forward"] = self._forward

    def end(self) -> None:
        self._layer.__dict__.pop("forward", None)

    def _forward(self, x: Tensor) -> Tensor:
        layer, tiles = self._layer, self._tiles
        assert tiles is not None
        weight = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
        if not self._filled:
            _fill(tiles, weight.detach())
            self._filled = True
        y = StraightThrough.apply(x, weight, tiles)
        return y if layer.bias is None else y + layer.bias


def _fill(tiles: CrossbarLinear, weight: Tensor) -> None:
    """Write a weight ``(D_out, D)`` to the tiles, in their present scale."""
    split: Any
    for split in tiles.splits:
        torch.div(weight[:, split.rows], split.scale[:, None], out=split.weight)
        split.limbs = None  # packed again at the next read


class StraightThrough(torch.autograd.Function):
    """A read of tiles, any function of the inputs, with the gradient of ``x @ weight.T``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, read: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(weight, x if ctx.needs_input_grad[1] else None)
        # Converter steps are finer than those of bf16, so mixed precision is off here.
        with torch.autocast(x.device.type, enabled=False):
            return read(x.detach().float()).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weight, x = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad.to(weight.dtype) @ weight).to(grad.dtype)
        if ctx.needs_input_grad[1]:
            flat = grad.flatten(0, -2).T.to(weight.dtype)
            grad_weight = flat @ x.flatten(0, -2).to(weight.dtype)
        return grad_x, grad_weight, None
