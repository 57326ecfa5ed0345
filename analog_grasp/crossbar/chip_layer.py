"""Layers on tiles: the interface that a deployment uses, and the settings that make them."""

from dataclasses import dataclass
from typing import Literal, Protocol, cast, get_args

import torch
from torch import Tensor, nn

from analog_grasp.adapters.frozen import FrozenLayer
from analog_grasp.crossbar.aihwkit import AihwkitLinear, compiled_config, wired_config
from analog_grasp.crossbar.linear import STORED_TYPES, CrossbarLinear
from analog_grasp.crossbar.mapping import Clip, check_clip
from analog_grasp.devices.card import DeviceCard
from analog_grasp.utils.errors import unknown_name
from analog_grasp.utils.types import DriftCompensation

TileBackend = Literal["torch", "rpucuda", "ir-drop"]
"""The implementation of tiles: ours, aihwkit's compiled one, aihwkit's time-stepped torch one."""

FirstToken = Literal["analog", "digital"]
"""Where the first token of each sequence is computed: on the tiles, or exactly beside them."""

_AIHWKIT_CONFIGS = {"rpucuda": compiled_config, "ir-drop": wired_config}


class ChipLayer(Protocol):
    """The interface of a layer on tiles.

    Attributes:
        name: The layer's name in the base model, which determines its devices on a chip.
        card: The device.
        input_range: The DAC's full scale for the inputs; None for the converters' own scaling.
        output_ranges: The ADC's largest output for each tile; None for the converters' own.
        input_scale: The factors by which the tiles' inputs are divided, ``(D,)``; None for 1.
        exact_at: The position of each row that is computed exactly, ``(B,)``; None for none.
        digital: Compute with the frozen weight, exactly.
        reads: The number of forward passes through the layer.
        frozen: The frozen weight, ``(D_out, D)``.
        bias: The digital bias, ``(D_out,)``, or None.
    """

    name: str
    card: DeviceCard
    input_range: float | None
    output_ranges: list[list[float]] | None
    input_scale: Tensor | None
    exact_at: Tensor | None
    digital: bool
    reads: int
    bias: Tensor | None

    @property
    def frozen(self) -> Tensor: ...
    @property
    def tiles(self) -> int: ...
    @property
    def cells(self) -> int: ...

    def rescale(self, input_scale: Tensor) -> None:
        """Map the weight times the scale of its inputs; see `CrossbarLinear.rescale`."""

    def program(self, chip: int) -> None:
        """Program a chip instance, which is then 0 s old."""

    def drift_to(self, seconds: float) -> None:
        """Set the time since programming."""

    def weight_error(self) -> float:
        """Return the root mean square of (weight now - target), in units of the column maximum."""
        ...

    def present_weight(self) -> Tensor:
        """Return the weight now as the digital side sees it, ``(D_out, D)``, in frozen units."""
        ...


@dataclass(frozen=True)
class TileSettings:
    """Settings of layers on tiles.

    Args:
        card: The device, without the effects that are switched off.
        backend: The implementation of tiles.
        compensation: The drift compensation; see `CrossbarLinear`.
        dtype: The type in which weights are stored; aihwkit's tiles store float32 only.
        clip: The clipping of weights as they are mapped; see `column_scale`.
        first_token: Where the first token of each sequence is computed.

    Raises:
        ValueError: An unknown backend, compensation or first token, a clipping out of range, or
            what the backend does not store or simulate.
        RuntimeError: The compiled tile does not work with the installed torch.

    Example:
        >>> settings = TileSettings(DeviceCard.load("ideal"))
        >>> type(settings.put_on_tiles("dense", nn.Linear(4, 2))).__name__
        'CrossbarLinear'
    """

    card: DeviceCard
    backend: TileBackend = "torch"
    compensation: DriftCompensation = "global"
    dtype: torch.dtype = torch.float32
    clip: Clip | None = None
    first_token: FirstToken = "analog"

    def __post_init__(self) -> None:
        for kind, value, choice in (
            ("tile", self.backend, TileBackend),
            ("drift_compensation", self.compensation, DriftCompensation),
            ("first_token", self.first_token, FirstToken),
        ):
            if value not in get_args(choice):
                raise ValueError(unknown_name(kind, value, get_args(choice)))
        stored = STORED_TYPES if self.backend == "torch" else STORED_TYPES[:1]
        if self.dtype not in stored:
            known = ", ".join(map(str, stored))
            raise ValueError(
                f"dtype is {self.dtype}, which tile={self.backend!r} does not store: use {known}."
            )
        if self.clip is not None:
            check_clip(self.clip)
            self.check_own("clip")
        if self.first_token == "digital":
            self.check_own("first_token")
        if self.backend != "torch":
            _AIHWKIT_CONFIGS[self.backend](self.card, self.compensation)
        elif self.card.circuit is not None:
            raise ValueError(
                f"The card {self.card.name} states a circuit, which tile='torch' cannot simulate: "
                "use tile='rpucuda', or circuit=False."
            )

    def check_own(self, setting: str) -> None:
        """Raise ValueError if the backend, being aihwkit's, does not have a setting."""
        if self.backend != "torch":
            raise ValueError(
                f"The setting {setting} has no effect with tile={self.backend!r}: use tile='torch'."
            )

    def put_on_tiles(self, name: str, layer: FrozenLayer) -> nn.Module:
        """Return the layer on tiles, a `ChipLayer`.

        Args:
            name: The layer's name in the base model.
            layer: The frozen layer.
        """
        if self.backend == "torch":
            card, compensation = self.card, self.compensation
            return CrossbarLinear(layer, card, name, compensation, self.dtype, self.clip)
        config = _AIHWKIT_CONFIGS[self.backend](self.card, self.compensation)
        return AihwkitLinear(layer, self.card, name, config)


def chip_layer(module: nn.Module) -> ChipLayer:
    """Return a layer on tiles, typed by its interface."""
    return cast(ChipLayer, module)
