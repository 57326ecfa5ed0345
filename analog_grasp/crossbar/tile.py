"""The kinds of tile: which class simulates a layer, and what is asked of it."""

from collections.abc import Callable
from typing import Literal, Protocol, cast, get_args

import torch
from torch import nn

from analog_grasp.adapters.frozen import FrozenLayer
from analog_grasp.crossbar.aihwkit import AihwkitLinear, compiled_config, wired_config
from analog_grasp.crossbar.linear import STORED_TYPES, CrossbarLinear
from analog_grasp.devices.card import DeviceCard
from analog_grasp.utils.types import DriftCompensation

Tile = Literal["torch", "rpucuda", "ir-drop"]

_CONFIGS = {"rpucuda": compiled_config, "ir-drop": wired_config}

MakeLayer = Callable[[str, FrozenLayer], nn.Module]
"""Gives the layer on tiles from a layer's name and the layer."""


class ChipLayer(Protocol):
    """What a deployment asks of a layer on tiles."""

    input_range: float | None
    """The DAC's full scale for the inputs of this layer; None for the converters' own scaling."""
    digital: bool
    """Whether the layer computes with its frozen weight, exactly, as if it were not on tiles."""

    @property
    def tiles(self) -> int: ...
    @property
    def cells(self) -> int: ...
    def program(self, chip: int) -> None:
        """Program a chip instance, which is then 0 s old."""

    def drift_to(self, seconds: float) -> None: ...
    def weight_error(self) -> float: ...


def chip_layer(module: nn.Module) -> ChipLayer:
    """A layer on tiles, by its face."""
    return cast(ChipLayer, module)


def layer_maker(
    card: DeviceCard,
    tile: Tile = "torch",
    compensation: DriftCompensation = "global",
    dtype: torch.dtype = torch.float32,
) -> MakeLayer:
    """Return what makes layers on tiles of a kind.

    Args:
        card: The device.
        tile: ``"torch"`` for our tile, which computes what aihwkit's torch tile does;
            ``"rpucuda"`` for aihwkit's compiled one; ``"ir-drop"`` for its time-stepped torch one.
        compensation: The drift compensation; see `CrossbarLinear`.
        dtype: What the weights are kept in; aihwkit's tiles know float32 alone.

    Raises:
        ValueError: An unknown tile or compensation, a type that the tile does not store, or a card
            that it cannot simulate.
        RuntimeError: The compiled tile does not work with the installed torch.

    Example:
        >>> make = layer_maker(DeviceCard.load("ideal"))
        >>> type(make("dense", nn.Linear(4, 2))).__name__
        'CrossbarLinear'
    """
    for name, value, choice in (
        ("tile", tile, Tile),
        ("drift_compensation", compensation, DriftCompensation),
    ):
        if value not in get_args(choice):
            known = ", ".join(get_args(choice))
            raise ValueError(f"{name} is {value!r}, which is unknown: use one of {known}.")
    stored = STORED_TYPES if tile == "torch" else STORED_TYPES[:1]
    if dtype not in stored:
        known = ", ".join(map(str, stored))
        raise ValueError(f"dtype is {dtype}, which tile={tile!r} does not store: use {known}.")
    if tile != "torch":
        config = _CONFIGS[tile](card, compensation)
        return lambda name, layer: AihwkitLinear(layer, card, name, config)
    if card.circuit is not None:
        raise ValueError(
            f"The card {card.name} states a circuit, which tile='torch' cannot simulate: use "
            "tile='rpucuda', or circuit=False."
        )
    return lambda name, layer: CrossbarLinear(layer, card, name, compensation, dtype)
