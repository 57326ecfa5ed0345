"""The layer on our tiles, checked against aihwkit's own tiles."""

import copy
import itertools

import pytest
import torch
from aihwkit.nn import AnalogLinear
from aihwkit.simulator.configs import InferenceRPUConfig, TorchInferenceRPUConfig
from aihwkit.simulator.parameters.enums import WeightNoiseType
from aihwkit_peer import configured
from scipy import stats
from torch import nn
from transformers.pytorch_utils import Conv1D

from analog_grasp.crossbar.aihwkit import compiled_config
from analog_grasp.crossbar.linear import CrossbarLinear
from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.fields import StdCurve
from analog_grasp.devices.noise_model import CardNoiseModel, card_on_die
from analog_grasp.devices.schema import ConductanceRange, TileSize

SHAPES = [(10, 6), (384, 384), (700, 300)]
EXACT = {"dac_bits": None, "adc_bits": None, "output_noise": 0.0, "output_range": None}


def card(**converters) -> DeviceCard:
    """A card without device noise, with tiles of 256 x 256 and 8-bit converters unless said."""
    base = DeviceCard.load("pcm-hermes-2").without("programming", "drift", "read")
    changes = {"output_noise": 0.0} | converters
    return base.model_copy(update={"converters": base.converters.model_copy(update=changes)})


