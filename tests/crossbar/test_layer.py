"""The fused layer, with aihwkit's own tiles as the judge."""

import copy
import itertools

import pytest
import torch
from aihwkit.nn import AnalogLinear
from aihwkit.simulator.parameters.enums import BoundManagementType, NoiseManagementType
from scipy import stats
from torch import nn

from analog_grasp.crossbar.layer import CrossbarLinear
from analog_grasp.crossbar.mapping import tiles_of, to_tiles
from analog_grasp.crossbar.tile import tile_config
from analog_grasp.devices import CardNoiseModel, DeviceCard

SHAPES = [(10, 6), (384, 384), (700, 300)]


def analog(shape=(384, 100), *, bias=True, **io) -> CrossbarLinear:
    torch.manual_seed(0)
    config = tile_config(DeviceCard.load("pcm-hermes-2"))
    config.forward.out_noise = 0.0
    for name, value in io.items():
        setattr(config.forward, name, value)
    return to_tiles(nn.Linear(*shape, bias=bias), config)


def inputs(features: int) -> torch.Tensor:
    x = torch.randn(3, 11, features)
    x[0, 0] = 0
    return x


@torch.inference_mode()
def both(layer, x):
    return layer(x), AnalogLinear.forward(layer, x)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("dac", "adc"), itertools.product([0.0, 1 / 62, 1 / 254, 1 / 1022], repeat=2)
)
def test_equals_aihwkits_torch_tile_without_noise(shape, dac, adc):
    layer = analog(shape, inp_res=dac, out_res=adc)
    ours, theirs = both(layer, inputs(shape[0]))
    # A sum in another order may fall on the other side of a rounding step of the ADC.
    differing = (ours - theirs).abs() > 1e-5 * theirs.abs().max()
    assert differing.float().mean() < 1e-3
    assert ours.shape == theirs.shape


@pytest.mark.parametrize("scaling", [NoiseManagementType.ABS_MAX, NoiseManagementType.NONE])
@pytest.mark.parametrize("bound", [BoundManagementType.NONE, BoundManagementType.ITERATIVE])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_it_under_every_management(scaling, bound, bias):
    layer = analog(noise_management=scaling, bound_management=bound, bias=bias)
    ours, theirs = both(layer, inputs(384))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("bound", [BoundManagementType.NONE, BoundManagementType.ITERATIVE])
def test_equals_it_where_outputs_are_clipped(bound):
    layer = analog(out_bound=0.5, bound_management=bound)
    ours, theirs = both(layer, inputs(384))
    torch.testing.assert_close(ours, theirs)


def test_equals_it_after_programming_and_drift():
    layer = analog()
    for i, tile in enumerate(tiles_of(layer)):
        tile.program_weights(noise_model=CardNoiseModel(DeviceCard.load("pcm-hermes-2"), i))
    first, _ = both(layer, inputs(384))
    for tile in tiles_of(layer):
        tile.drift_weights(3e7)
    ours, theirs = both(layer, inputs(384))
    torch.testing.assert_close(ours, theirs)
    assert not torch.allclose(ours, first)


def test_output_noise_has_aihwkits_distribution():
    layer = analog((64, 32), out_noise=0.04, out_res=0.0)
    x = inputs(64)[:, 1:2].expand(-1, 4000, -1)
    ours, theirs = both(layer, x)
    for row, column in itertools.product(range(3), range(0, 32, 8)):
        a, b = ours[row, :, column], theirs[row, :, column]
        assert stats.ks_2samp(a, b).pvalue > 1e-4
    torch.testing.assert_close(ours.std(1), theirs.std(1), rtol=0.08, atol=0)


def test_noise_follows_torchs_seed():
    layer, x = analog(out_noise=0.04), inputs(384)
    with torch.inference_mode():
        torch.manual_seed(3)
        first = layer(x)
        second = layer(x)
        torch.manual_seed(3)
        assert torch.equal(layer(x), first)
    assert not torch.equal(second, first)


def test_a_copy_follows_its_own_weights():
    layer, x = analog(), inputs(384)
    with torch.inference_mode():
        expected = layer(x)
        other = copy.deepcopy(layer)
        for tile in tiles_of(other):
            tile.tile.set_weights(torch.zeros(tile.out_size, tile.in_size))
        torch.testing.assert_close(other(x), other.analog_module.bias.expand_as(expected))
        assert torch.equal(layer(x), expected)


def test_stacking_takes_no_second_copy_of_the_weights():
    layer = analog()
    with torch.inference_mode():
        layer(inputs(384))
    held = {t.tile.weight.data.untyped_storage().data_ptr() for t in tiles_of(layer)}
    assert held == {w.untyped_storage().data_ptr() for w in layer._stacked}


def test_an_input_that_wants_a_gradient_goes_through_aihwkit():
    layer = analog()
    x = inputs(384).requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
