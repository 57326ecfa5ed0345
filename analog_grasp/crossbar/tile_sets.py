"""The layers on tiles of a chip, and the frozen weights that they replace."""

import copy
import re
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from peft import PeftModel
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from analog_grasp.adapters.frozen import (
    FrozenLayer,
    LayerPattern,
    base_name,
    check_names,
    dense_weight,
    frozen_layers,
    fused_weights,
    has_encoder_and_decoder,
    is_quantised,
    linear_layers,
    matches,
)
from analog_grasp.adapters.registry import check_placement, kind_of
from analog_grasp.crossbar.aihwkit import AihwkitLinear, compiled_config, wired_config
from analog_grasp.crossbar.chip_layer import ChipLayer, FusedTiles
from analog_grasp.crossbar.linear import STORED_TYPES, CrossbarLinear
from analog_grasp.crossbar.mapping import Clip, check_clip
from analog_grasp.devices.card import DeviceCard
from analog_grasp.utils.errors import unknown_name
from analog_grasp.utils.types import DriftCompensation, Placement, ProgrammingError

TileBackend = Literal["torch", "rpucuda", "ir-drop"]
"""The implementation of tiles: ours, aihwkit's compiled one, aihwkit's time-stepped torch one."""

FirstToken = Literal["analog", "digital"]
"""Where the first token of each sequence is computed: on the tiles, or exactly beside them."""

# Layers of experts that are a list of modules.
_EXPERTS = re.compile(r"(^|\.)experts\.")

_AIHWKIT_CONFIGS = {"rpucuda": compiled_config, "ir-drop": wired_config}


@dataclass(frozen=True)
class DeploymentSettings:
    """Settings of a deployment, as `deploy` takes them.

    Args:
        card: The device, without the effects that are switched off.
        streamed: The frozen weights stay in a file, as memory is scarce.
        placement, programming_error, layers, tile, drift_compensation, dtype, clip, first_token:
            See `deploy`; aihwkit's tiles store float32 only, and clip no weights.

    Raises:
        ValueError: An unknown choice, a clipping out of range, learned programming errors of an
            adapter that is not programmed, an exact first token with one that is, or what the tile
            does not store or simulate.
        RuntimeError: The compiled tile does not work with the installed torch.

    Example:
        >>> settings = DeploymentSettings(DeviceCard.load("ideal"))
        >>> type(settings.put_on_tiles("dense", nn.Linear(4, 2))).__name__
        'CrossbarLinear'
    """

    card: DeviceCard
    placement: Placement = "digital"
    programming_error: ProgrammingError = "device"
    layers: LayerPattern = "all-linear"
    tile: TileBackend = "torch"
    drift_compensation: DriftCompensation = "global"
    dtype: torch.dtype = torch.float32
    clip: Clip | None = None
    first_token: FirstToken = "analog"
    streamed: bool = False

    def __post_init__(self) -> None:
        for kind, value, choice in (
            ("placement", self.placement, Placement),
            ("programming_error", self.programming_error, ProgrammingError),
            ("tile", self.tile, TileBackend),
            ("drift_compensation", self.drift_compensation, DriftCompensation),
            ("first_token", self.first_token, FirstToken),
        ):
            if value not in get_args(choice):
                raise ValueError(unknown_name(kind, value, get_args(choice)))
        if self.programming_error == "learned" and self.placement != "programmed":
            raise ValueError(
                f"programming_error is 'learned', which has no effect with placement="
                f"{self.placement!r}: use placement='programmed', or programming_error='device'."
            )
        stored = STORED_TYPES if self.tile == "torch" else STORED_TYPES[:1]
        if self.dtype not in stored:
            known = ", ".join(map(str, stored))
            raise ValueError(
                f"dtype is {self.dtype}, which tile={self.tile!r} does not store: use {known}."
            )
        if self.clip is not None:
            check_clip(self.clip)
            self.check_own("clip")
        if self.first_token == "digital":
            self.check_own("first_token")
            if self.placement == "programmed":
                raise ValueError(
                    "first_token is 'digital', but the devices of an adapter with placement="
                    "'programmed' are read for all tokens: use first_token='analog', or another "
                    "placement."
                )
        if self.tile != "torch":
            _AIHWKIT_CONFIGS[self.tile](self.card, self.drift_compensation)
        elif self.card.circuit is not None:
            raise ValueError(
                f"The card {self.card.name} states a circuit, which tile='torch' cannot simulate: "
                "use tile='rpucuda', or circuit=False."
            )

    def check_own(self, setting: str) -> None:
        """Raise ValueError if the tile, being aihwkit's, does not have a setting."""
        if self.tile != "torch":
            raise ValueError(
                f"The setting {setting} has no effect with tile={self.tile!r}: use tile='torch'."
            )

    def put_on_tiles(self, name: str, layer: FrozenLayer) -> ChipLayer:
        """Return the layer on tiles of a frozen layer, by its name in the base model."""
        card, compensation = self.card, self.drift_compensation
        if self.tile == "torch":
            how = compensation, self.dtype, self.clip, not self.streamed
            return CrossbarLinear(layer, card, name, *how)
        return AihwkitLinear(layer, card, name, _AIHWKIT_CONFIGS[self.tile](card, compensation))


