"""Counter-based random numbers: equal everywhere, and standard normal."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, norm

from analog_grasp.kernels.rng import _normal_torch, normal, uniform

CPU = torch.device("cpu")
FLOAT = torch.float32


@settings(max_examples=40, deadline=None)
@given(key=st.integers(-(2**63), 2**64), rows=st.integers(0, 40), columns=st.integers(0, 300))
def test_torch_equals_the_kernel(key, rows, columns):
    by_kernel = normal(key, (rows, columns), device=CPU, dtype=FLOAT)
    by_torch = _normal_torch(key, rows, columns, CPU)
    apart = (by_kernel - by_torch).abs()
    assert (apart < 1e-3).all()
    # The error of a radius is that of its square over twice the radius: few are so near to 0.
    assert (apart > 1e-5).sum() <= 12


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same_chip():
    on_gpu = normal(3, (50, 70), device="cuda", dtype=FLOAT).cpu()
    torch.testing.assert_close(on_gpu, normal(3, (50, 70), device=CPU, dtype=FLOAT))
    assert torch.equal(uniform(3, (50, 70), device="cuda").cpu(), uniform(3, (50, 70), device=CPU))


def test_any_number_of_threads_gives_the_same_bits():
    before = torch.get_num_threads()
    drawn = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            drawn.append(normal(5, (61, 501), device=CPU, dtype=FLOAT))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*drawn)


def test_deviates_are_standard_normal():
    x = normal(11, (1000, 1000), device=CPU, dtype=torch.float64).flatten()
    assert kstest(x.numpy(), "norm").pvalue > 1e-4
    assert kstest(1.02 * x.numpy(), "norm").pvalue < 1e-6
    for power, moment, error in ((1, 0, 1), (2, 1, 2**0.5), (3, 0, 15**0.5), (4, 3, 96**0.5)):
        assert abs(float((x**power).mean()) - moment) < 4 * error / 1000


@pytest.mark.parametrize("tail", [3.0, 4.0])
def test_the_tails_are_filled(tail):
    x = normal(1, (4000, 1000), device=CPU, dtype=FLOAT).abs()
    expected = x.numel() * 2 * norm.sf(tail)
    assert abs(int((x > tail).sum()) - expected) < 5 * expected**0.5


def test_rows_columns_and_keys_are_independent():
    x = normal(1, (500, 400), device=CPU, dtype=FLOAT)
    y = normal(2, (500, 400), device=CPU, dtype=FLOAT)
    for a, b in ((x[:-1], x[1:]), (x[:, :-1], x[:, 1:]), (x, y)):
        pairs = torch.stack([a.flatten(), b.flatten()])
        assert abs(float(torch.corrcoef(pairs)[0, 1])) < 0.01
        assert abs(float(torch.corrcoef(pairs.square())[0, 1])) < 0.01


def test_uniform_deviates_fill_the_unit_interval():
    u = uniform(4, (300, 1000), device=CPU)
    assert (u >= 0).all()
    assert (u < 1).all()
    assert kstest(u.flatten().numpy(), "uniform").pvalue > 1e-4


@pytest.mark.parametrize("shape", [(), (3,), (0, 4), (4, 0), (2, 3, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_shapes_and_types(shape, dtype):
    drawn = normal(8, shape, device=CPU, dtype=dtype)
    assert drawn.shape == uniform(8, shape, device=CPU).shape == shape
    assert drawn.dtype == dtype
    flat = normal(8, (6, 5), device=CPU, dtype=FLOAT)
    if shape == (2, 3, 5):
        assert torch.equal(drawn, flat.view(shape).to(dtype))
