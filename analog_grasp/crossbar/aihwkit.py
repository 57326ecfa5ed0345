"""A linear layer on aihwkit's own tiles, for the circuit effects that only they simulate."""

import dataclasses
from functools import cache
from typing import Any

import aihwkit
import torch
from aihwkit.inference.compensation.drift import (
    GlobalDriftCompensation,
    GlobalDriftCompensationWithExactReference,
    PerColumnDriftCompensation,
)
from aihwkit.inference.converter.conductance import SinglePairConductanceConverter
from aihwkit.inference.noise.pcm import PCMLikeNoiseModel
from aihwkit.nn import AnalogLinear
from aihwkit.simulator.configs import InferenceRPUConfig
from aihwkit.simulator.configs.configs import TorchInferenceRPUConfigIRDropT
from aihwkit.simulator.parameters.enums import (
    BoundManagementType,
    NoiseManagementType,
    WeightNoiseType,
)
from aihwkit.simulator.parameters.io import IOParameters, IOParametersIRDropT
from aihwkit.simulator.parameters.mapping import MappingParameter
from aihwkit.simulator.tiles.base import BaseTile
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from analog_grasp.adapters.frozen import FrozenLayer, by_output
from analog_grasp.crossbar.mapping import parts, tile_seed
from analog_grasp.crossbar.tile_weight import TileWeight, reject_loading
from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.noise_model import CardNoiseModel
from analog_grasp.devices.schema import Converters
from analog_grasp.utils.seed import derive_seed
from analog_grasp.utils.types import DriftCompensation

_COMPENSATIONS = {
    "global": GlobalDriftCompensation,
    "per-column": PerColumnDriftCompensation,
    "exact": GlobalDriftCompensationWithExactReference,
    "none": lambda: None,
}
_INPUT_SCALING = {
    "abs_max": NoiseManagementType.ABS_MAX,
    "constant": NoiseManagementType.CONSTANT,
    "none": NoiseManagementType.NONE,
}
_BOUND_MANAGEMENT = {
    "iterative": BoundManagementType.ITERATIVE,
    "none": BoundManagementType.NONE,
}

# Segments of a bit line between which the voltage is solved; aihwkit's default.
_SEGMENTS = 8