class FusedWeight(NamedTuple):
    """A parameter that holds the weights of several linear layers without bias.

    The experts of transformers' mixture-of-experts layers, ``(E, D_out, D)`` or ``(E, D, D_out)``,
    or the input projections of ``nn.MultiheadAttention``, ``(3 D_out, D)``.

    Attributes:
        path: The path of the module.
        module: The module.
        attribute: The parameter's name in the module.
        transposed: Each expert is stored as ``(D, D_out)``.
    """

    path: str
    module: nn.Module
    attribute: str
    transposed: bool

    @property
    def parameter(self) -> Tensor:
        """The parameter, detached."""
        parameter: Tensor = getattr(self.module, self.attribute)
        return parameter.detach()

    @property
    def name(self) -> str:
        """The name of the parameter in the base model."""
        return f"{base_name(self.path)}.{self.attribute}".removeprefix(".")

    def layers(self) -> dict[str, FrozenLayer]:
        """Return the layers, by name."""
        if self.parameter.dim() == 2:
            parts = dict(zip("qkv", self.parameter.chunk(3), strict=True))
        else:
            views = enumerate(self.parameter.unbind())
            parts = {str(i): view.T if self.transposed else view for i, view in views}
        return {f"{self.name}.{part}": _linear(weight) for part, weight in parts.items()}


def selected(
    model: nn.Module, pattern: LayerPattern
) -> tuple[list[tuple[str, FrozenLayer]], list[FusedWeight]]:
    """Return the frozen layers, with their paths, and the fused weights that a pattern selects.

    Raises:
        ValueError: The pattern, or a name of it, selects none.
    """
    modules = model.named_modules()
    every = [FusedWeight(path, m, *which) for path, m in modules for which in fused_weights(m)]
    fused = [each for each in every if matches(each.name, pattern)]
    if not fused:
        return list(frozen_layers(model, pattern)), fused
    linear = list(linear_layers(model, pattern))
    check_names(model, pattern, [base_name(path) for path, _ in linear])
    return linear, fused


def selected_for_tiles(
    model: nn.Module, pattern: LayerPattern
) -> tuple[list[tuple[str, FrozenLayer]], list[FusedWeight]]:
    """Return what `selected` does, as it goes onto tiles.

    Raises:
        ValueError: As `selected`, or LoRA is on fused weights.
    """
    linear, fused = selected(model, pattern)
    wrappers = (m for m in model.modules() if isinstance(m, ParamWrapper))
    adapted = {id(wrapper.get_param()) for wrapper in wrappers}
    for each in fused:
        # LoRA would add its product to the parameter, whose values tiles do not return.
        if id(getattr(each.module, each.attribute)) in adapted:
            raise ValueError(
                f"The adapter of the fused weights {each.name} is LoRA on a parameter, which "
                "tiles do not return: use placement='folded', or keep these weights digital "
                "(argument layers)."
            )
    return linear, fused


