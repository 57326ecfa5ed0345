"""Findings and summary of a comparison: the answer, counts, ranges, retained scores."""

from dataclasses import replace
from math import sin
from statistics import fmean

import pytest
from scipy.stats import ttest_1samp

from analog_grasp.report.findings import (
    METHODOLOGY,
    ages_beyond_data,
    answer,
    coverage,
    findings,
    methodology,
    trainings_text,
)
from analog_grasp.report.page import comparison_report
from analog_grasp.report.tables import Comparison, answer_table
from analog_grasp.study.statistics import averaged, paired_differences

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
    assert answer(Comparison(scored(lambda cell: 0.02), records)) == (
        "Stochastic (stochgrasp), on pcm, for 20s: with one training each, stochgrasp is better"
        " than grasp in 6 and worse in 0 of 6 conditions, on average by +2.0 ±0.0 points;"
        " stochgrasp retains 95 % of its digital accuracy there (the longest of 2 devices) and has"
        " 82.3 ±0.4 % at 1d."
    )
    worse = answer(Comparison(scored(lambda cell: -0.02), records))
    assert worse.startswith("Deterministic (grasp), on pcm, for 20s: with one training")


def test_equal_adapters_leave_the_choice(scored, records):
    text = answer(Comparison(scored(lambda cell: 0.01 * (cell.repeat % 2 - 0.5)), records))
    assert text.startswith(
        "Either, on pcm, for 20s: with one training each, stochgrasp and grasp differ significantly"
    )
    assert "points), on average by +0.0 ±0.9 points; " in text


def test_the_answer_names_single_trainings_alone(scored, records):
    """Of two trainings of each the intervals cover the trainings too."""
    once = scored(lambda cell: 0.02)
    cells = [*once, *(replace(cell, training=1, value=cell.value + 0.001) for cell in once)]
    assert "with one training each" in answer(Comparison(once, records))
    assert "with one training" not in answer(Comparison(cells))
    refitted = [
        replace(cell, adapter="grasp+recalibrated-8" if cell.adapter == "stochgrasp" else "grasp")
        for cell in once
    ]
    assert "with one training" not in answer(Comparison(refitted))


def test_a_small_difference_in_all_conditions_is_the_answer(measurements):
    """No single condition shows it; the mean of each chip over the conditions does."""
    gains = {cell.key: 0.03 * sin(5 * n) + 0.006 for n, cell in enumerate(measurements)}
    cells = [
        replace(cell, value=0.5 + (cell.adapter == "stochgrasp") * gains[cell.key])
        for cell in measurements
    ]
    chips = [
        [gains[c.key] for c in cells if c.adapter == "stochgrasp" and c.repeat == repeat]
        for repeat in range(4)
    ]
    means = [fmean(gain) for gain in chips]
    low, high = ttest_1samp(means, 0).confidence_interval()
    assert low > 0
    text = answer(Comparison(cells))
    assert text.startswith("Stochastic (stochgrasp)")
    assert "differ significantly in none of 6 conditions" in text
    assert f"on average by +{100 * fmean(means):.1f} ±{50 * (high - low):.1f} points; " in text
    # A chip that is not measured everywhere does not count.
    (pair,) = paired_differences(averaged(cells[1:]), *Comparison(cells).variants)
    assert (pair.n, pair.mean) == (3, pytest.approx(fmean(means[1:])))


def test_an_answer_can_depend_on_the_condition(scored, records):
    cells = scored(lambda cell: 0.02 if cell.device == "pcm" else -0.02)
    assert answer(Comparison(cells, records)).startswith(
        "It depends on the condition, on pcm, for 20s: with one training each,"
        " stochgrasp is better than grasp in 3 and"
        " worse in 3 of 6 conditions, on average by +0.0 ±0.0 points; stochgrasp retains"
    )