class AihwkitLinear(AnalogLinear):
    """A frozen linear layer on aihwkit's tiles, with the interface of `CrossbarLinear`.

    The forward noise of the compiled tile is not determined by our seeds.

    Args:
        layer: ``nn.Linear`` or ``Conv1D``.
        card: The device.
        name: The name of the layer in the base model, which determines its devices on a chip.
        config: aihwkit's configuration, from `compiled_config` or `wired_config`.

    Attributes:
        frozen: The frozen weight, ``(D_out, D)``.
        digital: Compute with the frozen weight, exactly.
        reads: The number of forward passes through the layer.
    """

    def __init__(self, layer: FrozenLayer, card: DeviceCard, name: str, config: object) -> None:
        weight = by_output(layer)
        # aihwkit initialises a layer at random before it takes our weights.
        with torch.random.fork_rng():
            super().__init__(
                weight.shape[1], weight.shape[0], layer.bias is not None, rpu_config=config
            )
        self.set_weights(weight, layer.bias)
        self.requires_grad_(False)
        self.to(weight.device).eval()
        self.name, self.card = name, card
        self.input_range: float | None = None
        self.output_ranges: list[list[float]] | None = None
        self.input_scale: Tensor | None = None
        self.exact_at: Tensor | None = None
        self.digital = False
        self.reads = 0
        self.frozen = weight
        # In place of aihwkit's attributes, None and a flag, which other code cannot use.
        self.weight = TileWeight(self, isinstance(layer, Conv1D))
        self.bias: Tensor | None = None if layer.bias is None else layer.bias.detach().clone()

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return len(self._tiles())

    @property
    def cells(self) -> int:
        """Number of cross-points that store a weight."""
        return sum(tile.in_size * tile.out_size for tile in self._tiles())

    def program(self, chip: int) -> None:
        """Program the weights onto a chip instance; it is then 0 s old."""
        self._chip = chip
        with torch.random.fork_rng():
            for tile, seed in zip(self._tiles(), self._seeds(), strict=True):
                torch.manual_seed(derive_seed(seed, "reference"))
                tile.program_weights(noise_model=CardNoiseModel(self.card, seed, chip))
        self.drift_to(0.0)

    def drift_to(self, seconds: float) -> None:
        """Age the tiles to a time since programming, in s."""
        with torch.random.fork_rng():
            for tile, seed in zip(self._tiles(), self._seeds(), strict=True):
                torch.manual_seed(derive_seed(seed, "read-out", seconds))
                tile.drift_weights(seconds)

    def forward(self, x: Tensor, add_bias: bool = True) -> Tensor:
        """Compute ``(..., D_out)`` from ``(..., D)``, with the digital bias if asked for.

        Raises:
            ValueError: An input range was set, which this tile does not take.
        """
        self.reads += 1
        if self.digital:
            bias = None if self.bias is None or not add_bias else self.bias.to(x.dtype)
            return nn.functional.linear(x, self.frozen.to(x.dtype), bias)
        if self.input_range is not None:
            raise ValueError(
                "aihwkit's compiled tile takes no calibrated input ranges here: use tile='torch'."
            )
        y = super().forward(x.float())
        y = y if add_bias or self.bias is None else y - self.bias
        return y.to(x.dtype)

    def weight_error(self) -> float:
        """Return the root mean square of (weight now - target), in units of the column maximum."""
        squares = 0.0
        for tile in self._tiles():
            now = tile.tile.get_weights()
            target = tile.reference_combined_weights
            if target is not None:
                squares += float((now * tile.alpha.cpu() - target.cpu()).square().sum())
        return (squares / self.cells) ** 0.5

    def present_weight(self) -> Tensor:
        """Return the weight now as the digital side sees it, ``(D_out, D)``, in frozen units."""
        rows = parts(self.in_features, self.card.tile.rows)
        columns = parts(self.out_features, self.card.tile.columns)
        weight = torch.empty(self.out_features, self.in_features)
        places = [(row, column) for row in rows for column in columns]
        for tile, (row, column) in zip(self._tiles(), places, strict=True):
            scale = (tile.get_mapping_scales() * tile.alpha).cpu()
            weight[column, row] = tile.tile.get_weights() * scale.reshape(-1, 1)
        return weight

    def _apply(self, fn: Any, recurse: bool = True) -> "AihwkitLinear":
        """Follow a move to another device, but no conversion to another type."""
        frozen: Tensor | None = self.__dict__.get("frozen")
        if frozen is None:
            super()._apply(fn, recurse)
            return self
        device = fn(frozen.new_empty(0)).device
        if device != frozen.device:
            super()._apply(lambda tensor: tensor.to(device), recurse)
            self.frozen = frozen.to(device)
            self.bias = None if self.bias is None else self.bias.to(device)
        return self

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *more: Any) -> None:
        if f"{prefix}weight" in state:
            reject_loading(self.name)
        super()._load_from_state_dict(state, prefix, *more)

    def _tiles(self) -> list[BaseTile]:
        return list(self.analog_tiles())

    def _seeds(self) -> list[int]:
        """Return the seed of each tile's devices: those of the same tile in a `CrossbarLinear`."""
        size = self.card.tile
        return [
            tile_seed(self._chip, self.name, rows, columns)
            for rows in parts(self.in_features, size.rows)
            for columns in parts(self.out_features, size.columns)
        ]


def compiled_config(card: DeviceCard, compensation: DriftCompensation) -> InferenceRPUConfig:
    """Return the configuration of aihwkit's compiled tile that a device card describes.

    Weights are scaled by column to [-1, 1], the bias stays digital, and a layer larger than the
    card's tile is split. Device noise is not part of it; it is that of the card's
    `CardNoiseModel`.

    Raises:
        RuntimeError: The compiled tile does not work with the installed torch.
        ValueError: The card has what the compiled tile cannot simulate.

    Source:
        aihwkit (Rasch et al., AICAS 2021).

    Example:
        >>> compiled_config(DeviceCard.load("ideal"), "global").forward.is_perfect
        True
    """
    check_compiled_tile()
    config = _mapped(InferenceRPUConfig(), card, compensation)
    config.forward = _converters(card, IOParameters(), _read_noise(card) | _circuit(card))
    return config