class TileSets:
    """The layers on tiles of a chip.

    The first model's layers are made; those of a further model must be the same and share them.

    Args:
        settings: The settings of the deployment.

    Attributes:
        layers: The layers on tiles, by their names in the base model.

    Example:
        >>> tiles = TileSets(DeploymentSettings(DeviceCard.load("ideal")))
        >>> model = nn.Sequential(nn.Linear(4, 2))
        >>> tiles.put_into(model)
        >>> model[0] is tiles.layers["0"]
        True
    """

    def __init__(self, settings: DeploymentSettings) -> None:
        self.layers: dict[str, ChipLayer] = {}
        self._settings = settings
        self._frozen: dict[str, tuple[Tensor, Tensor | None]] = {}

    def put_into(self, model: nn.Module) -> None:
        """Replace the frozen layers of a model by the layers on tiles; each weight is mapped once.

        Raises:
            ValueError: The pattern matches no layer; the first token is to be exact in a model with
                `nn.MultiheadAttention`, experts on tiles, a decoder beside an encoder or other
                inputs than token ids; or the model is a further one and its frozen weights differ
                from those of the chip.
        """
        first = not self.layers
        linear, fused = selected_for_tiles(model, self._settings.layers)
        if self._settings.first_token == "digital":
            listed = filter(_EXPERTS.search, (base_name(path) for path, _ in linear))
            _check_first_token(model, [*(each.name for each in fused), *listed])
        by_tensors: dict[tuple[int, int], ChipLayer] = {}
        by_layer: dict[int, ChipLayer] = {}
        for path, layer in linear:
            # Layers may be tied: modules of their own with the same weight and bias.
            tensors = id(layer.weight), id(layer.bias)
            name, dense = base_name(path), _dense_layer(base_name(path), layer)
            if tensors not in by_tensors:
                by_tensors[tensors] = self._on_tiles(name, dense, first)
            tiles = by_tensors[tensors]
            if dense is layer and type(layer).forward not in (nn.Linear.forward, Conv1D.forward):
                # It does more than the product, as a router of experts that is named does.
                del layer._parameters["weight"]
                layer.tiles = tiles
                layer.__dict__["weight"] = tiles.weight
            else:
                by_layer[id(layer)] = tiles
        for each in fused:
            layers = [self._on_tiles(part, layer, first) for part, layer in each.layers().items()]
            _put_fused(each, layers)
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

    def _on_tiles(self, name: str, layer: FrozenLayer, first: bool) -> ChipLayer:
        """Return the layer on tiles of a frozen layer."""
        if first:
            self._frozen[name] = layer.weight, layer.bias
            self.layers[name] = self._settings.put_on_tiles(name, layer)
        weight, bias = self._frozen.get(name, (None, None))
        if weight is None or not (_same(weight, layer.weight) and _same(bias, layer.bias)):
            raise ValueError(
                f"The layer {name} has other frozen weights than the chip was made for: only "
                "adapters of the same frozen model share a chip; deploy this model separately."
            )
        return self.layers[name]


def check_adapter(model: nn.Module, placement: Placement) -> None:
    """Raise ValueError if the adapter of a model cannot have a placement."""
    if not isinstance(model, PeftModel):
        return
    if (kind := kind_of(model)) is not None:
        check_placement(kind, placement)
    layers = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
    if placement != "folded" and any(layer.merged for layer in layers):
        raise ValueError(
            f"placement is {placement!r}, but the adapter is merged into the frozen weights, with "
            "which it would be programmed: unmerge it, or use placement='folded'."
        )
    if placement != "folded" and getattr(model.active_peft_config, "use_dora", False):
        raise ValueError(
            f"placement is {placement!r}, but the adapter is DoRA, which divides by the norms of "
            "weights that tiles do not return: use placement='folded'."
        )


