"""The layers on tiles of one chip, put into models in place of their frozen layers."""

from torch import Tensor, nn

from analog_grasp.adapters.frozen import FrozenLayer, LayerPattern, base_name
from analog_grasp.crossbar.chip_layer import TileSettings
from analog_grasp.crossbar.frozen_weights import (
    dense_layer,
    fused_weights,
    has_own_forward,
    linear_layers,
    put_fused,
    put_into,
    same_tensors,
    split_fused,
)
from analog_grasp.crossbar.tile_weight import FusedTiles


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