def wired_config(
    card: DeviceCard, compensation: DriftCompensation
) -> TorchInferenceRPUConfigIRDropT:
    """Return the configuration of aihwkit's time-stepped torch tile, which resolves the I-R drop.

    The inputs are pulses whose length encodes their value, and the voltages along the bit lines are
    solved at every time step. This is slow, and suits single layers and small models.

    Raises:
        ValueError: The card has no wire resistance, or what that tile cannot simulate.

    Source:
        aihwkit's `TorchInferenceRPUConfigIRDropT`.
    """
    circuit, converters = card.circuit, card.converters
    if circuit is None or circuit.wire_resistance is None:
        raise ValueError(
            f"The card {card.name} states no circuit.wire_resistance, which tile='ir-drop' is for: "
            "add it to the card, or use tile='torch'."
        )
    if converters is None or converters.dac_bits is None or card.conductance.mapping != "pair":
        raise ValueError(
            f"The card {card.name} cannot be simulated by tile='ir-drop', which needs dac_bits and "
            "two devices per weight: use tile='rpucuda'."
        )
    if circuit.nonlinearity or card.short_term is not None or card.tile.rows % _SEGMENTS:
        raise ValueError(
            f"The card {card.name} cannot be simulated by tile='ir-drop', which takes no "
            f"circuit.nonlinearity, no short_term noise and a multiple of {_SEGMENTS} tile rows: "
            "use tile='rpucuda'."
        )
    config = _mapped(TorchInferenceRPUConfigIRDropT(), card, compensation)
    wires = {"ir_drop_rs": circuit.wire_resistance, "ir_drop_segments": _SEGMENTS}
    # The pulse counter would be a second ADC in place of the card's.
    plain = IOParametersIRDropT(adc_quantization=False)
    config.forward = _converters(card, plain, {"ir_drop": 1.0} | wires)
    # The tile takes its conductance range from here; its devices are the card's.
    g_min, g_max = card.conductance.g_min, card.conductance.g_max
    config.noise_model = PCMLikeNoiseModel(
        g_converter=SinglePairConductanceConverter(g_max=g_max, g_min=g_min)
    )
    return config


def _mapped[C: InferenceRPUConfig | TorchInferenceRPUConfigIRDropT](
    config: C, card: DeviceCard, compensation: DriftCompensation
) -> C:
    config.mapping = MappingParameter(
        digital_bias=True,
        weight_scaling_omega=1.0,
        weight_scaling_columnwise=True,
        max_input_size=card.tile.rows,
        max_output_size=card.tile.columns,
    )
    config.drift_compensation = _COMPENSATIONS[compensation]()
    return config


def _read_noise(card: DeviceCard) -> dict[str, Any]:
    variance = CardNoiseModel(card).constant_short_term_variance(torch.ones(1, 1))
    if variance is None:
        raise ValueError(
            f"The read noise of {card.name} differs by conductance from read to read, which "
            "aihwkit's compiled tile cannot simulate: use tile='torch', or read_noise=False."
        )
    if not variance:
        return {}
    return {"w_noise": variance**0.5, "w_noise_type": WeightNoiseType.ADDITIVE_CONSTANT}


def _circuit(card: DeviceCard) -> dict[str, Any]:
    circuit = card.circuit
    if circuit is None:
        return {}
    settings: dict[str, Any] = {
        "out_nonlinearity": circuit.nonlinearity,
        "out_nonlinearity_std": circuit.nonlinearity_std,
    }
    if circuit.wire_resistance is not None:
        largest = card.conductance.g_max * 1e-6
        settings |= {"ir_drop": 1.0, "ir_drop_g_ratio": 1 / (circuit.wire_resistance * largest)}
    return settings


def _converters[P: IOParameters](card: DeviceCard, plain: P, more: dict[str, Any]) -> P:
    """Return DAC, output noise and ADC of a tile in aihwkit's terms, with further effects."""
    converters = card.converters
    if converters is None and not more:
        return dataclasses.replace(plain, is_perfect=True)
    if converters is None:
        # Exact converters; a perfect pass would skip the other effects.
        converters = Converters()
    return dataclasses.replace(
        plain,
        inp_res=_resolution(converters.dac_bits),
        inp_bound=1.0 if card.converters else 0.0,
        out_res=_resolution(converters.adc_bits),
        out_noise=converters.output_noise,
        out_bound=converters.output_range or 0.0,
        noise_management=_INPUT_SCALING[converters.input_scaling],
        bound_management=_BOUND_MANAGEMENT[converters.bound_management],
        **more,
    )


def _resolution(bits: int | None) -> float:
    """Return a converter's step relative to its full range, which has 2^bits - 2 steps."""
    return 1.0 / (2**bits - 2) if bits else 0.0


@cache
def check_compiled_tile() -> None:
    """Run aihwkit's compiled tile once, to report in one sentence if it does not fit torch.

    Raises:
        RuntimeError: It does not work with the installed torch.
    """
    try:
        with torch.random.fork_rng():
            layer = AnalogLinear(2, 2, rpu_config=InferenceRPUConfig())
            layer.eval()(torch.ones(1, 2))
    except (ImportError, RuntimeError, AttributeError, TypeError) as error:
        raise RuntimeError(
            f"aihwkit {aihwkit.__version__}'s compiled tile does not work with torch "
            f"{torch.__version__} ({error}): install a pair that was built together, "
            "or use tile='torch'."
        ) from error