def test_one_adapter_and_no_record(scored):
    cells = [c for c in scored(lambda cell: 0.0) if c.adapter == "grasp" and c.device == "pcm"]
    # Without a digital score, the first one counts: 95 % of 85.3 is 81.0.
    assert answer(Comparison(cells)) == (
        "grasp, on pcm, for 20s: it retains 95 % of its first accuracy there and has 80.3 ±0.4 % at"
        " 1d."
    )


def test_an_adapter_that_has_not_learned_is_not_the_answer(make):
    """It has nothing to lose, and retains its own digital score longest."""
    cells, records = make(adapters=("grasp", "stochgrasp", "head"))
    learned = {0.0: 0.9, 20.0: 0.88, 86400.0: 0.8}
    cells = [
        replace(c, value=0.53 if c.adapter == "head" else learned[c.time_s] + c.repeat / 1e3)
        for c in cells
    ]
    scores = {"grasp": 0.91, "stochgrasp": 0.9, "head": 0.54}
    records = [replace(record, digital={"accuracy": scores[record.adapter]}) for record in records]
    for order in (records, records[::-1]):
        text = answer(Comparison(cells, order))
        assert "retains 95 % of its digital accuracy there and has 80.2" in text
        assert "head retains" not in text


def test_the_longest_is_stated_of_a_single_device(scored, records):
    short = [c for c in scored(lambda cell: 0.0) if c.time_s == 0]
    text = answer(Comparison(short, records))
    assert "retains 95 % of its digital accuracy there and has 85.3" in text
    high = [replace(record, digital={"accuracy": 0.99}) for record in records]
    assert "and has 85.3 ±0.4 % at 0s, the best of 2 devices." in answer(Comparison(short, high))
    same = [replace(cell, value=0.85 + cell.repeat / 500) for cell in short]
    assert answer(Comparison(same, high)).endswith("and has 85.3 ±0.4 % at 0s.")


def lifetimes(cells, records):
    """Returns the time for which each adapter retains its score, by device and label."""
    comparison = Comparison(cells, records)
    return {
        (table.device, label): comparison.retained(table, place)
        for table in comparison.tables
        for place, label in enumerate(table.labels)
    }


def test_scores_are_retained_up_to_the_first_that_is_not(scored, records):
    cells = scored(lambda cell: 0.0)
    # On rram the score after a day is as good again.
    retained = lifetimes(cells, records)
    assert retained["pcm", "grasp"] == retained["pcm", "stochgrasp"] == 20.0
    assert retained["rram", "grasp"] == 0.0
    high = [replace(record, digital={"accuracy": 0.99}) for record in records]
    assert set(lifetimes(cells, high).values()) == {None}
    text = answer(Comparison(cells, high))
    assert "does not retain 95 % of its digital accuracy, and has 83.3" in text


def test_a_perplexity_is_retained_while_it_is_low(scored, records):
    cells = [replace(c, metric="perplexity", value=10 / c.value) for c in scored(lambda cell: 0)]
    lower = [replace(record, digital={"perplexity": 10 / 0.8675}) for record in records]
    assert list(lifetimes(cells, lower).values()) == [20.0, 20.0, 0.0, 0.0]


def test_one_table_has_all_devices_times_and_marks(scored, records):
    table = answer_table(Comparison(scored(lambda cell: 0.02), records))
    assert table.columns == ("device, adapter", "digital", "0s", "20s", "1d", "95 % retained for")
    texts = {label: entries for label, *entries in table.rows}
    assert texts["pcm, grasp"] == ["86.8", "85.3 ±0.4", "83.3 ±0.4", "80.3 ±0.4", "20s"]
    assert texts["pcm, stochgrasp"][1] == "87.3 ±0.4 ▲*"
    assert len(texts) == 4


def test_what_the_intervals_cover_is_stated(measurements):
    assert "trained once: the intervals (Student's t) cover" in trainings_text(measurements)
    more = [replace(c, training=1) for c in measurements if c.adapter == "grasp"]
    text = trainings_text(measurements + more)
    assert "from 2 seeds, and every chip was measured with each training" in text
    assert text.endswith("Of stochgrasp there is one training, and no interval over them.")


