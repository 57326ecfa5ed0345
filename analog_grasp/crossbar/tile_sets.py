"""The layers on tiles of one chip, the frozen weights that they replace, and copies of models."""

import copy
from collections.abc import Iterator
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from analog_grasp.adapters.frozen import (
    FrozenLayer,
    LayerPattern,
    base_name,
    dense_weight,
    frozen_layers,
    is_quantised,
    matches,
)
from analog_grasp.adapters.registry import check_placement, kind_of
from analog_grasp.crossbar.chip_layer import TileSettings
from analog_grasp.crossbar.tile_weight import FusedTiles
from analog_grasp.utils.types import Placement


class TileSets:
    """The layers on tiles of a chip.

    The first model's layers are made; those of a further model must be the same and share them.

    Args:
        settings: The settings of the layers.
        pattern: The frozen layers, as in `frozen_layers`.

    Attributes:
        layers: The layers on tiles, by their names in the base model.

    Example:
        >>> from analog_grasp.devices.card import DeviceCard
        >>> tiles = TileSets(TileSettings(DeviceCard.load("ideal")), "all-linear")
        >>> model = nn.Sequential(nn.Linear(4, 2))
        >>> _ = tiles.put_into(model)
        >>> model[0] is tiles.layers["0"]
        True
    """

    def __init__(self, settings: TileSettings, pattern: LayerPattern) -> None:
        self.layers: dict[str, nn.Module] = {}
        self._settings, self._pattern = settings, pattern
        self._frozen: dict[str, tuple[Tensor, Tensor | None]] = {}

    def put_into(self, model: nn.Module) -> dict[str, nn.Module]:
        """Replace the frozen layers of a model by the layers on tiles; each weight is mapped once.

        Returns:
            The layers on tiles.

        Raises:
            ValueError: The pattern matches no layer, or the model is a further one and its frozen
                weights differ from those of the chip.
        """
        first = not self.layers
        fused = list(fused_weights(model, self._pattern))
        by_tensors: dict[tuple[int, int], nn.Module] = {}
        by_layer: dict[int, nn.Module] = {}
        for path, layer in linear_layers(model, self._pattern, optional=bool(fused)):
            # Layers may be tied: modules of their own with the same weight and bias.
            tensors = id(layer.weight), id(layer.bias)
            name, dense = base_name(path), dense_layer(base_name(path), layer)
            if tensors not in by_tensors:
                by_tensors[tensors] = self._on_tiles(name, dense, first)
            if dense is layer and has_own_forward(layer):
                put_into(layer, by_tensors[tensors])
            else:
                by_layer[id(layer)] = by_tensors[tensors]
        for module, attribute, name, parameter, transposed in fused:
            parts = split_fused(name, parameter, transposed)
            layers = [self._on_tiles(part, layer, first) for part, layer in parts.items()]
            put_fused(module, attribute, FusedTiles(name, layers, parameter, transposed))
        for module in list(model.modules()):
            # Not named_children, which skips the second place of a child.
            for name, child in list(module._modules.items()):
                if id(child) in by_layer:
                    setattr(module, name, by_layer[id(child)])
        on_tiles = {weight for weight, _ in by_tensors}
        for module in model.modules():
            for name, tied in module._parameters.items():
                # The embedding of a tied output layer: the same memory, but the copy's own flags.
                if id(tied) in on_tiles and tied is not None:
                    module._parameters[name] = nn.Parameter(tied.detach(), requires_grad=False)
        return self.layers

    def _on_tiles(self, name: str, layer: FrozenLayer, first: bool) -> nn.Module:
        """Return the layer on tiles of a frozen layer."""
        if first:
            self._frozen[name] = layer.weight, layer.bias
            self.layers[name] = self._settings.put_on_tiles(name, layer)
        elif not same_tensors(self._frozen.get(name), layer):
            raise ValueError(
                f"The layer {name} has other frozen weights than the chip was made for: only "
                "adapters of the same frozen model share a chip; deploy this model separately."
            )
        return self.layers[name]


def linear_layers(
    model: nn.Module, pattern: LayerPattern, optional: bool
) -> list[tuple[str, FrozenLayer]]:
    """Return the frozen layers that a pattern selects; `optional` if it may select none."""
    try:
        return list(frozen_layers(model, pattern))
    except ValueError:
        if not optional:
            raise
        return []


def dense_layer(name: str, layer: FrozenLayer) -> FrozenLayer:
    """Return a layer as it is, or a linear layer with the dequantised weight of a quantised one.

    Raises:
        ValueError: The weight cannot be dequantised.
    """
    if not is_quantised(layer):
        return layer
    try:
        weight = dense_weight(layer)
    except ValueError:
        raise ValueError(
            f"The {layer.weight.dtype} weight of the layer {name} cannot be dequantised: deploy a "
            "dequantised base model, or keep the layer digital (argument layers)."
        ) from None
    linear = _linear(weight)
    linear.bias = layer.bias
    return linear


def fused_weights(
    model: nn.Module, pattern: LayerPattern
) -> Iterator[tuple[nn.Module, str, str, Tensor, bool]]:
    """Yield the fused parameters of a model that can go onto tiles.

    These are the experts of transformers' mixture-of-experts layers, ``(E, D_out, D)`` or
    ``(E, D, D_out)``, and the input projections of ``nn.MultiheadAttention``, ``(3 D_out, D)``.

    Args:
        model: The model.
        pattern: Which, as in `frozen_layers`, by the name of the parameter.

    Yields:
        The module, the attribute, the name in the base model, the parameter, and whether each
        expert is stored as ``(D, D_out)``.
    """
    for path, module in model.named_modules():
        for attribute, transposed in _fused_attributes(module):
            name = f"{base_name(path)}.{attribute}".removeprefix(".")
            if matches(name, pattern):
                yield module, attribute, name, getattr(module, attribute), transposed


