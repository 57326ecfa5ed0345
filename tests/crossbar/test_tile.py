import pytest
import torch

from analog_grasp.crossbar import tile as module
from analog_grasp.crossbar.tile import tile_config
from analog_grasp.devices import DeviceCard


def test_a_cards_converters_and_size_reach_the_tile():
    card = DeviceCard.load("pcm-hermes-2")
    config = tile_config(card)
    assert config.forward.inp_res == config.forward.out_res == 1 / 254
    assert config.forward.out_noise == card.converters.output_noise
    assert config.mapping.max_input_size == card.tile.rows
    assert config.mapping.weight_scaling_columnwise
    assert config.mapping.digital_bias


def test_without_converters_the_tile_is_perfect():
    assert tile_config(DeviceCard.load("pcm-hermes-2").without("converters")).forward.is_perfect


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"tile": "cuda"}, "tile is 'cuda'.*torch or rpucuda"),
        ({"drift_compensation": "local"}, "drift_compensation is 'local'.*global or none"),
    ],
)
def test_unknown_choices_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        tile_config(DeviceCard.load("ideal"), **settings)


def test_a_compiled_tile_that_does_not_fit_is_named(monkeypatch):
    class Misfit(torch.nn.Module):
        def __init__(self, *_, **__):
            super().__init__()

        def forward(self, _):
            raise RuntimeError("weights must be a CPU tensor")

    module._check_compiled_tile.cache_clear()
    monkeypatch.setattr(module, "AnalogLinear", Misfit)
    with pytest.raises(RuntimeError, match=r"compiled tile does not work with torch .*CPU tensor"):
        tile_config(DeviceCard.load("ideal"), tile="rpucuda")
    module._check_compiled_tile.cache_clear()