def shifted(measurements, shift):
    """Returns scores that differ between the adapters by about the shift of the device."""
    return [
        replace(
            cell,
            value=0.5
            + cell.repeat / 16
            + shift[cell.device] * (1 + cell.repeat / 1000) * (cell.adapter == "stochgrasp"),
        )
        for cell in measurements
    ]


def test_better_worse_and_insignificant_conditions_are_counted(measurements):
    cells = shifted(measurements, {"pcm": 0.0625, "rram": -0.0625})
    cells = [
        replace(c, value=0.5 + 0.01 * (c.repeat % 2) * (c.adapter == "grasp"))
        if c.time_s == 0
        else c
        for c in cells
    ]
    sentences = findings(Comparison(cells))
    assert sentences[1] == (
        "stochgrasp is better than grasp in 2 of 6 conditions (device and time), worse in 2 and not"
        " significantly different in 2; after Holm's correction it is better in 2 and worse in 2"
        " (reviews, accuracy)."
    )
    assert sentences[2] == (
        "The mean difference stochgrasp − grasp ranges from -6.3 ±0.0 points on rram at 20s to"
        " +6.3 ±0.0 points on pcm at 20s and is -0.2 ±0.3 points over all conditions (reviews,"
        " accuracy)."
    )


def test_a_single_chip_instance_gives_no_comparison(measurements):
    sentences = findings(Comparison([cell for cell in measurements if cell.repeat == 0]))
    assert (
        "stochgrasp and grasp cannot be compared: there is a single chip instance" in sentences[0]
    )
    assert "has no interval in 6 conditions (reviews, accuracy): there is a single" in sentences[1]
    assert not any("better" in sentence for sentence in sentences)


def test_one_adapter_is_described_without_a_comparison(measurements):
    cells = shifted([c for c in measurements if c.adapter == "grasp"], {"pcm": 0, "rram": 0})
    assert findings(Comparison(cells))[1:] == [
        "The accuracy of grasp on reviews ranges from 59.4 ±12.8 % on pcm at 0s to 59.4 ±12.8 % on"
        " pcm at 0s."
    ]
    single = [c for c in cells if (c.device, c.time_s) == ("pcm", 0)]
    assert findings(Comparison(single))[1:] == [
        "The accuracy of grasp on reviews is 59.4 ±12.8 % on pcm at 0s."
    ]


def test_every_metric_has_its_own_finding(measurements):
    other = [replace(cell, metric="nist", value=8 * cell.value) for cell in measurements]
    text = " ".join(findings(Comparison(measurements + other)))
    assert "(reviews, accuracy)" in text
    assert "(reviews, nist)" in text


def test_the_first_of_several_comparisons_names_every_adapter(make):
    names = ("grasp", "stochgrasp", "lora")
    first, *_ = findings(Comparison(make(adapters=names)[0]))
    assert "than grasp: stochgrasp 0 / 0 (0 / 0), lora 0 / 1 (0 / 0) of 6 conditions;" in first


def test_a_partial_grid_is_reported(measurements):
    assert not any("partial" in sentence for sentence in findings(Comparison(measurements)))
    first, *_ = findings(Comparison(measurements[1:]))
    assert first.endswith("The results are partial: 47 of 48 measurements are available.")


def test_chips_and_devices_that_are_missing_altogether_are_reported(measurements):
    settings = {"devices": ["pcm", "rram"], "repeats": 4, "times": ["0s", "20s", "1d"]}
    settings |= {"adapters": ["grasp", "stochgrasp"]}
    assert "partial" not in findings(Comparison(measurements), settings)[0]
    for kept in (
        [cell for cell in measurements if cell.repeat < 2],
        [cell for cell in measurements if cell.device == "pcm"],
    ):
        first, *_ = findings(Comparison(kept), settings)
        assert first.endswith("24 of 48 measurements are available on fewer chips or devices.")
    trained = findings(Comparison(measurements), settings | {"trainings": 2})[0]
    assert "48 of 96 measurements" in trained