def split_fused(name: str, parameter: Tensor, transposed: bool) -> dict[str, FrozenLayer]:
    """Return the linear layers, without bias, of which a fused parameter consists, by name.

    Example:
        >>> layers = split_fused("experts.up_proj", torch.zeros(4, 6, 3), transposed=False)
        >>> list(layers)[-1], layers["experts.up_proj.3"].in_features
        ('experts.up_proj.3', 3)
    """
    if parameter.dim() == 2:
        parts = dict(zip("qkv", parameter.detach().chunk(3), strict=True))
    else:
        views = parameter.detach().unbind()
        parts = {str(i): view.T if transposed else view for i, view in enumerate(views)}
    layers: dict[str, FrozenLayer] = {}
    for part, weight in parts.items():
        layers[f"{name}.{part}"] = _linear(weight)
    return layers


def has_own_forward(layer: nn.Module) -> bool:
    """Return whether a linear layer does more than the product, as some routers of experts do."""
    return type(layer).forward not in (nn.Linear.forward, Conv1D.forward)


def put_into(layer: nn.Module, tiles: nn.Module) -> None:
    """Put tiles into a layer in place of its weight; its own forward computes on them."""
    del layer._parameters["weight"]
    layer.tiles = tiles
    layer.__dict__["weight"] = cast(Any, tiles).weight


def put_fused(module: nn.Module, attribute: str, fused: FusedTiles) -> None:
    """Put tile sets into a module in place of a fused parameter."""
    del module._parameters[attribute]
    setattr(module, attribute, fused)
    if hasattr(module, "config"):
        # transformers' other implementations multiply by the parameter as a whole.
        module.config = _with_eager_experts(module.config)


def _with_eager_experts(config: Any) -> Any:
    own = type(config).from_dict(config.to_dict())
    own._experts_implementation = "eager"
    return own


def _fused_attributes(module: nn.Module) -> list[tuple[str, bool]]:
    if isinstance(module, nn.MultiheadAttention):
        return [] if module.in_proj_weight is None else [("in_proj_weight", False)]
    experts = {
        name: parameter
        for name, parameter in module.named_parameters(recurse=False)
        if name in ("gate_up_proj", "up_proj", "down_proj") and parameter.dim() == 3
    }
    if len(experts) != 2:
        return []
    up, down = (experts[n] for n in sorted(experts, reverse=True, key=lambda n: "up" in n))
    # (E, width or 2 width, D) and (E, D, width), unless the experts are transposed.
    stored = up.shape[2] == down.shape[1] and up.shape[1] in (down.shape[2], 2 * down.shape[2])
    transposed = bool(getattr(module, "is_transposed", not stored))
    return [(name, transposed) for name in experts]


def copy_sharing_frozen(
    model: nn.Module, pattern: LayerPattern
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a copy of a model that refers to the caller's frozen tensors, and these by name.

    Adapters, and task heads saved with them, are copied. The weights that go onto tiles are not
    among those by name: the tiles check them.
    """
    fused = [parameter for _, _, _, parameter, _ in fused_weights(model, pattern)]
    linear = linear_layers(model, pattern, optional=bool(fused))
    on_tiles = {id(w): w for w in (*(layer.weight for _, layer in linear), *fused)}
    own = adapter_parameters(model)
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            own.update(id(parameter) for parameter in module.modules_to_save.parameters())
    own.update(on_tiles)
    adapted = isinstance(model, PeftModel)
    shared: dict[str, Tensor] = {
        name: parameter
        for name, parameter in model.named_parameters()
        if id(parameter) not in own and not (adapted and parameter.requires_grad)
    }
    # Parameters of the same memory with a gradient flag of their own.
    references = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in shared.values()}
    return copy.deepcopy(model, {**on_tiles, **references}), shared


def check_adapter(model: PeftModel, placement: Placement) -> None:
    """Raise an error if the active adapter of a model cannot have a placement.

    Raises:
        ValueError: The adapter does not have it, or it uses the frozen weights as numbers.
    """
    kind = kind_of(model)
    if kind is not None:
        check_placement(kind, placement)
    if placement != "folded" and getattr(model.active_peft_config, "use_dora", False):
        raise ValueError(
            f"placement is {placement!r}, but the adapter is DoRA, which divides by the norms of "
            "weights that tiles do not return: use placement='folded'."
        )


def adapter_parameters(model: nn.Module) -> set[int]:
    """Return the identities of the parameters that adapters have added to a model's layers."""
    return {
        id(parameter)
        for module in model.modules()
        if isinstance(module, BaseTunerLayer)
        for name, part in module.named_children()
        if name != "base_layer"
        for parameter in part.parameters()
    }


def same_tensors(tensors: tuple[Tensor, Tensor | None] | None, layer: FrozenLayer) -> bool:
    """Return whether a layer has this weight and this bias."""
    if tensors is None:
        return False
    pairs = zip(tensors, (layer.weight, layer.bias), strict=True)
    return all(a is b or _equal(a, b) for a, b in pairs)


def _linear(weight: Tensor) -> nn.Linear:
    """Return a linear layer with a weight ``(D_out, D)``, of the same memory, and without bias."""
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None or a.dtype != b.dtype:
        return False
    if a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride():
        return True
    return torch.equal(a, b.to(a.device))
