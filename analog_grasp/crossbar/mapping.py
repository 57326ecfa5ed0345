"""Layers onto tiles: each frozen projection of a model becomes a set of crossbar tiles."""

from collections.abc import Callable

from torch import nn

from analog_grasp.adapters.frozen import FrozenLayer, LayerPattern, base_name, frozen_layers


def map_layers(
    model: nn.Module, pattern: LayerPattern, make_analog: Callable[[str, FrozenLayer], nn.Module]
) -> None:
    """Replace the frozen linear layers of a model, in place; what is shared is mapped once.

    Args:
        model: The model; its chosen layers are replaced.
        pattern: Which layers, as in `frozen_layers`.
        make_analog: Gives the replacement for a layer, from its base name and the layer.

    Raises:
        ValueError: The pattern matches no layer.
    """
    made: dict[tuple[int, int], nn.Module] = {}
    by_layer: dict[int, nn.Module] = {}
    for path, layer in list(frozen_layers(model, pattern)):
        # Two layers may be tied: modules of their own that hold the same weight and bias.
        held = id(layer.weight), id(layer.bias)
        if held not in made:
            made[held] = make_analog(base_name(path), layer)
        by_layer[id(layer)] = made[held]
    for module in list(model.modules()):
        # Not named_children, which passes over the second place of a child.
        for name, child in list(module._modules.items()):
            if id(child) in by_layer:
                setattr(module, name, by_layer[id(child)])
