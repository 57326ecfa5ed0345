"""The cells of a study and their seeds."""

import random
from itertools import product

import pytest

from analog_grasp.study.config import StudyConfig
from analog_grasp.study.grid import Chip, chip_count, chips, times
from analog_grasp.study.records import Measurement
from analog_grasp.study.statistics import estimate

SETTINGS = StudyConfig().replace(
    adapters=("grasp",), devices=("ideal", "pcm-hermes-2"), times=("1d", "0s"), repeats=2, seed=5
)
UNTIL = StudyConfig().replace(repeats=3, until_ci=1.0, repeats_limit=20)
WHERE = tuple(product(("grasp", "lora"), (0.0, 60.0)))


def test_every_device_has_its_chips_with_seeds_from_the_study():
    assert chips(SETTINGS, SETTINGS.hardware.devices) == [
        Chip("ideal", 0, 5),
        Chip("ideal", 1, 6),
        Chip("pcm-hermes-2", 0, 5),
        Chip("pcm-hermes-2", 1, 6),
    ]


def test_a_chip_is_the_same_whatever_else_is_measured():
    wider = SETTINGS.replace(repeats=5)
    alone = {(c.device, c.repeat): c for c in chips(SETTINGS, SETTINGS.hardware.devices)}
    among = {(c.device, c.repeat): c for c in chips(wider, ("rram-wan2022", "ideal"))}
    shared = alone.keys() & among.keys()
    assert len(shared) == 2
    assert all(alone[key] == among[key] for key in shared)


def test_times_are_seconds_in_the_order_asked():
    assert list(times(SETTINGS)) == [86_400.0, 0.0]


def drawn(count, spread, metric="accuracy"):
    """Values of so many chips, in every cell, around 0.8."""
    chance = random.Random(0)
    return [
        Measurement("t", metric, adapter, "digital", "pcm", time, i, i, chance.gauss(0.8, spread))
        for adapter, time in WHERE
        for i in range(count)
    ]


def test_chips_are_drawn_until_every_interval_is_narrow():
    everything = drawn(20, 0.01)
    count = chip_count(UNTIL, len(WHERE), everything)
    assert 3 < count < 20

    def widest(n):
        for adapter, time in WHERE:
            cells = (c for c in everything if (c.adapter, c.time_s) == (adapter, time))
            found = estimate([100 * c.value for c in cells if c.repeat < n])
            yield found.high - found.mean

    assert max(widest(count)) <= 1.0
    assert max(widest(3)) > 1.0


def test_as_many_chips_are_asked_for_whatever_else_is_known():
    everything = drawn(20, 0.01)
    final = chip_count(UNTIL, len(WHERE), everything)
    count = UNTIL.run.repeats
    while True:  # one round after the other, as a run that knows no more has it
        known = [cell for cell in everything if cell.repeat < count]
        random.Random(1).shuffle(known)
        more = chip_count(UNTIL, len(WHERE), known)
        if more == count:
            break
        assert count < more <= 2 * count
        count = more
    assert count == final


def test_no_chip_is_added_before_those_asked_for_are_measured_whole():
    assert chip_count(UNTIL, len(WHERE), drawn(2, 0.5)) == 3
    assert chip_count(UNTIL, len(WHERE), drawn(3, 0.5)[:-1]) == 3
    assert chip_count(UNTIL, len(WHERE) + 1, drawn(3, 0.5)) == 3


def test_the_limit_ends_the_drawing():
    assert chip_count(UNTIL, len(WHERE), drawn(20, 0.5)) == 20
    many = UNTIL.replace(repeats=30)
    assert chip_count(many, len(WHERE), drawn(30, 0.5)) == 30


def test_narrow_intervals_need_no_more():
    assert chip_count(UNTIL, len(WHERE), drawn(3, 1e-6)) == 3
    assert chip_count(StudyConfig().replace(repeats=3), len(WHERE), drawn(3, 0.5)) == 3


def test_a_single_chip_tells_no_spread():
    one = UNTIL.replace(repeats=1)
    assert chip_count(one, len(WHERE), drawn(1, 1e-6)) == 2


@pytest.mark.parametrize(("metric", "more"), [("accuracy", True), ("nist", False)])
def test_a_point_is_a_hundredth_of_a_score_that_is_a_fraction(metric, more):
    assert (chip_count(UNTIL, len(WHERE), drawn(3, 0.1, metric)) > 3) is more
