"""Answer of a comparison: which adapter, on which device, for how long."""

from dataclasses import replace

import pytest

from analog_grasp.report.answer import answer, answer_table, lifetimes, main_tables
from analog_grasp.report.summary import trainings_text
from analog_grasp.report.tables import ordered_variants

# Scores of the digital models are 86.75 %, of which 95 % are 82.4 %.
SCORES = {("pcm", 0.0): 0.85, ("pcm", 20.0): 0.83, ("pcm", 86400.0): 0.8}
SCORES |= {("rram", 0.0): 0.84, ("rram", 20.0): 0.7, ("rram", 86400.0): 0.83}


@pytest.fixture
def scored(measurements):
    """Return scores with a gain of stochgrasp, in points, that chips hardly change."""

    def make(gain):
        return [
            replace(
                cell,
                value=SCORES[cell.device, cell.time_s]
                + cell.repeat / 500
                + (cell.adapter == "stochgrasp") * (gain(cell) + cell.repeat % 2 / 1e4),
            )
            for cell in measurements
        ]

    return make


def test_a_better_adapter_is_the_answer(scored, records):
    assert answer(scored(lambda cell: 0.02), records) == (
        "Stochastic (stochgrasp), on pcm, for 20s: stochgrasp is better than grasp in 6 and worse"
        " in 0 of 6 conditions; stochgrasp retains 95 % of its digital accuracy there (the longest"
        " of 2 devices) and has 82.3 ±0.4 % at 1d."
    )
    worse = answer(scored(lambda cell: -0.02), records)
    assert worse.startswith("Deterministic (grasp), on pcm, for 20s: stochgrasp is better than")


def test_equal_adapters_leave_the_choice(scored, records):
    text = answer(scored(lambda cell: 0.01 * (cell.repeat % 2 - 0.5)), records)
    assert text.startswith(
        "Either, on pcm, for 20s: stochgrasp and grasp differ significantly in none of 6 conditions"
    )
    assert "points); " in text


def test_an_answer_can_depend_on_the_condition(scored, records):
    cells = scored(lambda cell: 0.02 if cell.device == "pcm" else -0.02)
    assert answer(cells, records).startswith(
        "It depends on the condition, on pcm, for 20s: stochgrasp is better than grasp in 3 and"
        " worse in 3 of 6 conditions; stochgrasp retains"
    )


def test_one_adapter_and_no_record(scored):
    cells = [c for c in scored(lambda cell: 0.0) if c.adapter == "grasp" and c.device == "pcm"]
    # Without a digital score, the first one counts: 95 % of 85.3 is 81.0.
    assert answer(cells) == (
        "grasp, on pcm, for 20s: it retains 95 % of its first accuracy there and has 80.3 ±0.4 % at"
        " 1d."
    )


def test_scores_are_retained_up_to_the_first_that_is_not(scored, records):
    cells = scored(lambda cell: 0.0)
    measured = ordered_variants(cells, records)
    found = lifetimes(main_tables(cells, records), measured, records)
    # On rram the score after a day is as good again.
    retained = {(life.device, life.label): life.seconds for life in found}
    assert retained["pcm", "grasp"] == retained["pcm", "stochgrasp"] == 20.0
    assert retained["rram", "grasp"] == 0.0
    high = [replace(record, digital={"accuracy": 0.99}) for record in records]
    assert {life.seconds for life in lifetimes(main_tables(cells, high), measured, high)} == {None}
    assert "does not retain 95 % of its digital accuracy, and has 83.3" in answer(cells, high)


def test_a_perplexity_is_retained_while_it_is_low(scored, records):
    cells = [replace(c, metric="perplexity", value=10 / c.value) for c in scored(lambda cell: 0)]
    lower = [replace(record, digital={"perplexity": 10 / 0.8675}) for record in records]
    found = lifetimes(main_tables(cells, lower), ordered_variants(cells, lower), lower)
    assert [life.seconds for life in found] == [20.0, 20.0, 0.0, 0.0]


def test_one_table_has_all_devices_times_and_marks(scored, records):
    table = answer_table(scored(lambda cell: 0.02), records)
    assert table.columns == ("device, adapter", "digital", "0s", "20s", "1d", "95 % retained for")
    texts = {row.label: [entry.text for entry in row.entries] for row in table.rows}
    assert texts["pcm, grasp"] == ["86.8", "85.3 ±0.4", "83.3 ±0.4", "80.3 ±0.4", "20s"]
    assert texts["pcm, stochgrasp"][1] == "87.3 ±0.4 ▲*"
    assert len(texts) == 4


def test_what_the_intervals_cover_is_stated(measurements):
    assert "trained once: the intervals (Student's t) cover" in trainings_text(measurements)
    more = [replace(c, training=1) for c in measurements if c.adapter == "grasp"]
    text = trainings_text(measurements + more)
    assert "from 2 seeds, and every chip was measured with each training" in text
    assert text.endswith("Of stochgrasp there is one training, and no interval over them.")
