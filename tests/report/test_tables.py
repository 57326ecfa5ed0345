"""Tables of a comparison: their values, marks and rendering."""

import re
from dataclasses import replace

import pytest
from rich.console import Console

from analog_grasp.report.findings import answer
from analog_grasp.report.tables import (
    MISSING,
    Comparison,
    TextTable,
    adapter_text,
    device_text,
    interval_text,
    markdown_table,
    rich_table,
    score_text,
    settings_text,
    treatment_text,
    verdict,
)
from analog_grasp.study.records import Measurement, TreatmentCost
from tests.report.conftest import made_up, records_of


def rendered(table, width=150):
    console = Console(width=width)
    with console.capture() as capture:
        console.print(rich_table(table))
    return capture.get()


def test_a_narrow_terminal_loses_no_character():
    text = rendered(TextTable("A", ("adapter", "value"), [("grasp+recalibrated-256", "1,244")]), 20)
    cells = [line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│")]
    assert "".join(cells) == "grasp+recalibrated-256"


def first_text(measurements):
    return device_text(Comparison(measurements).tables[0])


def test_one_table_per_device_with_times_as_columns(measurements, records):
    tables = Comparison(measurements, records).tables
    assert [table.device for table in tables] == ["pcm", "rram"]
    text = device_text(tables[0])
    assert text.columns == ("accuracy (%)", "0s", "20s", "1d")
    assert [row[0] for row in text.rows] == ["grasp", "stochgrasp", "stochgrasp − grasp"]
    assert text.differences == 1


def test_scores_are_per_cent_with_the_interval(measurements):
    # Two equal pairs of 0.75 +- 0.01: s = 0.011547, t(0.975, 3) = 3.18245, half 0.018374.
    cells = [
        replace(cell, value=0.74 + 0.02 * (cell.repeat % 2))
        for cell in measurements
        if cell.adapter == "grasp"
    ]
    assert first_text(cells).rows[0][1] == "75.0 ±1.8 (74.0)"


@pytest.mark.parametrize(
    ("shift", "text", "result"),
    [(0.02, "+2.0 ±0.2 ▲*", "better"), (-0.02, "-2.0 ±0.2 ▼*", "worse"), (0.0, "+0.0", "")],
)
def test_a_significant_difference_is_marked(measurements, shift, text, result):
    cells = [
        replace(
            cell,
            value=0.5
            + cell.repeat / 16
            # Varies by chip, as equal differences have no interval.
            + shift * (0.95 + 0.1 * (cell.repeat % 2)) * (cell.adapter == "stochgrasp"),
        )
        for cell in measurements
    ]
    difference = first_text(cells).rows[2][1]
    assert (difference, verdict(difference)) == (text, result)


def test_a_difference_that_is_not_significant_after_correction_has_no_star(measurements):
    # p = 0.049 alone, six times that among six differences, of which five are zero.
    gains = (0.008, 0.02, 0.012, 0.004)

    def value(cell):
        decides = (cell.device, cell.time_s) == ("pcm", 0.0)
        gain = gains[cell.repeat] if decides else cell.repeat % 2 - 0.5
        return 0.5 + gain * (cell.adapter == "stochgrasp")

    cells = [replace(cell, value=value(cell)) for cell in measurements]
    alone = [cell for cell in cells if (cell.device, cell.time_s) == ("pcm", 0.0)]
    for family, mark in ((cells, " ▲"), (alone, " ▲*")):
        assert first_text(family).rows[2][1].endswith(mark)


def test_a_missing_score_is_a_dash(measurements):
    cells = [c for c in measurements if not (c.adapter == "stochgrasp" and c.time_s == 20)]
    texts = [row[2] for row in first_text(cells).rows]
    assert texts[0] != MISSING
    assert texts[1:] == [MISSING, MISSING]


def test_a_single_chip_instance_has_no_interval(measurements):
    rows = first_text([cell for cell in measurements if cell.repeat == 0]).rows
    assert "±" not in rows[0][1] + rows[2][1]
    assert verdict(rows[2][1]) == ""


def test_records_give_the_order_and_the_baseline(measurements, records):
    (table, _) = Comparison(measurements, records[::-1]).tables
    assert table.labels == ["stochgrasp", "grasp"]
    assert device_text(table).rows[2][0] == "grasp − stochgrasp"


def test_a_treated_adapter_is_compared_with_the_same_adapter_as_trained():
    names = ("grasp", "lora", "lora+recalibrated-8", "grasp+scheduled")
    comparison = Comparison(made_up(names), records_of(("grasp", "lora")))
    for table in comparison.tables:
        assert dict(zip(table.labels[1:], table.baselines, strict=True)) == {
            "lora": "grasp",
            "lora+recalibrated-8": "lora",
            "grasp+scheduled": "grasp",
        }
        scores = dict(zip(table.labels, table.scores, strict=True))
        rows = zip(table.labels[1:], table.baselines, table.differences, strict=True)
        for label, baseline, (first, *_) in rows:
            gain = scores[label][0].mean - scores[baseline][0].mean
            assert first.mean == pytest.approx(gain)
    sentence = answer(comparison)
    assert re.search(
        r"than grasp: lora \d.*, grasp\+scheduled \d.*; than lora: lora\+rec", sentence
    )


def test_records_give_the_primary_metric_which_comes_first(measurements, records):
    cells = [replace(c, metric="bits_per_byte") for c in measurements]
    cells += [replace(c, metric="perplexity") for c in measurements]
    scored = [replace(r, digital={"perplexity": 0.8, "bits_per_byte": 0.8}) for r in records]
    metrics = [table.metric for table in Comparison(cells, scored).tables]
    assert metrics == ["perplexity", "perplexity", "bits_per_byte", "bits_per_byte"]
    assert [t.metric for t in Comparison(cells).tables] == metrics[::-1]


def test_several_placements_are_part_of_the_label(measurements):
    folded = [replace(cell, placement="folded") for cell in measurements]
    labels = Comparison(measurements + folded).labels
    assert labels[0] == "grasp (digital)"
    assert len(set(labels)) == 4


def test_numbers_are_rounded():
    assert score_text(0.8125, "matthews_correlation") == "81.2"
    assert score_text(8.60942, "nist") == "8.609"
    assert score_text(-0.0001, "accuracy") == "0.0"
    assert score_text(123_456.7, "perplexity") == "1.235e+05"
    assert score_text(12_345.6, "perplexity") == "12345.600"
    assert interval_text(None, "accuracy") == MISSING


def test_adapters_are_listed_with_parameters_and_digital_scores(records):
    other = replace(records[1], digital={"f1": 0.5}, trainable_parameters=1_234_567)
    table = adapter_text([records[0], other])
    assert "digital accuracy (%)" in table.columns
    assert "digital f1 (%)" in table.columns
    assert table.rows[0][1:] == ("reviews", "1,152", "770", "1", "86.8", MISSING, "12 s")
    assert table.rows[1][2:] == ("1,234,567", "770", "1", MISSING, "50.0", "12 s")


def test_trainings_of_an_adapter_are_one_row(records):
    scores = (0.86, 0.88)
    both = [
        replace(records[0], training=i, digital={"accuracy": score})
        for i, score in enumerate(scores)
    ]
    (row,) = adapter_text(both).rows
    # t(0.975, 1) = 12.7062 times the standard error of 0.01; the time is the sum.
    assert row[4:] == ("2", "87.0 ±12.7", "25 s")


def test_nested_settings_are_joined_with_a_dot_and_empty_ones_absent():
    given = {"seed": 1, "training": {"epochs": 3}, "times": ["0s", "1d"], "recalibrate": []}
    table = settings_text(given)
    assert table.rows == [("seed", "1"), ("training.epochs", "3"), ("times", "0s, 1d")]


def test_the_terminal_shows_every_entry_and_no_markup_of_names(measurements):
    cells = [replace(cell, adapter=f"[red]{cell.adapter}[/]") for cell in measurements]
    text = first_text(cells)
    shown = rendered(text)
    assert "[red]grasp[/]" in shown
    assert all(entry in shown for row in text.rows for entry in row)


def test_markdown_escapes_names(measurements):
    cells = [replace(cell, adapter=f"a|b\n<i>{cell.adapter}") for cell in measurements]
    lines = markdown_table(first_text(cells)).splitlines()
    assert lines[2:4] == ["| accuracy (%) | 0s | 20s | 1d |", "| :-- | --: | --: | --: |"]
    assert lines[4].startswith(r"| a\|b \<i\>grasp | 7")
    assert len(lines) == 7


@pytest.mark.parametrize(
    ("metric", "digital", "kept", "lost"),
    [
        ("matthews", 0.5, 0.476, 0.474),
        ("matthews", -0.02, -0.0209, -0.0212),
        ("matthews", 0.0, 0.0, -0.001),
        ("perplexity", 40.0, 42.0, 42.2),
    ],
)
def test_a_score_is_retained_down_to_95_percent(records, metric, digital, kept, lost):
    known = [replace(records[0], digital={metric: digital})]
    for value, expected in ((kept, 0.0), (lost, None)):
        cell = Measurement("reviews", metric, "grasp", 0, "digital", "pcm", 0.0, 0, 0, value)
        comparison = Comparison([cell], known)
        assert comparison.retained(comparison.tables[0], 0) == expected


def test_costs_below_ten_have_one_decimal():
    cost = TreatmentCost("grasp+recalibrated-64", 3, 64, 3376, 0.42, 5506, 22024, None)
    (row,) = treatment_text([cost]).rows
    assert row[1:] == ("3", "64", "3,376", "0.4", "5,506", "22,024", MISSING)
