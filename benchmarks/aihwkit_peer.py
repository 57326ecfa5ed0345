"""Configurations and models of aihwkit with the tile and the converters of a card."""

import torch
from aihwkit.nn.conversion import convert_to_analog
from aihwkit.simulator.parameters.enums import BoundManagementType, NoiseManagementType
from aihwkit.simulator.parameters.mapping import MappingParameter
from torch import nn
from transformers.pytorch_utils import Conv1D

from analog_grasp.adapters.frozen import by_output, frozen_layers
from analog_grasp.devices.card import DeviceCard


def configured[C](config: C, card: DeviceCard) -> C:
    """Set the tile and the converters of a card in a configuration of aihwkit.

    Weights are scaled by column, the bias stays digital, and drift is not compensated.

    Args:
        config: An inference configuration of either of aihwkit's tiles; changed in place.
        card: A device with converters.
    """
    converters = card.converters
    assert converters is not None
    config.mapping = MappingParameter(
        digital_bias=True,
        weight_scaling_omega=1.0,
        weight_scaling_columnwise=True,
        max_input_size=card.tile.rows,
        max_output_size=card.tile.columns,
    )
    config.drift_compensation = None
    io = config.forward
    io.inp_res = 1 / (2**converters.dac_bits - 2) if converters.dac_bits else 0.0
    io.out_res = 1 / (2**converters.adc_bits - 2) if converters.adc_bits else 0.0
    io.out_noise, io.out_bound = converters.output_noise, converters.output_range or 0.0
    io.noise_management = NoiseManagementType[converters.input_scaling.upper()]
    io.bound_management = BoundManagementType[converters.bound_management.upper()]
    return config


def converted(model: nn.Module, config: object) -> nn.Module:
    """Return a model with its frozen layers on aihwkit's tiles; head and adapters stay digital."""
    assert not any(isinstance(module, Conv1D) for module in model.modules())
    others = digital_layers(model)
    return convert_to_analog(model, config, exclude_modules=others, inplace=False)


def with_linear_layers(model: nn.Module) -> nn.Module:
    """Replace the Conv1D layers of a model, which aihwkit ignores, by linear layers.

    Args:
        model: Such as GPT-2; changed in place.
    """
    for name, layer in list(frozen_layers(model)):
        if isinstance(layer, Conv1D):
            with torch.device("meta"):
                linear = nn.Linear(*layer.weight.shape)
            linear.weight = nn.Parameter(by_output(layer).contiguous(), requires_grad=False)
            linear.bias = layer.bias
            model.set_submodule(name, linear)
            layer.weight = None
    return model


def digital_layers(model: nn.Module) -> list[str]:
    """Return the paths of the linear layers that are not frozen layers of the model."""
    frozen = {path for path, _ in frozen_layers(model)}
    return [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and path not in frozen
    ]
