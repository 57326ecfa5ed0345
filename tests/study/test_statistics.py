"""Means, intervals and pairs: by hand, by scipy, and by simulation."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analog_grasp.study.records import Measurement
from analog_grasp.study.statistics import (
    PairedDifference,
    Variant,
    complete_table,
    estimate,
    half_widths,
    holm,
    holm_corrected,
    mean_error,
    mean_squares,
    paired_differences,
    summarise,
    variants,
)


def cells(adapter, values, **columns):
    first = Measurement("reviews", "accuracy", adapter, 0, "digital", "pcm", 20.0, 0, 0, 0.0)
    return [
        replace(first, repeat=repeat, seed=100 + repeat, value=value, **columns)
        for repeat, value in enumerate(values)
    ]


def paired(measured, baseline="grasp", adapter="lora"):
    """Return the differences of two adapters, each measured at one placement."""
    first, second = (
        next(variant for variant in variants(measured) if variant.adapter == name)
        for name in (baseline, adapter)
    )
    return paired_differences(measured, first, second)


def test_summaries_are_over_the_chip_instances_of_each_cell():
    measured = cells("grasp", [0.80, 0.82]) + cells("grasp", [0.5], device="rram")
    first, second = summarise(measured)
    assert (first.device, first.n, first.mean) == ("pcm", 2, pytest.approx(0.81))
    # t(0.975, 1) = 12.7062, standard error 0.01.
    assert first.high - first.mean == pytest.approx(0.127062, abs=1e-6)
    assert (second.device, second.n, second.low, second.high) == ("rram", 1, None, None)


@pytest.mark.parametrize(("metric", "step"), [("accuracy", 0.01), ("mse", -0.01)])
def test_differences_are_paired_by_chip_instance(metric, step):
    # The chips differ by far more than the adapters: only pairing shows the difference.
    chips = [0.5, 0.7, 0.9]
    better = [chip + step * share for chip, share in zip(chips, (0.9, 1.0, 1.1), strict=True)]
    measured = cells("grasp", chips, metric=metric) + cells("lora", better, metric=metric)
    (difference,) = paired(measured)
    assert (difference.n, difference.verdict) == (3, "better")
    assert difference.mean == pytest.approx(step)
    (back,) = paired(measured, "lora", "grasp")
    assert (back.mean, back.verdict) == (pytest.approx(-step), "worse")


def test_difference_worked_out_by_hand():
    # Differences 1, 2, 3 (see above) in any order of the rows; t = 2 sqrt(3), p = 0.0742.
    measured = cells("grasp", [5.0, 1.0, 2.0]) + cells("lora", [6.0, 3.0, 5.0])[::-1]
    (difference,) = paired(measured)
    assert (difference.low, difference.high) == pytest.approx((-0.484138, 4.484138), abs=1e-6)
    assert difference.p_value == pytest.approx(stats.ttest_rel([6, 3, 5], [5, 1, 2]).pvalue)
    assert difference.verdict == "not significant"


def test_measurements_without_a_partner_do_not_count():
    (difference,) = paired(cells("grasp", [0.1, 0.2, 0.3]) + cells("lora", [0.2, 0.3]))
    assert difference.n == 2
    # The same repeat with another seed is another chip.
    measured = [*cells("grasp", [0.1]), replace(cells("lora", [0.2])[0], seed=5)]
    (difference,) = paired(measured)
    assert (difference.n, difference.mean, difference.verdict) == (0, None, "open")


def test_one_pair_stays_open():
    (difference,) = paired(cells("grasp", [0.25]) + cells("lora", [0.75]))
    assert (difference.mean, difference.low, difference.p_value) == (0.5, None, None)
    assert difference.verdict == "open"


@pytest.mark.parametrize("adapter", ["lora", "grasp"])
def test_placements_may_differ(adapter):
    measured = cells("grasp", [0.1, 0.2]) + cells(adapter, [0.2, 0.3], placement="folded")
    (difference,) = paired_differences(measured, *variants(measured))
    assert (difference.n, difference.mean) == (2, pytest.approx(0.1))
    assert difference.adapter == Variant(adapter, "folded")


def test_cells_are_kept_apart():
    measured = [
        cell
        for adapter, value in (("grasp", 0.5), ("lora", 0.75))
        for time in (0.0, 20.0)
        for metric in ("accuracy", "f1")
        for cell in cells(adapter, [value], time_s=time, metric=metric)
    ]
    found = paired(measured)
    assert {(d.metric, d.time_s, d.mean) for d in found} == {
        (metric, time, 0.25) for metric in ("accuracy", "f1") for time in (0.0, 20.0)
    }


def differences(p_values):
    grasp, lora = Variant("grasp", "digital"), Variant("lora", "digital")
    return [
        PairedDifference("t", "accuracy", "pcm", 0.0, grasp, lora, 3, 0.1, 0.0, 0.2, p)
        for p in p_values
    ]


def test_holm_by_hand():
    # 4 * 0.01, 3 * 0.02, then 2 * 0.03 and 1 * 0.04, which must not fall below those before.
    assert holm([0.04, 0.01, 0.03, 0.02]).tolist() == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm(np.array([0.9, 0.5])).tolist() == [1.0, 1.0]
    assert [d.holds_corrected for d in holm_corrected(differences([0.03, 0.024]))] == [True, True]
    assert [d.holds_corrected for d in holm_corrected(differences([0.03, 0.026]))] == [False, False]


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_rejects_step_by_step(p_values):
    # Holm's procedure: reject in ascending order while p(i) < level / (m - i).
    rejected = set()
    for rank, (p, index) in enumerate(sorted((p, i) for i, p in enumerate(p_values))):
        if p * (len(p_values) - rank) >= 0.05:
            break
        rejected.add(index)
    corrected = holm_corrected(differences(p_values))
    # The level is 1 - 0.95, which is not quite the number 0.05.
    near = any(abs(d.p_holm - 0.05) < 1e-9 for d in corrected)
    assert near or {i for i, d in enumerate(corrected) if d.holds_corrected} == rejected


def crossed(adapter, table):
    """Return the measurements of trainings and chips, row by row."""
    return [
        replace(cell, training=training)
        for training, row in enumerate(table)
        for cell in cells(adapter, row)
    ]


def test_summaries_are_over_trainings_and_chips():
    table = [[0.80, 0.82, 0.84], [0.70, 0.72, 0.74]]
    (summary,) = summarise(crossed("grasp", table))
    expected = estimate(table)
    assert (summary.trainings, summary.n) == (2, 3)
    assert (summary.mean, summary.low, summary.high) == pytest.approx(expected[:3])
    # A quarter of the way from the smallest of six values to the next.
    assert summary.tail == pytest.approx(0.705)


def test_the_tail_is_the_worst_one():
    values = [0.1 * i for i in range(21)]
    assert summarise(cells("grasp", values))[0].tail == pytest.approx(0.1)
    assert summarise(cells("grasp", values, metric="mse"))[0].tail == pytest.approx(1.9)
    assert summarise(cells("grasp", [0.8]))[0].tail is None


def test_differences_are_paired_by_training_and_chip():
    # Trainings and chips differ by far more than the adapters.
    table = np.array([[0.1, 0.3, 0.5], [0.6, 0.8, 1.0]])
    better = table + np.array([0.03, 0.03125, 0.0325])
    measured = crossed("grasp", table.tolist()) + crossed("lora", better.tolist())
    (difference,) = paired(measured)
    assert (difference.trainings, difference.n) == (2, 3)
    assert difference.mean == pytest.approx(0.03125)
    assert difference.verdict == "better"
    # A saved adapter has one training, with which the first of the other is compared.
    (difference,) = paired(measured[:3] + measured[6:])
    assert (difference.trainings, difference.n) == (1, 3)


# Standard deviations of the effects of trainings and chips, in units of that of both together.
RATIOS = (0.0, 0.3, 1.0, 5.0)


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


@pytest.mark.parametrize("value", [0.1, 0.0])
def test_equal_values_have_no_interval_and_no_significance(value):
    assert estimate([value] * 3) == (value, None, None, 1.0)


def test_differences_that_are_equal_but_for_rounding_have_no_interval():
    differences = [0.96 - 0.95, 0.9 - 0.89, 0.06 - 0.05]
    assert len(set(differences)) > 1
    assert estimate(differences)[1:] == (None, None, 1.0)


def test_equal_adapters_rarely_differ_significantly_after_correction():
    # Accuracies of 1,000 rows on three chips, 20 conditions; standard deviation 0.3 points.
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(200):
        table = rng.normal(0.0, 0.003, (20, 3)).round(3)
        found += bool((holm([estimate(values).p_value for values in table]) < 0.05).any())
    # With p = 0 for equal differences it were 15 %.
    assert found < 0.05 * 200


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
    result = estimate(table)
    half = half_widths(*mean_error(mean_squares(table), 3, 5))
    assert (result.low, result.high) == pytest.approx((table.mean() - half, table.mean() + half))
    # The interval excludes zero where the p-value is below 5 %.
    for shift in (result.low, result.high):
        assert estimate(table - shift).p_value == pytest.approx(0.05)


def test_a_crossed_interval_worked_out_by_hand():
    # Rows of mean 2 and 4, columns of mean 2 and 4, no rest: MS_A = MS_B = 4, MS_E = 0.
    # Variance of the mean 8 / 4 = 2, with 8^2 / (16 + 16) = 2 degrees of freedom.
    result = estimate([[1.0, 3.0], [3.0, 5.0]])
    half = stats.t.ppf(0.975, 2) * 2**0.5
    assert (result.mean, result.high) == pytest.approx((3.0, 3.0 + half))


def test_without_effects_the_values_count_as_independent():
    # MS_A = MS_B = 0: the interval is that of four independent values.
    values = [[1.0, 2.0], [2.0, 1.0]]
    assert estimate(values)[1:] == pytest.approx(estimate([1.0, 2.0, 2.0, 1.0])[1:])


def test_what_varies_decides_about_the_interval():
    table = np.array([[0.80, 0.82], [0.84, 0.86]])
    assert estimate(table[:1]) == estimate([0.80, 0.82])
    assert estimate(table[:, :1])[1:] == (None, None, None)
    assert estimate(np.full((2, 3), 0.1)) == (0.1, None, None, 1.0)


def test_incomplete_trainings_are_ignored():
    values = {(i, (j, j)): 10.0 * i + j for i, j in product(range(3), range(4))}
    assert complete_table(values).shape == (3, 4)
    # The third training was measured on one chip only, the second on three.
    for missing in ((2, 0), (2, 1), (2, 2), (1, 3)):
        del values[missing[0], (missing[1], missing[1])]
    assert complete_table(values).tolist() == [[0, 1, 2], [10, 11, 12]]


@pytest.mark.parametrize("scale", [1e80, 2.0**530, 1e300])
def test_large_values_have_the_intervals_of_small_ones(scale):
    table = np.array([[1.0, 2.0, 4.0], [1.5, 2.5, 3.0]])
    small, large = estimate(table), estimate(scale * table)
    assert [x / scale for x in large[:3]] == pytest.approx(small[:3])
    assert large.p_value == pytest.approx(small.p_value)
