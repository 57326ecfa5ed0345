"""The torch statement of reading a tile: hand-computed values, and the compiled kernels."""

import math

import pytest
import torch

from analog_grasp.kernels import ReadSettings, cpu, reference
from analog_grasp.kernels.matmul import pack

BITS = 2 / 254
SETTINGS = ReadSettings(BITS, 24 / 254, 12.0, 0.04, by_maximum=True, iterative=True)
TILES = [slice(0, 9), slice(9, 20)]


def example(large: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 64, generator=generator)
    return x, large * (torch.rand(20, 64, generator=generator) * 2 - 1)


def test_converters_round_and_clip_as_computed_by_hand():
    settings = ReadSettings(dac_step=0.25, adc_step=0.5, output_bound=1.0)
    x, weight = torch.tensor([[0.3, 2.0], [-0.1, 0.4]]), torch.tensor([[1.0, 0.5], [0.2, 2.0]])
    # Inputs [0.25, 1] and [0, 0.5]; products [0.75, 2.05] and [0.25, 1].
    y = reference.read(x, weight, None, settings, None, 0, [slice(0, 2)])
    assert y.tolist() == [[1.0, 1.0], [0.0, 1.0]]


def test_clipped_vectors_are_read_again_with_smaller_inputs():
    settings = ReadSettings(output_bound=1.0, iterative=True)
    x, weight = torch.tensor([[1.0, 1.0], [0.1, 0.1]]), torch.tensor([[3.0, 3.0], [0.5, 0.0]])
    y = reference.read(x, weight, None, settings, None, 0, [slice(0, 2)])
    torch.testing.assert_close(y, x @ weight.T)


def test_tiles_that_read_again_have_noise_of_their_own():
    settings = ReadSettings(output_bound=2.0, output_noise=0.04, iterative=True)
    x, weight = torch.full((2000, 4), 0.8), torch.ones(4, 4)
    tiles = [slice(0, 2), slice(2, 4)]
    read = reference.read(x, weight, None, settings, 1.0, 3, tiles)
    [inputs] = cpu.convert(x, [slice(0, 4)], settings, 1.0, coded=False, with_squares=False)
    y = torch.zeros(2000, 4)
    cpu.read(x, inputs, weight, None, None, settings, 1.0, 3, tiles, torch.ones(4), None, y)
    torch.testing.assert_close(y, read)
    errors = (read - x @ weight.T).T
    assert (errors.std(1) > 0.05).all()  # twice the noise of a single read
    assert (torch.corrcoef(errors) - torch.eye(4)).abs().max() < 0.1


def test_the_limits_of_bound_management_are_aihwkits():
    assert ReadSettings(iterative=True).may_halve(999.0)
    assert not ReadSettings(iterative=True).may_halve(1001.0)
    # With 8 bits the inputs keep at least two bits: a quarter of the full scale over a step.
    assert ReadSettings(BITS, iterative=True).may_halve(0.25 / BITS)
    assert not ReadSettings(BITS, iterative=True).may_halve(0.26 / BITS)


@pytest.mark.parametrize("variance", [None, 1e-3, "matrix"])
@pytest.mark.parametrize("input_range", [None, 2.0])
@pytest.mark.parametrize("large", [1.0, 6.0])
@pytest.mark.parametrize("limbs", [0, 3])
@pytest.mark.parametrize("ranges", [None, [1.0, 6.0]])
def test_compiled_kernels_equal_the_reference(variance, input_range, large, limbs, ranges):
    x, weight = example(large)
    if variance == "matrix":
        variance = 1e-3 * torch.rand(weight.shape, generator=torch.Generator().manual_seed(2))
    scale, bias = torch.rand(20) + 0.5, torch.randn(20)
    y = torch.empty(30, 20)
    arguments = (variance, SETTINGS, input_range, 7, TILES)
    packed = pack(weight, limbs, BITS) if limbs else None
    [inputs] = cpu.convert(
        x, [slice(0, 64)], SETTINGS, input_range, limbs > 0, isinstance(variance, float)
    )
    cpu.read(x, inputs, weight, packed, *arguments, scale, bias, y, ranges)
    expected = reference.read(x, weight, *arguments, output_ranges=ranges) * scale + bias
    # A product that lies between two codes may be rounded to either.
    assert ((y - expected).abs() > 1e-4).float().mean() < 0.01
    readout = cpu.column_readout(weight, variance, SETTINGS, 3)
    torch.testing.assert_close(readout, reference.column_readout(weight, variance, SETTINGS, 3))


def test_short_term_noise_has_the_variance_of_the_weights():
    x, weight = torch.full((4, 64), 0.5), torch.zeros(100_000, 64)
    y = reference.read_exactly(x, weight, 0.01, 5)
    assert float(y.std()) == pytest.approx(math.sqrt(64 * 0.25 * 0.01), rel=0.01)


def test_gradients_pass_straight_through_the_converters():
    x, weight = example()
    x.requires_grad_()
    settings = ReadSettings(BITS, 24 / 254, 12.0, by_maximum=True)
    reference.read(x, weight, None, settings, None, 0, TILES).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand_as(x))
