"""The compiled converters compared with their formulas."""

import numpy as np
import pytest
import torch

from analog_grasp.kernels.cpu import convert_outputs, read_columns
from analog_grasp.kernels.rng import normal


def outputs(product, *, y, gain=None, scale=None, noise=0.0, step=0.0, bound=np.inf, key=0,
            row_variance=(), variance=(), start=(), hold=False, unit=()):  # fmt: skip
    """Call the kernel with defaults; return a mask of the clipped tiles, of two."""
    rows, columns = y.shape
    ends = np.array([0, columns // 2, columns])
    clipped = np.empty((rows, 2), np.bool_)
    convert_outputs(
        rows,
        product,
        np.asarray(unit, np.float32),
        np.ones(rows, np.float32) if gain is None else gain,
        np.ones(columns, np.float32) if scale is None else scale,
        np.float32(noise),
        np.asarray(row_variance, np.float32),
        np.asarray(variance, np.float32).reshape(-1, columns),
        np.full(2, step, np.float32),
        np.full(2, bound, np.float32),
        hold,
        ends,
        np.uint64(key),
        np.asarray(start, np.float32),
        y,
        clipped,
    )
    return clipped


def test_output_noise_is_the_normal_deviate_of_key_and_position():
    y = np.zeros((50, 301), np.float32)
    outputs(np.zeros_like(y), y=y, noise=1.0, key=7)
    expected = normal(7, y.shape, device="cpu", dtype=torch.float32)
    np.testing.assert_array_equal(y, expected.numpy())


def test_outputs_are_rounded_clipped_scaled_and_added():
    product = (4 * torch.randn(5, 7)).numpy()
    gain, scale = torch.rand(5).numpy() + 0.5, torch.rand(7).numpy()
    y = np.ones((5, 7), np.float32)
    clipped = outputs(product, y=y, gain=gain, scale=scale, step=0.5, bound=3.0)
    rounded = np.rint(product / 0.5) * np.float32(0.5)
    expected = 1 + rounded.clip(-3, 3) * (1 / gain)[:, None] * scale
    over = np.abs(rounded) > 3
    np.testing.assert_array_equal(clipped[:, 0], over[:, :3].any(1))
    np.testing.assert_array_equal(clipped[:, 1], over[:, 3:].any(1))
    assert clipped.sum() > 0
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("limbs", [1, 2, 3])
def test_sums_of_limbs_are_joined(limbs):
    largest = 512 * 127 * 127
    product = torch.randint(-largest, largest, (4, limbs, 6), dtype=torch.int32).numpy()
    unit = torch.rand(6).numpy()
    y = np.zeros((4, 6), np.float32)
    outputs(product.reshape(4, -1), y=y, unit=unit)
    expected = (product * 254.0 ** -np.arange(limbs)[:, None]).sum(1) * unit
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-7 * np.abs(expected).max())


def test_the_noise_does_not_depend_on_how_the_product_is_given():
    product = torch.randint(-100, 100, (4, 6), dtype=torch.int32).numpy()
    unit = np.full(6, 0.25, np.float32)
    found = []
    for given, units in ((product, unit), (product * np.float32(0.25), ())):
        y = np.zeros((4, 6), np.float32)
        outputs(given.astype(given.dtype), y=y, unit=units, noise=0.04, key=9)
        found.append(y)
    np.testing.assert_array_equal(*found)


def test_tiles_to_be_read_again_are_not_added():
    product = np.zeros((4, 6), np.float32)
    product[2, 1] = 9
    y = np.ones((4, 6), np.float32)
    clipped = outputs(product + 1, y=y, bound=5.0, hold=True)
    assert clipped.nonzero() == (2, 0)
    np.testing.assert_array_equal(y[2], [1, 1, 1, 2, 2, 2])
    np.testing.assert_array_equal(y[[0, 1, 3]], np.full((3, 6), 2))


@pytest.mark.parametrize("whole_rows", [True, False])
def test_variances_add_to_the_output_noise(whole_rows):
    columns, rows = 20_000, 3
    by_row = np.array([0.0, 0.01, 0.25], np.float32)
    y = np.zeros((rows, columns), np.float32)
    form = {"row_variance": by_row} if whole_rows else {
        "variance": np.repeat(by_row[:, None], columns, 1)
    }  # fmt: skip
    outputs(np.zeros_like(y), y=y, noise=0.1, key=5, **form)
    np.testing.assert_allclose(y.std(1), np.sqrt(0.01 + by_row), rtol=0.03)


def test_a_read_out_is_the_mean_magnitude_of_each_column():
    weight = torch.randn(6, 40).numpy()
    read = np.empty(6, np.float32)
    none = np.empty((0, 0), np.float32)
    arguments = (np.float32(0.25), np.float32(1.5), np.uint64(0), read)
    read_columns(6, weight, none, *arguments)
    rounded = (np.rint(weight / 0.25) * 0.25).clip(-1.5, 1.5)
    np.testing.assert_allclose(read, np.abs(rounded).mean(1), rtol=1e-6)
