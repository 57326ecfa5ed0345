"""The simulated tile: how a device card becomes a configuration of aihwkit's tiles."""

from functools import cache
from typing import Literal, get_args

import aihwkit
import torch
from aihwkit.inference import GlobalDriftCompensation
from aihwkit.nn import AnalogLinear
from aihwkit.simulator.configs import InferenceRPUConfig, TorchInferenceRPUConfig
from aihwkit.simulator.parameters.enums import (
    BoundManagementType,
    NoiseManagementType,
    WeightNoiseType,
)
from aihwkit.simulator.parameters.io import IOParameters
from aihwkit.simulator.parameters.mapping import MappingParameter

from analog_grasp.devices import DeviceCard

Tile = Literal["torch", "rpucuda"]
DriftCompensation = Literal["global", "none"]

_CONFIGS = {"torch": TorchInferenceRPUConfig, "rpucuda": InferenceRPUConfig}
_COMPENSATIONS = {"global": GlobalDriftCompensation, "none": lambda: None}
_INPUT_SCALING = {
    "abs_max": NoiseManagementType.ABS_MAX,
    "constant": NoiseManagementType.CONSTANT,
    "none": NoiseManagementType.NONE,
}
_BOUND_MANAGEMENT = {
    "iterative": BoundManagementType.ITERATIVE,
    "none": BoundManagementType.NONE,
}


def tile_config(
    card: DeviceCard, tile: Tile = "torch", drift_compensation: DriftCompensation = "global"
) -> TorchInferenceRPUConfig | InferenceRPUConfig:
    """Return the aihwkit configuration of the tiles that a device card describes.

    Weights are scaled by column to [-1, 1], the bias stays digital, and a layer larger than the
    card's tile is split. Device noise is not part of it: it is the card's `CardNoiseModel`.

    Args:
        card: The device.
        tile: ``"torch"`` for aihwkit's tile in torch, ``"rpucuda"`` for its compiled one.
        drift_compensation: ``"global"`` scales a tile's outputs so that the mean magnitude of a
            known read-out is what it was after programming; ``"none"`` does not.

    Raises:
        ValueError: An unknown tile or drift compensation.
        RuntimeError: The compiled tile does not work with the installed torch.

    Source:
        aihwkit (Rasch et al., AICAS 2021); global drift compensation: Joshi et al.,
        Nat. Commun. 11, 2473 (2020).

    Example:
        >>> tile_config(DeviceCard.load("ideal")).forward.is_perfect
        True
    """
    if tile not in _CONFIGS:
        raise ValueError(f"tile is {tile!r}, which is unknown: use {' or '.join(get_args(Tile))}.")
    if drift_compensation not in _COMPENSATIONS:
        raise ValueError(
            f"drift_compensation is {drift_compensation!r}, which is unknown: "
            f"use {' or '.join(get_args(DriftCompensation))}."
        )
    if tile == "rpucuda":
        _check_compiled_tile()
    config = _CONFIGS[tile]()
    config.mapping = MappingParameter(
        digital_bias=True,
        weight_scaling_omega=1.0,
        weight_scaling_columnwise=True,
        max_input_size=card.tile.rows,
        max_output_size=card.tile.columns,
    )
    config.forward = _converters(card)
    config.drift_compensation = _COMPENSATIONS[drift_compensation]()
    return config


def _converters(card: DeviceCard) -> IOParameters:
    """DAC, output noise and ADC of a tile, in aihwkit's terms."""
    converters = card.converters
    if converters is None:
        return IOParameters(is_perfect=True)
    return IOParameters(
        inp_res=_resolution(converters.dac_bits),
        out_res=_resolution(converters.adc_bits),
        out_noise=converters.output_noise,
        out_bound=converters.output_range or 0.0,
        noise_management=_INPUT_SCALING[converters.input_scaling],
        bound_management=_BOUND_MANAGEMENT[converters.bound_management],
        w_noise=0.0,
        w_noise_type=WeightNoiseType.NONE,
    )


def _resolution(bits: int | None) -> float:
    """The step of a converter relative to its full range: 2^bits - 1 levels about 0."""
    return 1.0 / (2**bits - 2) if bits else 0.0


@cache
def _check_compiled_tile() -> None:
    """Run aihwkit's compiled tile once, which fails in obscure ways where it does not fit."""
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