def copy_sharing_frozen(
    model: nn.Module, pattern: LayerPattern
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a copy of a model that refers to the caller's frozen tensors, and these by name.

    Adapters, and task heads saved with them, are copied. The weights that go onto tiles are not
    among those by name: the tiles check them.
    """
    linear, fused = selected_for_tiles(model, pattern)
    weights = [layer.weight for _, layer in linear]
    weights += [getattr(each.module, each.attribute) for each in fused]
    on_tiles = {id(weight): weight for weight in weights}
    own = added_by_adapters(model) | on_tiles.keys()
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            own.update(id(parameter) for parameter in module.modules_to_save.parameters())
    adapted = isinstance(model, PeftModel)
    shared: dict[str, Tensor] = {
        name: parameter
        for name, parameter in model.named_parameters()
        if id(parameter) not in own and not (adapted and parameter.requires_grad)
    }
    # Parameters of the same memory with a gradient flag of their own.
    references = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in shared.values()}
    return copy.deepcopy(model, {**on_tiles, **references}), shared


def added_by_adapters(model: nn.Module) -> set[int]:
    """Return the identities of the parameters that adapters have added to a model's layers."""
    return {
        id(parameter)
        for module in model.modules()
        if isinstance(module, BaseTunerLayer)
        for name, part in module.named_children()
        if name != "base_layer"
        for parameter in part.parameters()
    }


def _dense_layer(name: str, layer: FrozenLayer) -> FrozenLayer:
    """Return a layer as it is, or a linear layer with the dequantised weight of a quantised one."""
    if not is_quantised(layer):
        return layer
    try:
        linear = _linear(dense_weight(layer))
    except ValueError:
        raise ValueError(
            f"The {layer.weight.dtype} weight of the layer {name} cannot be dequantised: deploy a "
            "dequantised base model, or keep the layer digital (argument layers)."
        ) from None
    linear.bias = layer.bias
    return linear


def _linear(weight: Tensor) -> nn.Linear:
    """Return a linear layer with a weight ``(D_out, D)``, of the same memory, and without bias."""
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def _put_fused(fused: FusedWeight, layers: list[ChipLayer]) -> None:
    """Put layers on tiles into a module in place of the fused weight that they make up."""
    module: Any = fused.module
    tiles = FusedTiles(fused.name, layers, fused.parameter, fused.transposed)
    del module._parameters[fused.attribute]
    setattr(module, fused.attribute, tiles)
    if hasattr(module, "config"):
        # transformers' other implementations multiply by the parameter as a whole.
        module.config = type(module.config).from_dict(module.config.to_dict())
        module.config._experts_implementation = "eager"


def _check_first_token(model: nn.Module, experts: list[str]) -> None:
    """Raise ValueError if first tokens cannot be found in the inputs of layers on tiles."""
    for path, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            raise ValueError(
                f"first_token is 'digital', but the model has the nn.MultiheadAttention "
                f"{base_name(path)!r}, whose inputs are not always (B, T, D): use "
                "first_token='analog'."
            )
    if experts:
        raise ValueError(
            f"first_token is 'digital', but the inputs of the experts {experts[0]!r} are tokens "
            "chosen by a router: keep the experts digital (argument layers), or use "
            "first_token='analog'."
        )
    if has_encoder_and_decoder(model):
        raise ValueError(
            f"first_token is 'digital', but the {type(model).__name__} has an encoder and a "
            "decoder, whose first tokens differ: use first_token='analog'."
        )
    if (inputs := getattr(model, "main_input_name", "input_ids")) != "input_ids":
        raise ValueError(
            f"first_token is 'digital', but the inputs of the {type(model).__name__} are {inputs}, "
            "not token ids: use first_token='analog'."
        )


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    """Return whether two tensors are the same, or equal."""
    if a is None or b is None or a.dtype != b.dtype:
        return a is b
    if a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride():
        return True
    return torch.equal(a, b.to(a.device))
