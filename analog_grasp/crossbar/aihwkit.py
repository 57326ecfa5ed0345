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
from torch import Tensor

from analog_grasp.adapters.frozen import FrozenLayer
from analog_grasp.crossbar.chip_layer import ChipLayer
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
# Segments of a bit line between which the voltage is solved; aihwkit's default.
_SEGMENTS = 8


class AihwkitLinear(ChipLayer):
    """A frozen linear layer on aihwkit's tiles.

    The forward noise of the compiled tile is not determined by our seeds, and so neither are the
    read-outs of drift compensation through converters.

    Args:
        layer, card, name: As for `ChipLayer`.
        config: aihwkit's configuration, from `compiled_config` or `wired_config`.
    """

    def __init__(self, layer: FrozenLayer, card: DeviceCard, name: str, config: object) -> None:
        super().__init__(layer, card, name)
        self._config = config
        self.erase()

    def erase(self) -> None:
        # aihwkit initialises a layer at random before it takes our weights.
        with torch.random.fork_rng():
            self.analog = AnalogLinear(self.in_features, self.out_features, False, self._config)
        self.analog.set_weights(self.frozen, None)
        self.analog.requires_grad_(False).to(self.frozen.device)
        self.eval()

    def program(self, chip: int) -> None:
        self._check_frozen()
        self._chip = chip
        with torch.random.fork_rng():
            for tile, _, _, seed in self._placed():
                torch.manual_seed(derive_seed(seed, "reference"))
                tile.program_weights(noise_model=CardNoiseModel(self.card, seed, chip))
        self.drift_to(0.0)

    def drift_to(self, seconds: float) -> None:
        self._check_frozen()
        with torch.random.fork_rng():
            for tile, _, _, seed in self._placed():
                torch.manual_seed(derive_seed(seed, "read-out", seconds))
                tile.drift_weights(seconds)

    def weight_error(self) -> float:
        squares = 0.0
        for tile, *_ in self._placed():
            target = tile.reference_combined_weights
            if target is not None:
                # One factor per tile or per output, the first axis of the weights.
                compensation = tile.alpha.cpu().reshape(-1, 1)
                error = tile.tile.get_weights() * compensation - target.cpu()
                squares += float(error.square().sum())
        return (squares / self.cells) ** 0.5

    def present_weight(self) -> Tensor:
        weight = torch.empty(self.frozen.shape)
        for tile, rows, columns, _ in self._placed():
            scale = (tile.get_mapping_scales() * tile.alpha).cpu()
            weight[columns, rows] = tile.tile.get_weights() * scale.reshape(-1, 1)
        return weight

    def _read(self, x: Tensor, bias: Tensor | None) -> Tensor:
        wired = isinstance(self._config, TorchInferenceRPUConfigIRDropT)
        if wired and torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError(
                f"The layer {self.name} is on tiles with tile='ir-drop', which have no gradient: "
                "compute under torch.no_grad(), or use tile='torch'."
            )
        # That tile takes a batch of vectors only.
        y = self.analog(x.reshape(-1, x.shape[-1]).float()).view(*x.shape[:-1], self.out_features)
        return (y if bias is None else y + bias).to(x.dtype)

    def _move_tiles(self, device: torch.device) -> None:
        self.analog.to(device)

    def _placed(self) -> list[tuple[BaseTile, slice, slice, int]]:
        """Return each tile with its inputs, its outputs, and the seed of its devices."""
        places = [(rows, *tile) for rows in self._rows for tile in self._tiles(rows)]
        tiles = zip(self.analog.analog_tiles(), places, strict=True)
        return [(tile, *place) for tile, place in tiles]


def compiled_config(card: DeviceCard, compensation: DriftCompensation) -> InferenceRPUConfig:
    """Return the configuration of aihwkit's compiled tile that a device card describes.

    Weights are scaled by column to [-1, 1], and a layer larger than the card's tile is split.
    Device noise is not part of it; it is that of the card's `CardNoiseModel`.

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
    # The ends of a tile whose columns are scaled; one device per weight has noise relative to both.
    ends = torch.tensor([[-1.0, 1.0]])
    variance = CardNoiseModel(card).constant_short_term_variance(ends)
    by_die = variance != 0 and card.die_to_die is not None and card.die_to_die.std > 0
    if variance is None or by_die:
        raise ValueError(
            f"The noise from read to read of {card.name} differs by "
            f"{'chip' if by_die else 'conductance'}, which aihwkit's compiled tile cannot "
            "simulate: use tile='torch', or read_noise=False."
        )
    effects: dict[str, Any] = {}
    if variance:
        effects = {"w_noise": variance**0.5, "w_noise_type": WeightNoiseType.ADDITIVE_CONSTANT}
    if (circuit := card.circuit) is not None:
        if circuit.nonlinearity and (card.converters is None or not card.converters.output_range):
            raise ValueError(
                f"The circuit.nonlinearity of the card {card.name} is relative to "
                "converters.output_range, which is absent: add it, keep the converters, or use "
                "circuit=False."
            )
        effects["out_nonlinearity"] = circuit.nonlinearity
        effects["out_nonlinearity_std"] = circuit.nonlinearity_std
        if circuit.wire_resistance is not None:
            largest = card.conductance.g_max * 1e-6
            effects |= {"ir_drop": 1.0, "ir_drop_g_ratio": 1 / (circuit.wire_resistance * largest)}
    config = _mapped(InferenceRPUConfig(), card, compensation)
    config.forward = _converters(card, IOParameters(), effects)
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
    config.forward = _converters(card, plain, wires | {"ir_drop": 1.0})
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
        weight_scaling_omega=1.0,
        weight_scaling_columnwise=True,
        max_input_size=card.tile.rows,
        max_output_size=card.tile.columns,
    )
    config.drift_compensation = _COMPENSATIONS[compensation]()
    return config


def _converters[P: IOParameters](card: DeviceCard, plain: P, effects: dict[str, Any]) -> P:
    """Return DAC, output noise and ADC of a tile in aihwkit's terms, with further effects."""
    if card.converters is None and not effects:
        return dataclasses.replace(plain, is_perfect=True)
    # A perfect pass would skip the other effects.
    converters = card.converters or Converters()
    return dataclasses.replace(
        plain,
        inp_res=_resolution(converters.dac_bits),
        inp_bound=1.0 if card.converters else 0.0,
        out_res=_resolution(converters.adc_bits),
        out_noise=converters.output_noise,
        out_bound=converters.output_range or 0.0,
        noise_management=NoiseManagementType[converters.input_scaling.upper()],
        bound_management=BoundManagementType[converters.bound_management.upper()],
        **effects,
    )


def _resolution(bits: int | None) -> float:
    """Return a converter's step relative to its full range, which has 2^bits - 2 steps."""
    return 1.0 / (2**bits - 2) if bits else 0.0


@cache
def check_compiled_tile() -> None:
    """Run aihwkit's compiled tile once; raise RuntimeError if it does not fit torch."""
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
