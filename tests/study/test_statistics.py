"""Means, intervals, pairs and chip counts, against figures worked out by hand and by scipy."""

import random
import statistics
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analog_grasp.study import statistics as module
from analog_grasp.study.records import Measurement
from analog_grasp.study.sections import RunSettings
from analog_grasp.study.statistics import (
    PairedDifference,
    Variant,
    chip_count,
    estimate,
    holm,
    holm_corrected,
    paired_differences,
    summarise,
    values_needed,
    variants,
)


def cells(adapter, values, **columns):
    first = Measurement("reviews", "accuracy", adapter, "digital", "pcm", 20.0, 0, 0, 0.0)
    return [
        replace(first, repeat=repeat, seed=100 + repeat, value=value, **columns)
        for repeat, value in enumerate(values)
    ]


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


def test_summaries_are_over_the_chip_instances_of_each_cell():
    measured = cells("grasp", [0.80, 0.82]) + cells("grasp", [0.5], device="rram")
    first, second = summarise(measured)
    assert (first.device, first.n, first.mean) == ("pcm", 2, pytest.approx(0.81))
    # t(0.975, 1) = 12.7062, standard error 0.01.
    assert first.high - first.mean == pytest.approx(0.127062, abs=1e-6)
    assert (second.device, second.n, second.low, second.high) == ("rram", 1, None, None)


def test_summaries_of_one_metric():
    measured = cells("grasp", [0.8]) + cells("grasp", [0.7], metric="f1")
    assert [summary.metric for summary in summarise(measured, "f1")] == ["f1"]
    assert len(summarise(measured)) == 2


def test_differences_are_paired_by_chip_instance():
    # The chips differ by far more than the adapters: only pairing shows the difference.
    chips = [0.5, 0.7, 0.9]
    measured = cells("grasp", chips) + cells("lora", [chip + 0.01 for chip in chips])
    (difference,) = paired_differences(measured, "grasp", "lora")
    assert (difference.n, difference.unpaired) == (3, 0)
    assert difference.mean == pytest.approx(0.01)
    assert difference.verdict == "better"
    (back,) = paired_differences(measured, "lora", "grasp")
    assert back.mean == pytest.approx(-0.01)
    assert back.verdict == "worse"


def test_a_lower_error_is_better():
    chips = [0.5, 0.7, 0.9]
    better = [chip - 0.01 for chip in chips]
    measured = cells("grasp", chips, metric="mse") + cells("lora", better, metric="mse")
    (difference,) = paired_differences(measured, "grasp", "lora")
    assert difference.mean == pytest.approx(-0.01)
    assert difference.verdict == "better"


def test_difference_worked_out_by_hand():
    # Differences 1, 2, 3 (see above) in any order of the rows; t = 2 sqrt(3), p = 0.0742.
    measured = cells("grasp", [5.0, 1.0, 2.0]) + cells("lora", [6.0, 3.0, 5.0])[::-1]
    (difference,) = paired_differences(measured, "grasp", "lora")
    assert (difference.low, difference.high) == pytest.approx((-0.484138, 4.484138), abs=1e-6)
    assert difference.p_value == pytest.approx(stats.ttest_rel([6, 3, 5], [5, 1, 2]).pvalue)
    assert difference.verdict == "not significant"


def test_measurements_without_a_partner_are_dropped_and_counted():
    measured = cells("grasp", [0.1, 0.2, 0.3]) + cells("lora", [0.2, 0.3])
    (difference,) = paired_differences(measured, "grasp", "lora")
    assert (difference.n, difference.unpaired) == (2, 1)


def test_the_same_repeat_with_another_seed_is_another_chip():
    measured = [*cells("grasp", [0.1]), replace(cells("lora", [0.2])[0], seed=5)]
    (difference,) = paired_differences(measured, "grasp", "lora")
    assert (difference.n, difference.unpaired, difference.mean) == (0, 2, None)
    assert difference.verdict == "open"


def test_one_pair_stays_open():
    (difference,) = paired_differences(
        cells("grasp", [0.25]) + cells("lora", [0.75]), "grasp", "lora"
    )
    assert (difference.mean, difference.low, difference.p_value) == (0.5, None, None)
    assert difference.verdict == "open"


def test_placements_may_differ():
    measured = cells("grasp", [0.1, 0.2]) + cells("lora", [0.2, 0.3], placement="folded")
    (difference,) = paired_differences(measured, "grasp", "lora")
    assert difference.n == 2
    assert difference.adapter == Variant("lora", "folded")


def test_placements_of_one_adapter_are_distinguished():
    measured = cells("grasp", [0.1, 0.2]) + cells("grasp", [0.2, 0.3], placement="folded")
    digital, folded = variants(measured)
    (difference,) = paired_differences(measured, digital, folded)
    assert difference.mean == pytest.approx(0.1)
    with pytest.raises(ValueError, match=r"several placements \(digital, folded\)"):
        paired_differences(measured, "grasp", folded)


def test_an_adapter_that_was_not_measured_raises():
    with pytest.raises(ValueError, match="Nothing was measured of the adapter 'lora'"):
        paired_differences(cells("grasp", [0.1]), "grasp", "lora")
    with pytest.raises(ValueError, match="'grasp' at placement 'folded'"):
        paired_differences(cells("grasp", [0.1]), "grasp", Variant("grasp", "folded"))


