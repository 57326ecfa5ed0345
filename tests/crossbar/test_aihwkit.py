import pytest
import torch
from aihwkit.simulator.tiles.array import TileModuleArray
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from analog_grasp.crossbar import aihwkit as module
from analog_grasp.crossbar.aihwkit import compiled_config
from analog_grasp.crossbar.chip_layer import parts
from analog_grasp.crossbar.linear import CrossbarLinear
from analog_grasp.crossbar.tile_sets import DeploymentSettings
from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.fields import StdCurve
from analog_grasp.devices.schema import Circuit, ConductanceRange, Converters


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


@given(st.integers(1, 3000), st.integers(1, 600))
def test_an_axis_is_split_as_aihwkit_splits_it(size, largest):
    ours = [part.stop - part.start for part in parts(size, largest)]
    assert ours == TileModuleArray.get_split_sizes(None, size, largest)


@pytest.mark.parametrize("compensation", ["global", "per-column", "exact", "none"])
def test_the_weights_of_uneven_tiles_are_read_and_compared(compensation):
    """Ten inputs on tiles of at most three are four parts, and seven outputs are three."""
    layer = nn.Linear(10, 7)
    device = DeviceCard.load("pcm-nandakumar2019").with_(tile_size=(3, 3)).without("converters")
    chips = [
        DeploymentSettings(device, tile=tile, drift_compensation=compensation)
        for tile in ("torch", "rpucuda")
    ]
    ours, theirs = (settings.put_on_tiles("layer", layer) for settings in chips)
    for chip in (ours, theirs):
        chip.program(0)
        chip.drift_to(86400.0)
    with torch.no_grad():
        shown = (theirs(torch.eye(10)) - theirs(torch.zeros(1, 10))).T
    torch.testing.assert_close(theirs.present_weight(), shown, rtol=1e-4, atol=1e-5)
    largest = [split.scale[:, None].expand(split.weight.shape) for split in ours.splits]
    error = (theirs.present_weight() - layer.weight.detach()) / torch.cat(largest, 1)
    assert theirs.weight_error() == pytest.approx(float(error.square().mean().sqrt()), rel=1e-4)


@pytest.mark.parametrize("tile", ["torch", "rpucuda"])
@pytest.mark.parametrize("step", ["program", "drift_to"])
def test_a_frozen_weight_that_was_changed_is_an_error(tile, step):
    linear = nn.Linear(4, 3)
    layer = DeploymentSettings(DeviceCard.load("ideal"), tile=tile).put_on_tiles("dense", linear)
    layer.program(0)
    with torch.no_grad():
        linear.weight.add_(1)
    with pytest.raises(RuntimeError, match="frozen weight of the layer dense was changed in place"):
        getattr(layer, step)(0)


@pytest.mark.parametrize("mapping", ["pair", "single"])
def test_constant_noise_from_read_to_read_reaches_the_tile(mapping):
    noise = StdCurve(variable="g", form="polynomial", coefficients=(1.0,), unit="uS")
    devices = ConductanceRange(g_min="1 uS", g_max="21 uS", mapping=mapping)
    card = DeviceCard.load("ideal").model_copy(update={"short_term": noise, "conductance": devices})
    # 20 uS are a weight of 1 for two devices, and the range from -1 to 1 for one.
    expected = 2**0.5 / 20 if mapping == "pair" else 2 / 20
    assert compiled_config(card, "none").forward.w_noise == pytest.approx(expected)
    layer = CrossbarLinear(nn.Linear(64, 8), card, "layer")
    layer.drift_to(0.0)
    assert layer.splits[0].variance == pytest.approx(expected**2, rel=1e-3)


def test_a_compiled_tile_that_does_not_fit_torch_is_an_error(monkeypatch):
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


def with_circuit(**circuit) -> DeviceCard:
    card = DeviceCard.load("pcm-hermes-2").without("programming", "drift", "read")
    exact = card.converters.model_copy(update={"output_noise": 0.0})
    return card.model_copy(update={"converters": exact, "circuit": Circuit(**circuit)})


@torch.inference_mode()
def outputs(card: DeviceCard, tile: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the outputs of a column of equal weights, with and without the circuit."""
    layer = nn.Linear(256, 4, bias=False)
    layer.weight.fill_(0.5)
    x = torch.full((1, 256), 0.5)
    chip = DeploymentSettings(card, tile=tile).put_on_tiles("layer", layer)
    chip.program(0)
    chip.drift_to(0.0)
    plain = DeploymentSettings(card.without("circuit"), tile="rpucuda").put_on_tiles("layer", layer)
    return chip(x), plain(x)


@pytest.mark.parametrize("tile", ["rpucuda", "ir-drop"])
def test_wire_resistance_lowers_the_outputs(tile):
    weak, plain = outputs(with_circuit(wire_resistance="0.1 Ohm"), tile)
    strong, _ = outputs(with_circuit(wire_resistance="2 Ohm"), tile)
    assert (strong.abs() < weak.abs()).all()
    assert (weak.abs() < 1.02 * plain.abs()).all()
    # The compiled tile drops in proportion to the current, which its bound management lowers.
    assert (strong.abs() < (0.98 if tile == "rpucuda" else 0.9) * plain.abs()).all()


def test_a_nonlinear_bit_line_saturates():
    bent, plain = outputs(with_circuit(nonlinearity=1.0), "rpucuda")
    assert (bent.abs() < plain.abs()).all()


@pytest.mark.parametrize(
    ("circuit", "tile", "sentence"),
    [
        ({"wire_resistance": "1 Ohm"}, "torch", "tile='torch' cannot simulate.*circuit=False"),
        ({"nonlinearity": 1.0}, "ir-drop", "states no circuit.wire_resistance"),
        (
            {"wire_resistance": "1 Ohm", "nonlinearity": 1.0},
            "ir-drop",
            "takes no circuit.nonlinearity",
        ),
    ],
)
def test_a_circuit_that_a_tile_cannot_simulate_is_an_error(circuit, tile, sentence):
    with pytest.raises(ValueError, match=sentence):
        DeploymentSettings(with_circuit(**circuit), tile=tile)


@pytest.mark.parametrize("absent", ["converters", "output_range"])
def test_a_nonlinear_bit_line_without_an_output_range_is_an_error(absent):
    card = with_circuit(nonlinearity=1.0)
    if absent == "converters":
        card = card.without("converters")
    else:
        card = card.model_copy(update={"converters": Converters(dac_bits=8)})
    with pytest.raises(ValueError, match=r"relative to converters\.output_range, which is absent"):
        DeploymentSettings(card, tile="rpucuda")


def test_the_compiled_tile_rejects_noise_that_differs_by_conductance():
    with pytest.raises(ValueError, match="sonos-agrawal2022 differs by conductance"):
        DeploymentSettings(DeviceCard.load("sonos-agrawal2022"), tile="rpucuda")
