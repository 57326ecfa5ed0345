"""Plans of trainings and chips: what is drawn next, and when the drawing ends."""

import random
from itertools import product

import numpy as np
import pytest

from analog_grasp.study import study as module
from analog_grasp.study.config import StudyConfig, resolve
from analog_grasp.study.records import Measurement
from analog_grasp.study.statistics import estimate
from analog_grasp.study.study import Place, Plan, make_plan

UNTIL = resolve({"repeats": 3, "until_ci": 1.0, "repeats_limit": 20})
ADAPTERS, TIMES = ("grasp", "lora"), (0.0, 60.0)


def places(metric="accuracy"):
    return [Place(metric, adapter, time) for adapter, time in product(ADAPTERS, TIMES)]


def drawn(count, std, metric="accuracy", trainings=1, training_std=0.0):
    """Return values of so many chips in every cell, around 0.8; adapters differ by chance."""
    chance = random.Random(0)
    measured = []
    for adapter, time in product(ADAPTERS, TIMES):
        for training in range(trainings):
            level = 0.8 + chance.gauss(0.0, training_std)
            measured += [
                Measurement("t", metric, adapter, training, "digital", "pcm", time, i, i,
                            level + chance.gauss(0.0, std))
                for i in range(count)
            ]  # fmt: skip
    return measured


def chip_count(config: StudyConfig, measured, metric="accuracy"):
    plan = make_plan(config, ["pcm"], places(metric), measured)
    assert plan.trainings == 1
    return plan.chips["pcm"]


def test_chips_are_drawn_until_every_interval_is_narrow():
    everything = drawn(30, 0.01)
    config = UNTIL.replace(repeats_limit=30)
    count = chip_count(config, everything)
    assert 5 < count < 30

    def widest(n):
        tables = {}
        for c in everything:
            if c.repeat < n:
                tables.setdefault((c.adapter, c.time_s), []).append(100 * c.value)
        found = [estimate(values) for values in tables.values()]
        for time in TIMES:
            first, second = (np.array(tables[adapter, time]) for adapter in ADAPTERS)
            found.append(estimate((second - first).tolist()))
        return max(each.high - each.mean for each in found)

    assert widest(count) <= 1.0
    assert widest(5) > 1.0


def test_as_many_chips_are_asked_for_whatever_else_is_known():
    everything = drawn(20, 0.01)
    final = chip_count(UNTIL, everything)
    count = 5
    while True:  # one round after the other, as a run that knows no more has it
        known = [cell for cell in everything if cell.repeat < count]
        random.Random(1).shuffle(known)
        more = chip_count(UNTIL, known)
        if more == count:
            break
        assert count < more <= 2 * count
        count = more
    assert count == final


def test_no_chip_is_added_before_those_asked_for_are_measured_completely():
    assert chip_count(UNTIL, drawn(4, 0.5)) == 5
    assert chip_count(UNTIL, drawn(5, 0.5)[:-1]) == 5
    assert chip_count(UNTIL, drawn(5, 0.5)) == 10


def test_the_limit_ends_the_drawing():
    assert chip_count(UNTIL, drawn(20, 0.5)) == 20
    assert chip_count(UNTIL.replace(repeats=30), drawn(30, 0.5)) == 30
    assert chip_count(UNTIL.replace(repeats_limit=4), []) == 4


def test_drawing_begins_with_five_chips_or_more():
    for repeats, count in ((1, 5), (3, 5), (8, 8)):
        config = resolve({"repeats": repeats, "until_ci": 1.0})
        assert chip_count(config, []) == count
        assert chip_count(config, drawn(count, 1e-6)) == count
    assert chip_count(resolve({"repeats": 3}), drawn(3, 0.5)) == 3


@pytest.mark.parametrize(("metric", "more"), [("accuracy", True), ("nist", False)])
def test_a_point_is_a_hundredth_of_a_score_that_is_a_fraction(metric, more):
    assert (chip_count(UNTIL, drawn(5, 0.1, metric), metric) > 5) is more


@pytest.mark.parametrize(("first", "coverage"), [(3, 0.90), (5, 0.92), (10, 0.94)])
def test_coverage_of_intervals_that_end_the_drawing(monkeypatch, first, coverage):
    # About the half width at which coverage is lowest: half a standard deviation.
    monkeypatch.setattr(module, "FIRST_CHIPS", first)
    config = resolve({"repeats": 1, "until_ci": 50.0, "repeats_limit": 100})
    samples = np.random.default_rng(0).standard_normal((1500, 100))
    covered = []
    for sample in samples:
        cells = [
            Measurement("t", "accuracy", "grasp", 0, "digital", "pcm", 0.0, i, i, value)
            for i, value in enumerate(sample.tolist())
        ]
        plan = make_plan(config, ["pcm"], [Place("accuracy", "grasp", 0.0)], cells)
        found = estimate(sample[: plan.chips["pcm"]].tolist())
        covered.append(found.low <= 0 <= found.high)
    assert np.mean(covered) == pytest.approx(coverage, abs=0.015)


CROSSED = resolve(
    {"trainings": 2, "trainings_limit": 6, "repeats": 3, "until_ci": 1.0, "repeats_limit": 20}
)


def final_plan(config, everything):
    """Return the plan that a run ends with, round by round, and the plans on the way."""
    plans, plan = [], make_plan(config, ["pcm"], places(), [])
    while plan not in plans:
        plans.append(plan)
        known = [
            c for c in everything if c.training < plan.trainings and c.repeat < plan.chips["pcm"]
        ]
        plan = make_plan(config, ["pcm"], places(), known)
    return plans


def test_trainings_that_vary_are_drawn_and_chips_are_not():
    # Chips vary little: only trainings narrow the interval.
    plans = final_plan(CROSSED, drawn(20, 0.001, trainings=6, training_std=0.01))
    assert plans[0] == Plan(2, {"pcm": 5})
    assert [plan.trainings for plan in plans] == [2, 3, 4, 5, 6]
    # At the limit of trainings, no number of chips would help.
    assert plans[-1] == Plan(6, {"pcm": 5})


def test_chips_that_vary_are_drawn_and_trainings_are_not():
    # The same chips for both trainings: chips are what varies.
    once = drawn(20, 0.01)
    twice = [cell.__class__(**vars(cell) | {"training": i}) for i in range(6) for cell in once]
    plans = final_plan(CROSSED, twice)
    assert {plan.trainings for plan in plans} == {2}
    assert plans[-1].chips["pcm"] > 5
    table = [[100 * c.value for c in once if (c.adapter, c.time_s) == ("grasp", 0.0)]] * 2
    found = estimate(np.array(table)[:, : plans[-1].chips["pcm"]])
    assert found.high - found.mean <= 1.0


def test_the_order_of_the_work_does_not_change_the_plan():
    everything = drawn(20, 0.008, trainings=6, training_std=0.006)
    plans = final_plan(CROSSED, everything)
    random.Random(1).shuffle(everything)
    assert make_plan(CROSSED, ["pcm"], places(), everything) == plans[-1]


def test_saved_adapters_are_not_trained_more_often():
    config = CROSSED.replace(trainings_limit=3)
    # Saved adapters vary between chips, and no training narrows their intervals.
    saved = drawn(20, 0.01)
    plan = make_plan(config, ["pcm"], places(), saved, once=ADAPTERS)
    assert plan.trainings == 2
    assert plan.chips["pcm"] > 5
