"""The compiled converters compared with their formulas; conversions shared between layers."""

import gc
import weakref

import numpy as np
import pytest
import torch

from analog_grasp.kernels import ReadSettings, cpu
from analog_grasp.kernels.cpu import convert, convert_inputs, convert_outputs, read_columns
from analog_grasp.kernels.rng import normal

SETTINGS = ReadSettings(dac_step=1 / 127, by_maximum=True)
PARTS = [slice(0, 4), slice(4, 7)]


def codes(x, parts=PARTS, settings=SETTINGS, input_range=None):
    return convert(x, parts, settings, input_range, coded=True, with_squares=True)


@pytest.fixture
def conversions(monkeypatch):
    """The number of rows of each conversion that was computed."""
    counted = []

    def counting(rows, *args):
        counted.append(rows)
        convert_inputs(rows, *args)

    monkeypatch.setattr(cpu, "convert_inputs", counting)
    return counted


@pytest.mark.parametrize("by_maximum", [True, False])
@pytest.mark.parametrize(
    ("kind", "step"),
    [(np.float32, 0.0), (np.float32, 2 / 254), (np.int8, 2 / 254), (np.int8, 2 / 6)],
)
def test_inputs_are_scaled_rounded_and_clipped(by_maximum, kind, step):
    x = (3 * torch.randn(5, 12)).numpy()
    x[2] = 0
    out, squares = np.empty((5, 6), kind), np.empty(5, np.float32)
    gain = np.full(5, 0.5, np.float32)
    convert_inputs(5, x, 4, gain, by_maximum, np.float32(step), out, squares)
    part = x[:, 4:10]
    largest = np.abs(part).max(1)
    if by_maximum:
        wanted = np.divide(1, largest, where=largest > 0, out=np.ones(5))
        np.testing.assert_allclose(gain, wanted, rtol=1e-6)
    expected = part * gain[:, None]
    expected = np.rint(expected / np.float32(step)) * np.float32(step) if step else expected
    values = out * (np.float32(step) if kind == np.int8 else np.float32(1))
    np.testing.assert_allclose(values, expected.clip(-1, 1), rtol=1e-6)
    np.testing.assert_allclose(squares, (values**2).sum(1), rtol=1e-5)


@pytest.mark.parametrize("kind", [np.float32, np.int8])
@pytest.mark.parametrize("by_maximum", [True, False])
def test_a_vector_that_is_not_a_number_has_no_gain(kind, by_maximum):
    x = torch.randn(4, 6).numpy()
    x[1, 3], x[2, 0] = np.nan, np.inf
    out, gain = np.empty((4, 6), kind), np.ones(4, np.float32)
    convert_inputs(4, x, 0, gain, by_maximum, np.float32(1 / 127), out, np.empty(4, np.float32))
    # At a fixed range an infinite input is clipped, as any large one.
    assert np.isnan(gain).tolist() == [False, True, by_maximum, False]
    assert np.isfinite(out).all()


@pytest.mark.parametrize("size", [1e30, 3e38, 1e-30, 1e-38, 1e-40])
def test_inputs_of_any_magnitude_are_scaled(size):
    x = torch.tensor([[1.0, -0.5, 0.0, 0.25]]) * size
    [found] = codes(x, [slice(0, 4)])
    restored = found.values / 127 / found.gain[:, None]
    half_a_step = 0.51 / 127 / found.gain[:, None]
    assert ((restored - x).abs() <= half_a_step).all()
    assert found.gain.isfinite().all()


def test_the_same_tensor_is_converted_once(conversions):
    x = torch.randn(3, 2, 7)
    first, second = codes(x), codes(x)
    assert conversions == [6, 6]
    assert all(
        a.values.data_ptr() == b.values.data_ptr() for a, b in zip(first, second, strict=True)
    )
    codes(x.clone())
    assert conversions == [6, 6, 6, 6]


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.add_(1),
        lambda x: x.view(-1).zero_(),
        lambda x: x[0].mul_(2),
        lambda x: x.resize_(2, 7),
    ],
    ids=["in place", "view", "part", "size"],
)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_tensor_changed_in_place_is_converted_again(change, mode):
    x = torch.randn(3, 7)
    with mode():
        codes(x)
        change(x)
        found = codes(x)
        expected = codes(x.clone())
        assert len(found[0].values) == len(x)
        again = codes(x)
    for a, b in zip(again, expected, strict=True):
        assert torch.equal(a.gain, b.gain)


def test_a_tensor_of_inference_mode_may_change_unseen_and_is_converted_each_time():
    with torch.inference_mode():
        x = torch.randn(3, 7)
        before = codes(x)[0].gain
        x.mul_(2)
        torch.testing.assert_close(codes(x)[0].gain, before / 2)


@pytest.mark.parametrize(
    "other",
    [
        {"input_range": 2.0},
        {"settings": ReadSettings(dac_step=1 / 7, by_maximum=True)},
        {"settings": ReadSettings(dac_step=1 / 127)},
        {"parts": [slice(0, 3), slice(3, 7)]},
    ],
    ids=["range", "resolution", "scaling", "tiles"],
)
def test_other_converters_convert_again(other):
    x = torch.randn(3, 7)
    shared = [part.values.clone() for part in codes(x)]
    found = [part.values.clone() for part in codes(x, **other)]
    alone = [part.values for part in codes(x.clone(), **other)]
    assert all(torch.equal(a, b) for a, b in zip(found, alone, strict=True))
    pairs = zip(shared, found, strict=True)
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


def test_a_converted_tensor_is_not_kept_alive():
    x = torch.randn(3, 7)
    codes(x)
    watched = weakref.ref(x)
    del x
    gc.collect()
    assert watched() is None


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