def test_cells_are_kept_apart():
    measured = [
        cell
        for adapter, value in (("grasp", 0.5), ("lora", 0.75))
        for time in (0.0, 20.0)
        for metric in ("accuracy", "f1")
        for cell in cells(adapter, [value], time_s=time, metric=metric)
    ]
    found = paired_differences(measured, "grasp", "lora")
    assert {(d.metric, d.time_s, d.mean) for d in found} == {
        (metric, time, 0.25) for metric in ("accuracy", "f1") for time in (0.0, 20.0)
    }


def differences(p_values):
    grasp, lora = Variant("grasp", "digital"), Variant("lora", "digital")
    return [
        PairedDifference("t", "accuracy", "pcm", 0.0, grasp, lora, 3, 0, 0.1, 0.0, 0.2, p)
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


def test_an_uncorrected_difference_does_not_hold_corrected():
    (difference,) = differences([0.001])
    assert not difference.holds_corrected
    assert holm_corrected(differences([None]))[0].p_holm is None


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=6), st.floats(0.1, 3))
def test_values_needed_is_where_the_interval_becomes_narrow(values, half_width):
    most = 50
    needed = values_needed(values, half_width, most)
    std = statistics.stdev(values)

    def half(n):
        return stats.t.ppf(0.975, n - 1) * std / n**0.5

    assert needed == most or half(needed) <= half_width * (1 + 1e-9)
    assert needed == 2 or half(needed - 1) > half_width * (1 - 1e-9)


UNTIL = RunSettings(repeats=3, until_ci=1.0, repeats_limit=20)
WHERE = tuple(product(("grasp", "lora"), (0.0, 60.0)))


def drawn(count, std, metric="accuracy"):
    """Return values of so many chips in every cell, around 0.8."""
    chance = random.Random(0)
    return [
        Measurement("t", metric, adapter, "digital", "pcm", time, i, i, chance.gauss(0.8, std))
        for adapter, time in WHERE
        for i in range(count)
    ]


def test_chips_are_drawn_until_every_interval_is_narrow():
    everything = drawn(20, 0.01)
    count = chip_count(UNTIL, len(WHERE), everything)
    assert 5 < count < 20

    def widest(n):
        for adapter, time in WHERE:
            cells = (c for c in everything if (c.adapter, c.time_s) == (adapter, time))
            found = estimate([100 * c.value for c in cells if c.repeat < n])
            yield found.high - found.mean

    assert max(widest(count)) <= 1.0
    assert max(widest(5)) > 1.0


def test_as_many_chips_are_asked_for_whatever_else_is_known():
    everything = drawn(20, 0.01)
    final = chip_count(UNTIL, len(WHERE), everything)
    count = 5
    while True:  # one round after the other, as a run that knows no more has it
        known = [cell for cell in everything if cell.repeat < count]
        random.Random(1).shuffle(known)
        more = chip_count(UNTIL, len(WHERE), known)
        if more == count:
            break
        assert count < more <= 2 * count
        count = more
    assert count == final


def test_no_chip_is_added_before_those_asked_for_are_measured_completely():
    assert chip_count(UNTIL, len(WHERE), drawn(4, 0.5)) == 5
    assert chip_count(UNTIL, len(WHERE), drawn(5, 0.5)[:-1]) == 5
    assert chip_count(UNTIL, len(WHERE) + 1, drawn(5, 0.5)) == 5


def test_the_limit_ends_the_drawing():
    assert chip_count(UNTIL, len(WHERE), drawn(20, 0.5)) == 20
    many = RunSettings(repeats=30, until_ci=1.0, repeats_limit=20)
    assert chip_count(many, len(WHERE), drawn(30, 0.5)) == 30
    few = RunSettings(repeats=3, until_ci=1.0, repeats_limit=4)
    assert chip_count(few, len(WHERE), []) == 4


def test_drawing_begins_with_five_chips_or_more():
    for repeats, count in ((1, 5), (3, 5), (8, 8)):
        run = RunSettings(repeats=repeats, until_ci=1.0)
        assert chip_count(run, len(WHERE), []) == count
        assert chip_count(run, len(WHERE), drawn(count, 1e-6)) == count
    assert chip_count(RunSettings(repeats=3), len(WHERE), drawn(3, 0.5)) == 3


@pytest.mark.parametrize(("metric", "more"), [("accuracy", True), ("nist", False)])
def test_a_point_is_a_hundredth_of_a_score_that_is_a_fraction(metric, more):
    assert (chip_count(UNTIL, len(WHERE), drawn(5, 0.1, metric)) > 5) is more


@pytest.mark.parametrize(("first", "coverage"), [(3, 0.90), (5, 0.92), (10, 0.94)])
def test_coverage_of_intervals_that_end_the_drawing(monkeypatch, first, coverage):
    # About the half width at which coverage is lowest: half a standard deviation.
    monkeypatch.setattr(module, "FIRST_CHIPS", first)
    run = RunSettings(repeats=1, until_ci=50.0, repeats_limit=100)
    samples = np.random.default_rng(0).standard_normal((1500, 100))
    covered = []
    for sample in samples:
        cells = [
            Measurement("t", "accuracy", "grasp", "digital", "pcm", 0.0, i, i, value)
            for i, value in enumerate(sample.tolist())
        ]
        found = estimate(sample[: chip_count(run, 1, cells)].tolist())
        covered.append(found.low <= 0 <= found.high)
    assert np.mean(covered) == pytest.approx(coverage, abs=0.015)
