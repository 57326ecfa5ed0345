"""Layers onto tiles: each frozen projection of a model becomes a set of crossbar tiles."""

from collections.abc import Callable

import torch
from aihwkit.nn import AnalogLinear
from aihwkit.simulator.tiles.base import BaseTile
from torch import nn
from transformers.pytorch_utils import Conv1D

from analog_grasp.adapters.frozen import FrozenLayer, LayerPattern, base_name, frozen_layers
from analog_grasp.crossbar.layer import CrossbarLinear


def map_layers(
    model: nn.Module, pattern: LayerPattern, make_analog: Callable[[str, FrozenLayer], nn.Module]
) -> None:
    """Replace the frozen linear layers of a model, in place; a shared layer is mapped once.

    Args:
        model: The model; its chosen layers are replaced.
        pattern: Which layers, as in `frozen_layers`.
        make_analog: Gives the replacement for a layer, from its base name and the layer.

    Raises:
        ValueError: The pattern matches no layer.
    """
    chosen = list(frozen_layers(model, pattern))
    by_layer = {id(layer): make_analog(base_name(path), layer) for path, layer in chosen}
    for module in list(model.modules()):
        for name, child in module.named_children():
            if id(child) in by_layer:
                setattr(module, name, by_layer[id(child)])


def to_tiles(layer: FrozenLayer, config: object) -> AnalogLinear:
    """Return an aihwkit layer that holds the weight and bias of a linear layer.

    Args:
        layer: ``nn.Linear``, or ``Conv1D`` whose weight is stored transposed.
        config: The tiles' configuration, from `tile_config`.

    Example:
        >>> from analog_grasp.crossbar.tile import tile_config
        >>> from analog_grasp.devices import DeviceCard
        >>> len(list(tiles_of(to_tiles(nn.Linear(700, 8), tile_config(DeviceCard.load("ideal"))))))
        2
    """
    transposed = isinstance(layer, Conv1D)
    weight = (layer.weight.T if transposed else layer.weight).detach()
    # aihwkit initialises a layer at random before it takes our weights.
    with torch.random.fork_rng():
        analog = CrossbarLinear(
            weight.shape[1], weight.shape[0], layer.bias is not None, rpu_config=config
        )
    analog.set_weights(weight, layer.bias)
    analog.requires_grad_(False)
    return analog.to(weight.device).eval()


def tiles_of(layer: nn.Module) -> list[BaseTile]:
    """The tiles of a mapped layer, in the order of its splits."""
    assert isinstance(layer, AnalogLinear)
    return list(layer.analog_tiles())