def dense(shape=(384, 100), bias=True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(*shape, bias=bias)


def theirs(layer: nn.Linear, device: DeviceCard, config=TorchInferenceRPUConfig) -> AnalogLinear:
    """The same layer on aihwkit's tiles."""
    settings = configured(config(), device)
    analog = AnalogLinear(
        layer.in_features, layer.out_features, layer.bias is not None, rpu_config=settings
    )
    analog.set_weights(layer.weight, layer.bias)
    return analog.eval()


def inputs(features: int) -> torch.Tensor:
    torch.manual_seed(1)
    x = torch.randn(3, 11, features)
    x[0, 0] = 0
    return x


@torch.inference_mode()
def both(layer, device, x, config=TorchInferenceRPUConfig):
    return CrossbarLinear(layer, device, "layer")(x), theirs(layer, device, config)(x)


@pytest.mark.parametrize("config", [TorchInferenceRPUConfig, InferenceRPUConfig])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dac", "adc"), itertools.product([None, 6, 8, 10], repeat=2))
def test_equals_aihwkits_tiles_without_noise(shape, dac, adc, config):
    device = card(dac_bits=dac, adc_bits=adc, output_range=30.0)
    ours, expected = both(dense(shape), device, inputs(shape[0]), config)
    # A sum in another order may fall on the other side of a rounding step of a converter.
    differing = (ours - expected).abs() > 1e-5 * expected.abs().max()
    assert differing.float().mean() < 1e-3
    assert ours.shape == expected.shape


@pytest.mark.parametrize("scaling", ["abs_max", "constant", "none"])
@pytest.mark.parametrize("bound", ["none", "iterative"])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_aihwkits_tiles_under_every_management(scaling, bound, bias):
    device = card(input_scaling=scaling, bound_management=bound, output_range=30.0)
    torch.testing.assert_close(*both(dense(bias=bias), device, inputs(384)))


@pytest.mark.parametrize("config", [TorchInferenceRPUConfig, InferenceRPUConfig])
@pytest.mark.parametrize("bound", ["none", "iterative"])
@pytest.mark.parametrize("columns", [100, 300])
def test_equals_aihwkits_tiles_vector_by_vector_where_outputs_are_clipped(bound, columns, config):
    device, layer = card(output_range=0.5, bound_management=bound), dense((384, columns))
    x = inputs(384).view(-1, 384)
    with torch.inference_mode():
        ours = CrossbarLinear(layer, device, "layer")(x)
        peer = theirs(layer, device, config)
        expected = torch.cat([peer(row[None]) for row in x])
    # As above, but for roundings.
    differing = (ours - expected).abs() > 1e-5 * expected.abs().max()
    assert differing.float().mean() < 1e-3


@pytest.mark.parametrize("bits", [2, 3])
def test_outputs_stay_clipped_where_a_coarse_dac_is_not_read_again(bits):
    layer = nn.Linear(64, 4, bias=False)
    layer.weight.data.fill_(0.5)
    device = DeviceCard.load("ideal").with_(dac_bits=bits, adc_bits=8)
    crossbar, x = CrossbarLinear(layer, device, "layer"), torch.ones(2, 64)
    expected = torch.full((2, 4), 6.0)
    with torch.inference_mode():
        assert torch.equal(crossbar(x), expected)
        assert torch.equal(theirs(layer, device, InferenceRPUConfig)(x), expected)
    # The computation in plain torch.
    assert torch.equal(crossbar(x.clone().requires_grad_()), expected)


@pytest.mark.parametrize("layer", [dense((384, 300)), Conv1D(300, 384)], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize("short_term", [None, 1e-4, "matrix"])
@pytest.mark.parametrize("output_range", [12.0, 0.5])
def test_the_fused_kernels_compute_what_torch_does(layer, short_term, output_range):
    crossbar = CrossbarLinear(layer, card(output_noise=0.04, output_range=output_range), "layer")
    for split in crossbar.splits:
        variance = torch.rand_like(split.weight) * 1e-3
        split.variance = variance if short_term == "matrix" else short_term
    x = inputs(384)
    with torch.inference_mode():
        torch.manual_seed(3)
        fast = crossbar(x)
    torch.manual_seed(3)
    slow = crossbar(x.requires_grad_())
    assert slow.requires_grad
    differing = (fast - slow).abs() > 1e-4 * slow.abs().max()
    assert differing.float().mean() < 2e-3


def test_output_noise_has_aihwkits_distribution():
    device, layer = card(output_noise=0.04, adc_bits=None), dense((64, 32))
    x = inputs(64)[:, 1:2].expand(-1, 4000, -1).contiguous()
    ours, expected = both(layer, device, x)
    for row, column in itertools.product(range(3), range(0, 32, 8)):
        assert stats.ks_2samp(ours[row, :, column], expected[row, :, column]).pvalue > 1e-4
    torch.testing.assert_close(ours.std(1), expected.std(1), rtol=0.08, atol=0)


def test_noise_follows_torchs_seed():
    layer, x = CrossbarLinear(dense(), card(output_noise=0.04), "layer"), inputs(384)
    with torch.inference_mode():
        torch.manual_seed(3)
        first, second = layer(x), layer(x)
        torch.manual_seed(3)
        assert torch.equal(layer(x), first)
    assert not torch.equal(second, first)


def test_a_gradient_passes_the_converters():
    layer, linear = CrossbarLinear(dense(), card(), "layer"), dense()
    x = inputs(384)[0, 1:].requires_grad_()
    layer(x).sum().backward()
    through, x.grad = x.grad, None
    linear(x).sum().backward()
    torch.testing.assert_close(through, x.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floating_types_are_read_in_single_precision(dtype):
    layer, x = CrossbarLinear(dense(), card(), "layer"), inputs(384).to(dtype)
    out = layer(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out, layer(x.float()).to(dtype), rtol=1e-2, atol=1e-2)


def test_a_copy_has_its_own_weights():
    layer, x = CrossbarLinear(dense(), card(), "layer"), inputs(384)
    with torch.inference_mode():
        expected = layer(x)
        other = copy.deepcopy(layer)
        for split in other.splits:
            split.weight.zero_()
        torch.testing.assert_close(other(x), other.bias.expand_as(expected))
        assert torch.equal(layer(x), expected)


def test_the_weight_is_referred_to_and_not_copied():
    linear = dense()
    layer = CrossbarLinear(linear, card(), "layer")
    assert layer.frozen.data_ptr() == linear.weight.data_ptr()


def test_a_frozen_weight_that_was_changed_is_an_error():
    linear = dense()
    layer = CrossbarLinear(linear, card(), "layer")
    with torch.no_grad():
        linear.weight.mul_(2)
    with pytest.raises(RuntimeError, match=r"layer layer was changed in place.*deploy the model"):
        layer.program(0)


def test_a_fixed_input_range_clips_what_lies_beyond():
    linear, x = dense(bias=False), inputs(384)
    layer = CrossbarLinear(
        linear, card(input_scaling="constant", dac_bits=None, output_range=60.0), "layer"
    )
    layer.input_range = 0.5
    adc_step = 2 * 60.0 / 254 * 0.5
    difference = layer(x) - linear(x.clamp(-0.5, 0.5))
    scale = torch.stack([split.scale for split in layer.splits]).sum(0)
    assert (difference.abs() <= 0.51 * adc_step * scale).all()


@pytest.mark.parametrize("scaling", ["abs_max", "constant", "none"])
def test_a_range_that_is_set_takes_precedence_over_every_scaling(scaling):
    layer, x = CrossbarLinear(dense(), card(input_scaling=scaling), "layer"), inputs(384)
    plain = CrossbarLinear(dense(bias=False), card(input_scaling="constant"), "layer")
    layer.input_range = 2.0
    torch.testing.assert_close(layer(x), 2.0 * plain(x / 2.0) + layer.bias)


def compiled_with_read_noise(layer: nn.Linear, device: DeviceCard, sigma: float) -> AnalogLinear:
    analog = theirs(layer, device, InferenceRPUConfig)
    config = copy.deepcopy(next(analog.analog_tiles()).rpu_config)
    config.forward.w_noise = sigma
    config.forward.w_noise_type = WeightNoiseType.ADDITIVE_CONSTANT
    noisy = AnalogLinear(layer.in_features, layer.out_features, True, rpu_config=config)
    noisy.set_weights(layer.weight, layer.bias)
    return noisy.eval()


def test_constant_short_term_noise_has_the_compiled_tiles_distribution():
    device, layer, sigma = card(adc_bits=None, dac_bits=None), dense((64, 32)), 0.05
    ours = CrossbarLinear(layer, device, "layer")
    for split in ours.splits:
        split.variance = sigma**2
    x = inputs(64)[0, 1:2].expand(6000, -1).contiguous()
    with torch.inference_mode():
        a, b = ours(x), compiled_with_read_noise(layer, device, sigma)(x)
    torch.testing.assert_close(a.std(0), b.std(0), rtol=0.06, atol=0)
    torch.testing.assert_close(a.mean(0), b.mean(0), rtol=0, atol=5 * float(a.std()) / 6000**0.5)
    for column in range(0, 32, 8):
        assert stats.ks_2samp(a[:, column], b[:, column]).pvalue > 1e-4


def test_constant_short_term_noise_is_that_of_the_die():
    device = DeviceCard.load("rram-wan2022").with_(die_to_die=0.3)
    layer = CrossbarLinear(dense((64, 8)), device, "layer")
    for chip in (0, 1, 2):
        layer.program(chip)
        layer.drift_to(0.0)
        own = CardNoiseModel(card_on_die(device, chip).with_(die_to_die=0.0))
        expected = own.constant_short_term_variance(layer.splits[0].ends)
        assert layer.splits[0].variance == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="rram-wan2022 differs by chip, which aihwkit's compiled"):
        compiled_config(device, "global")


@pytest.mark.parametrize(("mapping", "ratio"), [("single", 16.0), ("pair", 1.0)])
def test_constant_short_term_noise_is_that_of_each_tile(mapping, ratio):
    """One tile's weights extend from 0.5 to 1, the other's from -1 to 1."""
    layer = nn.Linear(64, 2, bias=False)
    layer.weight.data = torch.stack([torch.linspace(0.5, 1, 64), torch.linspace(-1, 1, 64)])
    noise = StdCurve(variable="g", form="polynomial", coefficients=(1.0,), unit="uS")
    devices = ConductanceRange(g_min="1 uS", g_max="21 uS", mapping=mapping)
    effects = {"short_term": noise, "conductance": devices, "tile": TileSize(rows=64, columns=1)}
    device = DeviceCard.load("ideal").model_copy(update=effects)
    crossbar = CrossbarLinear(layer, device, "layer", "none")
    crossbar.program(0)
    with torch.inference_mode():
        variances = crossbar(torch.ones(40_000, 64)).var(0)
    own = [CardNoiseModel(device).constant_short_term_variance(w) for w in layer.weight.detach()]
    assert own[1] == pytest.approx(ratio * own[0])
    torch.testing.assert_close(variances, 64 * torch.tensor(own), rtol=0.05, atol=0)


def test_short_term_noise_is_that_of_weights_drawn_for_each_vector():
    device, linear = card(adc_bits=None, dac_bits=None), dense((64, 8), bias=False)
    layer = CrossbarLinear(linear, device, "layer")
    split = layer.splits[0]
    split.variance = torch.rand_like(split.weight) * 0.01
    x = inputs(64)[0, 1]
    with torch.inference_mode():
        ours = layer(x.expand(20_000, -1).contiguous())
        weights = split.weight + split.variance.sqrt() * torch.randn(20_000, 8, 64)
        drawn = (weights @ x) * split.scale
    for column in range(8):
        assert stats.ks_2samp(ours[:, column], drawn[:, column]).pvalue > 1e-4
    torch.testing.assert_close(ours.var(0), drawn.var(0), rtol=0.05, atol=0)
