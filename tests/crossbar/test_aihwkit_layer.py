import pytest
import torch

from analog_grasp.crossbar import aihwkit_layer as module
from analog_grasp.crossbar.aihwkit_layer import compiled_config
from analog_grasp.devices import DeviceCard


def test_a_cards_converters_and_size_reach_the_tile():
    card = DeviceCard.load("pcm-hermes-2")
    config = compiled_config(card, "global")
    assert config.forward.inp_res == config.forward.out_res == 1 / 254
    assert config.forward.out_noise == card.converters.output_noise
    assert config.mapping.max_input_size == card.tile.rows
    assert config.mapping.weight_scaling_columnwise
    assert config.mapping.digital_bias


def test_without_converters_the_tile_is_perfect():
    card = DeviceCard.load("pcm-hermes-2").without("converters")
    assert compiled_config(card, "none").forward.is_perfect


def test_a_compiled_tile_that_does_not_fit_is_named(monkeypatch):
    class Misfit(torch.nn.Module):
        def __init__(self, *_, **__):
            super().__init__()

        def forward(self, _):
            raise RuntimeError("weights must be a CPU tensor")

    module.check_compiled_tile.cache_clear()
    monkeypatch.setattr(module, "AnalogLinear", Misfit)
    with pytest.raises(RuntimeError, match=r"compiled tile does not work with torch .*CPU tensor"):
        compiled_config(DeviceCard.load("ideal"), "global")
    module.check_compiled_tile.cache_clear()
