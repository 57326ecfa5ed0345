"""Intervals over chips, and over trainings and chips: by hand, by scipy, and by simulation."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from analog_grasp.study.statistics import (
    complete_table,
    crossed_estimate,
    estimate,
    half_widths,
    mean_error,
    mean_squares,
    table_estimate,
)

# Standard deviations of the effects of trainings and chips, in units of that of both together.
RATIOS = (0.0, 0.3, 1.0, 5.0)


def test_interval_worked_out_by_hand():
    # Mean 2, standard deviation 1, t(0.975, 2) = 4.302653: 2 -+ 4.302653 / sqrt(3).
    result = estimate([1.0, 2.0, 3.0])
    assert result.mean == 2.0
    assert (result.low, result.high) == pytest.approx((-0.484138, 4.484138), abs=1e-6)


def test_interval_and_p_value_agree_with_scipy():
    values = [0.31, -0.12, 0.44, 0.05, 0.2]
    test = stats.ttest_1samp(values, 0.0)
    result = estimate(values)
    assert (result.low, result.high) == pytest.approx(test.confidence_interval(0.95))
    assert result.p_value == pytest.approx(test.pvalue)


def test_one_value_has_no_interval():
    assert estimate([0.8]) == (0.8, None, None, None)


def test_no_value_raises():
    with pytest.raises(ValueError, match="must not be empty"):
        estimate([])


@pytest.mark.parametrize(("value", "p_value"), [(0.1, 0.0), (0.0, 1.0)])
def test_equal_values_have_an_interval_of_zero_width(value, p_value):
    assert estimate([value] * 3) == (value, value, value, p_value)


def simulated(training, chip, trainings, chips, count=20_000):
    """Return tables with a true mean of zero, of shape (count, trainings, chips)."""
    draw = np.random.default_rng(0).standard_normal
    return (
        training * draw((count, trainings, 1))
        + chip * draw((count, 1, chips))
        + draw((count, trainings, chips))
    )


@pytest.mark.parametrize(
    ("trainings", "chips", "least", "most"),
    [(3, 5, 0.93, 0.976), (3, 8, 0.92, 0.976), (5, 5, 0.935, 0.976), (2, 5, 0.88, 0.98)],
)
def test_coverage_at_any_ratio_of_the_effects(trainings, chips, least, most):
    covered = {}
    for ratio in product(RATIOS, RATIOS):
        tables = simulated(*ratio, trainings, chips)
        half = half_widths(*mean_error(mean_squares(tables), trainings, chips))
        covered[ratio] = float(np.mean(np.abs(tables.mean((1, 2))) <= half))
    assert least <= min(covered.values())
    assert max(covered.values()) <= most
    # Above 97 % only where neither trainings nor chips have an effect.
    wide = {ratio for ratio, share in covered.items() if share > 0.97}
    assert wide <= {(0, 0), (0.3, 0), (0, 0.3)}


def test_one_table_has_the_interval_of_the_simulation():
    (table,) = simulated(0.5, 1.0, 3, 5, count=1)
    result = crossed_estimate(table)
    half = half_widths(*mean_error(mean_squares(table), 3, 5))
    assert (result.low, result.high) == pytest.approx((table.mean() - half, table.mean() + half))
    # The interval excludes zero where the p-value is below 5 %.
    for shift in (result.low, result.high):
        assert crossed_estimate(table - shift).p_value == pytest.approx(0.05)


def test_a_crossed_interval_worked_out_by_hand():
    # Rows of mean 2 and 4, columns of mean 2 and 4, no rest: MS_A = MS_B = 4, MS_E = 0.
    # Variance of the mean 8 / 4 = 2, with 8^2 / (16 + 16) = 2 degrees of freedom.
    result = crossed_estimate([[1.0, 3.0], [3.0, 5.0]])
    half = stats.t.ppf(0.975, 2) * 2**0.5
    assert (result.mean, result.high) == pytest.approx((3.0, 3.0 + half))


def test_without_effects_the_values_count_as_independent():
    # MS_A = MS_B = 0: the interval is that of four independent values.
    values = [[1.0, 2.0], [2.0, 1.0]]
    assert crossed_estimate(values)[1:] == pytest.approx(estimate([1.0, 2.0, 2.0, 1.0])[1:])


def test_an_interval_over_trainings_covers_more_than_one_over_chips():
    table = np.array([[0.80, 0.81, 0.82], [0.84, 0.85, 0.86], [0.79, 0.80, 0.81]])
    over_chips = estimate(table.mean(0).tolist())
    result = crossed_estimate(table)
    assert result.mean == pytest.approx(over_chips.mean)
    assert result.high - result.low > 2 * (over_chips.high - over_chips.low)


@pytest.mark.parametrize("table", [[[0.8, 0.9, 0.7]], [[0.8], [0.9]], [0.8, 0.9]])
def test_an_interval_over_a_single_training_or_chip_raises(table):
    with pytest.raises(ValueError, match="requires at least 2 of each; the values have the shape"):
        crossed_estimate(table)


def test_what_varies_decides_about_the_interval():
    table = np.array([[0.80, 0.82], [0.84, 0.86]])
    assert table_estimate(table) == crossed_estimate(table)
    assert table_estimate(table[:1]) == estimate([0.80, 0.82])
    assert table_estimate(table[:, :1])[1:] == (None, None, None)
    assert table_estimate(np.full((2, 3), 0.1)) == (0.1, 0.1, 0.1, 0.0)


def test_incomplete_trainings_are_ignored():
    values = {(i, (j, j)): 10.0 * i + j for i, j in product(range(3), range(4))}
    assert complete_table(values).shape == (3, 4)
    # The third training was measured on one chip only, the second on three.
    for missing in ((2, 0), (2, 1), (2, 2), (1, 3)):
        del values[missing[0], (missing[1], missing[1])]
    assert complete_table(values).tolist() == [[0, 1, 2], [10, 11, 12]]
