"""Converters in the loop: training reads its layers through DACs and ADCs, as a chip does."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from analog_grasp.adapters.frozen import FrozenLayer, LayerPattern, base_name, frozen_layers
from analog_grasp.crossbar.linear import CrossbarLinear
from analog_grasp.devices.card import DeviceCard


class ConverterLoop:
    """A card's converters around the layers that go onto tiles, while a model is trained.

    Within `applied` each layer computes what its deployed copy would, devices being exact:
    quantised inputs, output noise and quantised outputs, tile by tile and scaled by column. Its
    gradient is that of the exact product, as if the converters were not there.

    Args:
        model: The model whose layers get converters.
        name: The device card that states them.
        pattern: Which layers, as in `frozen_layers`.

    Raises:
        ValueError: There is no such card, or it states no converters; or the pattern matches no
            layer.

    Source:
        The straight-through estimator: Bengio, Leonard and Courville, arXiv 1308.3432; converters
        in the loop of training: Joshi et al., Nat. Commun. 11, 2473 (2020).

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 2))
        >>> x = torch.tensor([[1.0, 0.5, 0.251, 0.0]])
        >>> with ConverterLoop(model, "pcm-hermes-2").applied():
        ...     converted = model(x)
        >>> torch.equal(converted, model(x))
        False
    """

    def __init__(self, model: nn.Module, name: str, pattern: LayerPattern = "all-linear") -> None:
        card = card_with_converters(name)
        self._layers = [
            _Converted(layer, base_name(path), card)
            for path, layer in frozen_layers(model, pattern)
        ]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the layers compute through converters.

        Noise on the weights is to be applied inside the block: columns are scaled by the weights
        as they are when it begins, which are the targets of a chip.
        """
        try:
            for layer in self._layers:
                layer.begin()
            yield
        finally:
            for layer in self._layers:
                layer.end()


def card_with_converters(name: str) -> DeviceCard:
    """The device card of a name, or of a path to a TOML file.

    Raises:
        ValueError: There is no such card, or it states no converters.

    Example:
        >>> card_with_converters("pcm-hermes-2").converters.adc_bits
        8
    """
    card = DeviceCard.load(name)
    if card.converters is None:
        raise ValueError(
            f"converters is {name!r}, but that device states none: name a device with converters, "
            "or leave it out."
        )
    return card


class _Converted:
    """One layer of the loop."""

    def __init__(self, layer: FrozenLayer, name: str, card: DeviceCard) -> None:
        self._layer, self._name, self._card = layer, name, card
        self._tiles: CrossbarLinear | None = None
        self._filled = False

    def begin(self) -> None:
        if self._tiles is None or self._layer.weight.requires_grad:
            self._tiles = CrossbarLinear(self._layer, self._card, self._name, "none")
            # Added here: it may be trained.
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
        y = _StraightThrough.apply(x, weight, tiles)
        return y if layer.bias is None else y + layer.bias


def _fill(tiles: CrossbarLinear, weight: Tensor) -> None:
    """Put a weight ``(D_out, D)`` on tiles, in the scale that they have."""
    split: Any
    for split in tiles.splits:
        torch.div(weight[:, split.rows], split.scale[:, None], out=split.weight)


class _StraightThrough(torch.autograd.Function):
    """Reads tiles; its gradient is that of ``x @ weight.T``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, tiles: CrossbarLinear) -> Tensor:
        ctx.save_for_backward(weight, x if ctx.needs_input_grad[1] else None)
        # Mixed precision stops before the converters, whose steps are finer than those of bf16.
        with torch.autocast(x.device.type, enabled=False):
            return tiles(x.detach().float()).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weight, x = ctx.saved_tensors
        by_input = by_weight = None
        if ctx.needs_input_grad[0]:
            by_input = (grad.to(weight.dtype) @ weight).to(grad.dtype)
        if ctx.needs_input_grad[1]:
            by_weight = grad.flatten(0, -2).T.to(weight.dtype) @ x.flatten(0, -2).to(weight.dtype)
        return by_input, by_weight, None