def test_intervals_that_stay_wider_than_asked_are_reported(measurements):
    comparison = Comparison(measurements)
    first, *_ = findings(comparison, {"until_ci": 0.5})
    assert "The widest 95 % interval is ±" in first
    assert "wider than until_ci 0.5" in first
    assert "widest" not in findings(comparison, {"until_ci": 100.0})[0]


def test_the_summary_begins_with_the_result(measurements, records, layers):
    comparison = Comparison(measurements, records)
    text = comparison_report("A *title*", {"seed": 0}, comparison, layers).summary()
    title, _, finding, *_ = text.splitlines()
    assert title == r"# A \*title\*"
    assert finding.startswith("Either, on rram: with one training each, stochgrasp and grasp")
    order = [
        "accuracy_vs_drift.svg", "**accuracy (%) on reviews**", "Each adapter was trained once",
        "**pcm, reviews**", "ranges from", "**Tiles and weight error**",
        "**Trained adapters**", "**Settings**", "## Methodology",
    ]  # fmt: skip
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    # Errors of 3 % on 100 weights and of 5 % on 300: the root of (9 + 3 x 25) / 4.
    assert "| pcm | 5 | 400 | 50.0% | 4.58% | 9.17% |" in text


def test_the_share_of_weights_on_tiles_is_stated(layers, measurements):
    (sentence,) = coverage(layers)
    assert sentence == "40.0% of the model's weights are on tiles; digital: embeddings (600)."
    comparison = Comparison(measurements)
    assert sentence in comparison_report("Title", {}, comparison, layers).summary()
    others = [replace(layers[2], layer=f"expert.{index}", cells=100) for index in range(7)]
    assert coverage(layers[:2] + others)[0].endswith("expert.4 (100), 2 more (200).")
    # The frozen weights can be digital altogether, as for the noise of a programmed adapter.
    digital = [layer for layer in layers if not layer.tiles]
    assert coverage(digital)[0].startswith("0.0% of the model's weights")
    summary = comparison_report("Title", {}, comparison, digital).summary()
    assert "Tiles and weight error" not in summary
    assert coverage([]) == []


def test_a_partial_run_has_a_summary_with_dashes(measurements):
    cells = [c for c in measurements if not (c.adapter == "stochgrasp" and c.device == "rram")]
    summary = comparison_report("Title", {}, Comparison(cells)).summary()
    assert "| stochgrasp | – | – | – |" in summary
    assert "partial" in summary


def test_the_second_stage_is_stated_of_the_adapters_that_had_it(records):
    stage = {"then": ["pcm@0s..1y"], "then_steps": 300}
    assert "learned the task, each adapter was distilled" in methodology(stage, records)[0]
    saved = replace(records[1], train_seconds=0.0)
    whole = replace(records[1], adapter="full")
    first = methodology(stage, [records[0], saved, whole])[0]
    assert "each of grasp was distilled without labels, in 300 steps," in first
    assert methodology({"then": ["none"]}, records) == list(METHODOLOGY)
    assert methodology(stage, [saved, whole]) == list(METHODOLOGY)


def test_ages_for_which_a_device_has_no_data_are_stated():
    settings = {"devices": ["rram-wan2022", "pcm-hermes-2", "rram-milo2021", "gone/mine.toml"]}
    held, none = ages_beyond_data(settings | {"times": ["0s", "1y"]})
    assert held.startswith('Device card "rram-wan2022" is tabulated up to 2d: from then on its')
    assert "rram-milo2021" in none
    assert "no drift data" in none
    assert ages_beyond_data({"devices": ["rram-wan2022"], "times": ["0s", "2d"]}) == []
    assert ages_beyond_data({}) == []
