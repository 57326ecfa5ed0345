"""Mapping of weights to tiles: column scales, clipping, rescaling."""

import pytest
import torch
from peft import get_peft_model
from torch import nn

from analog_grasp import Deployment, DeviceCard, GraspConfig, deploy
from analog_grasp.crossbar.forward_hooks import hooks_of
from analog_grasp.crossbar.linear import CrossbarLinear
from analog_grasp.crossbar.mapping import column_scale, input_scale
from analog_grasp.devices.schema import LayerMapping

# A weight with an outlier in each column, and inputs of which some are a hundred times larger.
D_OUT, D = 6, 40


@pytest.fixture
def layer():
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(D, D_OUT)
    layer.weight.data = torch.randn(D_OUT, D, generator=generator)
    layer.weight.data[:, 3] *= 8
    return layer


@pytest.fixture
def x():
    x = torch.randn(50, D, generator=torch.Generator().manual_seed(1))
    x[:, ::7] *= 100
    return x


@torch.no_grad()
def error(model, digital, x):
    """Return the root mean square error of the outputs, relative to the digital ones."""
    y = digital(x)
    return float((model(x) - y).square().mean().sqrt() / y.square().mean().sqrt())


def on_chip(layer, device="pcm-hermes-2", **settings):
    return deploy(nn.Sequential(layer), device, **settings)


def test_a_column_is_scaled_by_its_largest_weight(layer):
    assert torch.equal(column_scale(layer.weight), layer.weight.abs().amax(1))


def test_a_multiple_of_the_standard_deviation_clips_only_what_is_beyond(layer):
    weight = layer.weight.detach()
    scale = column_scale(weight, clip=2.0)
    expected = torch.minimum(2 * weight.std(1, correction=0), weight.abs().amax(1))
    torch.testing.assert_close(scale, expected)
    assert (scale < column_scale(weight)).sum() == D_OUT - 1
    assert torch.equal(column_scale(weight, clip=50.0), column_scale(weight))
    assert torch.equal(column_scale(torch.zeros(2, 3), clip=2.0), torch.ones(2))
    # Without a spread there is no outlier: one input, or equal weights.
    assert torch.equal(column_scale(torch.full((2, 4), -3.0), clip=2.0), torch.full((2,), 3.0))
    assert torch.equal(column_scale(torch.full((2, 1), 3.0), clip=2.0), torch.full((2,), 3.0))


def test_weights_are_clipped_as_the_card_states_unless_the_argument_is_given(layer):
    mapping = LayerMapping(clip=2.0)
    card = DeviceCard.load("ideal").model_copy(update={"mapping": mapping})

    def programmed(device, **settings):
        return on_chip(layer, device, **settings).program(0).weights()["0"]

    for by_card, by_argument in (({}, {"clip": 2.0}), ({"clip": 1.0}, {"clip": 1.0}), ({}, {})):
        device = card if by_card or by_argument else card.without("mapping")
        assert torch.equal(programmed(device, **by_card), programmed("ideal", **by_argument))
    assert not torch.equal(programmed(card), programmed("ideal"))


def test_clipped_weights_are_what_is_programmed(layer):
    ideal = on_chip(layer, "ideal", clip=2.0).program(0)
    scale = column_scale(layer.weight.detach(), 2.0)[:, None]
    expected = layer.weight.detach().clamp(-scale, scale)
    torch.testing.assert_close(ideal.weights()["0"], expected, atol=1e-6, rtol=1e-5)
    assert ideal.report()[0].weight_error < 1e-6


def test_least_error_is_at_most_that_of_any_multiple(layer):
    card = DeviceCard.load("pcm-hermes-2")

    def weight_error(clip):
        errors = []
        for chip in range(40):
            present = on_chip(layer, card, clip=clip).program(chip).drift_to("1d").weights()["0"]
            errors.append((present - layer.weight.detach()).square().mean())
        return float(torch.stack(errors).mean())

    best = weight_error("least-error")
    assert best < 0.9 * weight_error(None)
    assert all(best < 1.02 * weight_error(clip) for clip in (1.0, 2.0, 3.0))


def test_an_ideal_device_clips_nothing_by_least_error(layer):
    scale = column_scale(layer.weight.detach(), "least-error", DeviceCard.load("ideal"))
    torch.testing.assert_close(scale, layer.weight.detach().abs().amax(1))


@pytest.mark.parametrize("clip", [0, -1.0, float("nan"), float("inf"), "most", True])
def test_another_clip_is_an_error(layer, clip):
    with pytest.raises(ValueError, match=r"clip is .*above 0, or 'least-error'"):
        on_chip(layer, clip=clip)


def test_the_input_scale_is_that_of_the_paper(layer, x):
    largest = x.abs().amax(0)
    scale = input_scale(largest, layer.weight.detach(), 0.5)
    expected = (largest / layer.weight.detach().abs().amax(0)).sqrt()
    torch.testing.assert_close(scale / scale[0], expected / expected[0])
    even = x / input_scale(largest, layer.weight.detach(), 1.0)
    torch.testing.assert_close(even.abs().amax(0), even.abs().max().expand(D))
    assert torch.equal(input_scale(torch.zeros(3), torch.zeros(2, 3), 0.5), torch.ones(3))


