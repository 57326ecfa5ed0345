"""Converters in the training loop: layers compute what their tiles would with exact devices."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from analog_grasp.adapters.frozen import (
    LayerPattern,
    base_name,
    linear_layers,
)
from analog_grasp.crossbar.linear import CrossbarLinear
from analog_grasp.crossbar.tile_sets import selected
from analog_grasp.devices.card import Device, DeviceCard
from analog_grasp.training.input_ranges import LearnedRanges
from analog_grasp.training.weight_noise import fits_bfloat16
from analog_grasp.utils.hooks import replaced_forward, seen_inputs


class ConverterLoop:
    """A card's converters around the layers that are deployed on tiles.

    Within `applied`, each layer computes what its deployed copy would compute with exact devices:
    quantised inputs, output noise and quantised outputs, per tile and scaled per column. The
    gradient is that of the exact product (straight-through). Fused weights, the output projection
    of ``nn.MultiheadAttention`` and routers of experts are computed without converters.

    Args:
        model: The model whose layers receive converters.
        device: The device card that states them: a name, a path or a `DeviceCard`.
        pattern: The layers that are on tiles, as for `deploy`.
        learn_ranges: Give each layer an input range of its own, which is learned.

    Attributes:
        ranges: The ranges that are learned; None for the inputs' own scaling.

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
        self,
        model: nn.Module,
        device: Device,
        pattern: LayerPattern = "all-linear",
        learn_ranges: bool = False,
    ) -> None:
        self._card = card_with_converters(device)
        usual = {path for path, _ in linear_layers(model, "all-linear")}
        # A router that is named may do more than the product.
        self._layers = {
            base_name(path): layer
            for path, layer in selected(model, pattern)[0]
            if path in usual or type(layer).forward in (nn.Linear.forward, Conv1D.forward)
        }
        self._tiles: dict[str, CrossbarLinear] = {}
        self.ranges = LearnedRanges(self._layers) if learn_ranges else None

    def begin(self, run: Callable[[], object]) -> None:
        """Set the first range of each layer from its inputs when a function runs the model."""
        assert self.ranges is not None
        seen: dict[str, Tensor] = {}
        with seen_inputs(self._layers, lambda name, _, x: seen.update({name: x})):
            run()
        self.ranges.begin(seen)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the layers compute through converters within the block.

        Weight noise must be applied inside the block: columns are scaled by the weights at its
        beginning, which are the targets of a chip.
        """
        filled: set[str] = set()
        for name, layer in self._layers.items():
            if name not in self._tiles or layer.weight.requires_grad:
                self._tiles[name] = CrossbarLinear(layer, self._card, name, "none")
                # The bias may be trained, so it is added in `_convert`.
                self._tiles[name].bias = None
        with replaced_forward(
            {layer: partial(self._convert, name, filled) for name, layer in self._layers.items()}
        ):
            yield

    def _convert(self, name: str, filled: set[str], x: Tensor) -> Tensor:
        """Return a layer's output through converters; the first read writes its present weight."""
        layer, tiles = self._layers[name], self._tiles[name]
        weight = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
        split: Any
        for split in () if name in filled else tiles.splits:
            present = weight.detach()[:, split.rows]
            torch.div(present, split.scale[:, None], out=split.weight)
            split.limbs = None  # packed again at the next read
        filled.add(name)
        if self.ranges is not None:
            x, tiles.input_range = self.ranges.clip(name, x)
        y = StraightThrough.apply(x, weight, tiles)
        return y if layer.bias is None else y + layer.bias


def card_with_converters(device: Device) -> DeviceCard:
    """Return the card of a device; raise ValueError if it states no converters."""
    card = DeviceCard.load(device)
    if card.converters is None:
        raise ValueError(
            f"converters is {card.name!r}, a device that states no converters: give a device "
            "with converters, or none for exact arithmetic."
        )
    return card


class StraightThrough(torch.autograd.Function):
    """A read of tiles, any function of the inputs, with the gradient of ``x @ weight.T``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, read: Callable[[Tensor], Tensor]) -> Tensor:
        fast = weight.bfloat16() if fits_bfloat16(weight) else weight
        ctx.save_for_backward(fast, x if ctx.needs_input_grad[1] else None)
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
