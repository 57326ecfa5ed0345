"""The dip against its definition, and the dip test."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linprog

from analog_grasp.report.inspection import MIN_VALUES, dip, dip_p_value


def nearest_with_one_mode(x: np.ndarray) -> float:
    """Returns the dip by its definition: for every place of the mode, a linear programme."""
    n = len(x)
    best = 1.0
    for mode in range(n):
        # Unknown are the distribution at every point and the distance.
        rows, limits = [], []
        for i in range(n):
            row = np.zeros(n + 1)
            row[i], row[-1] = -1.0, -1.0
            rows.append(row)
            limits.append(-(i + 1) / n)
            row = np.zeros(n + 1)
            row[i], row[-1] = 1.0, -1.0
            rows.append(row)
            limits.append(i / n)
        for (i, j), k in zip(pairwise(range(n)), range(2, n), strict=False):
            slopes = np.zeros(n + 1)
            slopes[[i, j]] = [-1.0 / (x[j] - x[i]), 1.0 / (x[j] - x[i])]
            slopes[j] += 1.0 / (x[k] - x[j])
            slopes[k] = -1.0 / (x[k] - x[j])
            if j != mode:
                rows.append(slopes if j < mode else -slopes)
                limits.append(0.0)
        for i, j in pairwise(range(n)):
            row = np.zeros(n + 1)
            row[[i, j]] = 1.0, -1.0
            rows.append(row)
            limits.append(0.0)
        cost = np.zeros(n + 1)
        cost[-1] = 1.0
        found = linprog(cost, rows, limits, bounds=[(0, 1)] * (n + 1))
        if found.success:
            best = min(best, found.fun)
    return best


@pytest.mark.parametrize("seed", range(6))
def test_dip_is_the_distance_to_the_nearest_distribution_with_one_mode(seed):
    draw = np.random.default_rng(seed)
    x = np.sort(draw.random(9) + 2.0 * (draw.random(9) < 0.5))
    assert dip(x) == pytest.approx(nearest_with_one_mode(x), abs=1e-6)


FLOATS = st.floats(-100, 100).map(lambda value: round(value, 3))


@settings(max_examples=60, deadline=None)
@given(arrays(np.float64, st.integers(1, 30), elements=FLOATS))
def test_dip_lies_within_its_bounds_in_any_order(x):
    assert 1 / (2 * len(x)) <= dip(x) <= max(0.25, 1 / (2 * len(x)))
    assert dip(x[::-1]) == dip(x)


@settings(max_examples=60, deadline=None)
@given(arrays(np.float64, st.integers(4, 20), elements=FLOATS, unique=True))
def test_dip_does_not_depend_on_direction_or_unit(x):
    assert dip(-x) == pytest.approx(dip(x))
    assert dip(4.0 * x) == pytest.approx(dip(x))


def test_few_or_equal_values_have_one_mode():
    assert dip_p_value(np.arange(MIN_VALUES - 1.0)) == 1.0
    assert dip_p_value(np.ones(16)) == 1.0


def test_p_values_of_a_uniform_sample_are_uniform():
    draw = np.random.default_rng(0)
    p = np.array([dip_p_value(draw.random(16)) for _ in range(400)])
    assert (p < 0.05).mean() == pytest.approx(0.05, abs=0.03)
    assert (p < 0.5).mean() == pytest.approx(0.5, abs=0.08)


def test_two_modes_are_found():
    two = np.concatenate([np.linspace(-1.1, -0.9, 8), np.linspace(0.9, 1.1, 8)])
    assert dip_p_value(two) < 0.001
    assert dip_p_value(np.repeat(two, 20)) < 0.001