@pytest.mark.parametrize("fixed", [None, 100.0])
def test_rescaling_is_exact_on_the_ideal_device(layer, x, fixed):
    # A change to no bits gives the card exact converters.
    card = DeviceCard.load("ideal").with_(dac_bits=0) if fixed else "ideal"
    ideal = on_chip(layer, card).program(0).rescale(lambda model: model(x))
    if fixed:
        ideal.calibrate(lambda model: model(x), fixed)
    assert error(ideal.model, layer, x) < 1e-6
    torch.testing.assert_close(ideal.weights()["0"], layer.weight.detach(), atol=1e-5, rtol=1e-5)


def test_rescaling_keeps_small_inputs_above_a_step_of_the_converter(layer, x):
    quiet = {"programming_noise": False, "drift": False, "read_noise": False}
    plain = on_chip(layer, **quiet).program(0)
    rescaled = on_chip(layer, **quiet).rescale(lambda model: model(x), 1.0).program(0)
    small = x[:, [i for i in range(D) if i % 7]]
    assert small.abs().max() < 100

    def lost(deployment):
        scale = deployment.layers["0"].input_scale
        inputs = x if scale is None else x / scale
        step = inputs.abs().amax(1, keepdim=True) / 127
        return float((inputs.abs() < step / 2).float().mean())

    assert lost(rescaled) < 0.1 < 0.3 < lost(plain)


def test_a_programmed_chip_is_programmed_again(layer, x):
    before = on_chip(layer).rescale(lambda model: model(x)).program(3).drift_to("1h")
    after = on_chip(layer).program(3).drift_to("1h").rescale(lambda model: model(x))
    assert (after.seed, after.time_s) == (3, 3600.0)
    assert torch.equal(after.weights()["0"], before.weights()["0"])


def test_calibrated_ranges_are_those_of_the_rescaled_inputs(layer, x):
    deployment = on_chip(layer).program(0).rescale(lambda model: model(x), 1.0)
    ranges = deployment.calibrate(lambda model: model(x))
    scale = deployment.layers["0"].input_scale
    assert ranges["0"] == pytest.approx(float((x / scale).abs().max()))


def test_rescaling_is_an_initial_value_of_grasp_with_a_group_per_feature(layer, x):
    """On W diag(r) the scales 1/r give every read of W on a chip that is rescaled by r."""
    rescaled = on_chip(layer).rescale(lambda model: model(x)).program(3).drift_to("1d")
    factor, weight = rescaled.layers["0"].input_scale, layer.weight.detach()
    changed = nn.Sequential(nn.Linear(D, D_OUT))
    changed[0].weight.data, changed[0].bias.data = weight * factor, layer.bias.detach().clone()
    grasp = get_peft_model(changed, GraspConfig(groups=D, target_modules=["0"]))
    scale, _ = grasp.base_model.model[0].means("default")
    scale.data = 1 / factor
    other = deploy(grasp, "pcm-hermes-2").program(3).drift_to("1d")
    with torch.no_grad():
        torch.testing.assert_close(other.model(x), rescaled.model(x), rtol=1e-4, atol=1e-3)


def test_attached_models_have_the_same_rescaling(layer, x):
    chip = on_chip(layer, "ideal").rescale(lambda model: model(x)).program(0)
    assert error(chip.attach(nn.Sequential(layer)), layer, x) < 1e-6


def test_ranges_from_before_a_rescaling_are_dropped_in_attached_models_too(layer, x):
    model = nn.Sequential(layer)
    deployment = deploy(model, "pcm-hermes-2").program(seed=0)
    other = deployment.attach(model)
    for attached in (deployment.model, other):
        deployment.calibrate(lambda model: model(x), model=attached)
    deployment.rescale(lambda model: model(x))
    assert torch.equal(other(x), deployment.attach(model)(x))
    assert hooks_of(deployment.model).input_ranges == {}


def test_a_rescaled_and_clipped_chip_is_saved(layer, x, tmp_path):
    chip = on_chip(layer, clip=2.5, first_token="digital").rescale(lambda model: model(x))
    chip.program(2).drift_to("1d").save(tmp_path)
    loaded = Deployment.load(tmp_path, nn.Sequential(nn.Linear(D, D_OUT)))
    assert torch.equal(loaded.weights()["0"], chip.weights()["0"])


@pytest.mark.parametrize("exponent", [-0.1, 1.5, float("nan")])
def test_an_exponent_out_of_range_is_an_error(layer, x, exponent):
    with pytest.raises(ValueError, match=r"exponent of rescaling is .*from 0 to 1"):
        on_chip(layer).rescale(lambda model: model(x), exponent)


def test_the_compiled_tile_has_none_of_it(layer, x):
    with pytest.raises(ValueError, match="setting rescale has no effect with tile='rpucuda'"):
        on_chip(layer, tile="rpucuda").rescale(lambda model: model(x))
    for settings in ({"clip": 2.0}, {"first_token": "digital"}):
        with pytest.raises(ValueError, match="has no effect with tile='rpucuda'"):
            on_chip(layer, tile="rpucuda", **settings)


def test_bfloat16_tiles_are_rescaled_too(layer, x):
    card = DeviceCard.load("ideal")
    tiles = CrossbarLinear(layer, card, "0", dtype=torch.bfloat16)
    tiles.rescale(input_scale(x.abs().amax(0), layer.weight.detach(), 0.5))
    assert error(tiles, layer, x) < 0.01
