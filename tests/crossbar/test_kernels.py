"""The fused converters, against the formulas and against what random numbers must satisfy."""

import numba
import numpy as np
import pytest
import torch
from scipy import stats

from analog_grasp.crossbar.kernels import convert_inputs, convert_outputs


def noise(rows: int, columns: int, key: int) -> np.ndarray:
    """The output noise alone: a product of zeros read with unit noise and no ADC."""
    ones = torch.ones(columns)
    y = torch.zeros(rows, columns)
    convert_outputs(
        torch.zeros(rows, columns),
        torch.ones(rows),
        ones,
        ones,
        noise=1.0,
        step=0.0,
        bound=float("inf"),
        key=key,
        y=y,
    )
    return y.numpy()


def test_noise_is_standard_normal():
    sample = noise(2000, 1001, key=7).ravel().astype(float)
    assert stats.kstest(sample, "norm").pvalue > 1e-3
    standard_error = len(sample) ** -0.5
    assert abs(sample.mean()) < 4 * standard_error
    assert abs(sample.var() - 1) < 4 * 2**0.5 * standard_error
    assert abs(stats.skew(sample)) < 4 * 6**0.5 * standard_error
    assert abs(stats.kurtosis(sample)) < 4 * 24**0.5 * standard_error


def test_the_test_of_the_noise_can_fail():
    assert stats.kstest(1.02 * noise(2000, 1001, key=7).ravel(), "norm").pvalue < 1e-6


@pytest.mark.parametrize("tail", [3.0, 4.0])
def test_the_tails_are_filled(tail):
    sample = np.abs(noise(4000, 1000, key=1))
    expected = sample.size * 2 * stats.norm.sf(tail)
    assert abs((sample > tail).sum() - expected) < 5 * expected**0.5


@pytest.mark.parametrize(
    "pair",
    [
        lambda a, b: (a[:, :-1], a[:, 1:]),
        lambda a, b: (a[:-1], a[1:]),
        lambda a, b: (a, b),
    ],
    ids=["columns", "rows", "keys"],
)
def test_noise_is_independent_between(pair):
    first, second = pair(noise(1000, 1000, key=3), noise(1000, 1000, key=4))
    for transform in (np.asarray, np.square):
        correlation = np.corrcoef(transform(first).ravel(), transform(second).ravel())[0, 1]
        assert abs(correlation) < 4e-3


def test_the_same_key_gives_the_same_bits_with_any_number_of_threads(monkeypatch):
    expected = noise(257, 33, key=11)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert np.array_equal(noise(257, 33, key=11), expected)
    assert numba.get_num_threads() == 1
    assert not np.array_equal(noise(257, 33, key=12), expected)


@pytest.mark.parametrize("by_maximum", [True, False])
@pytest.mark.parametrize("step", [0.0, 2 / 254])
def test_inputs_are_scaled_rounded_and_clipped(by_maximum, step):
    x = 3 * torch.randn(5, 12)
    x[2] = 0
    out, gain = convert_inputs(x, 4, 6, step, by_maximum)
    part = x[:, 4:10]
    largest = part.abs().amax(1, keepdim=True)
    expected_gain = torch.where(largest > 0, 1 / largest, 1.0) if by_maximum else torch.ones(5, 1)
    expected = part * expected_gain
    expected = (expected / step).round() * step if step else expected
    assert torch.equal(gain, expected_gain[:, 0])
    assert torch.equal(out, expected.clamp(-1, 1))


def test_outputs_are_rounded_clipped_scaled_and_added():
    product = 4 * torch.randn(5, 7)
    gain, scale, correction = torch.rand(5) + 0.5, torch.rand(7), torch.rand(7) + 0.5
    y = torch.ones(5, 7)
    clipped = convert_outputs(
        product, gain, scale, correction, noise=0.0, step=0.5, bound=3.0, key=0, y=y
    )
    rounded = (product / 0.5).round() * 0.5
    expected = 1 + rounded.clamp(-3, 3) * (1 / gain)[:, None] * scale * correction
    assert clipped == int((rounded.abs() > 3).sum()) > 0
    assert torch.equal(y, expected)
