"""The finding is that of the data."""

from dataclasses import replace

from analog_grasp.report.summary import findings, settings_text, summary_markdown


def shifted(measurements, shift):
    """Adapters that differ by the shift of a device on every chip, and by nothing else."""
    return [
        replace(
            cell,
            value=0.5 + cell.repeat / 16 + shift[cell.device] * (cell.adapter == "stochgrasp"),
        )
        for cell in measurements
    ]


def test_cells_ahead_behind_and_level_are_counted(measurements):
    cells = shifted(measurements, {"pcm": 0.0625, "rram": -0.0625})
    cells = [replace(c, value=0.5) if c.time_s == 0 else c for c in cells]
    sentences = findings(cells)
    assert sentences[0] == (
        "stochgrasp is ahead of grasp in 2 of 6 cells, behind in 2 and level in 2"
        " (reviews, accuracy; 95 % interval of the paired difference)."
        " After Holm's correction it is ahead in 2 and behind in 2."
    )
    assert sentences[1] == (
        "The mean difference runs from -6.2 ±0.0 points on rram at 20s to +6.2 ±0.0 points on pcm"
        " at 20s."
    )


def test_a_single_chip_instance_decides_nothing(measurements):
    sentences = findings([cell for cell in measurements if cell.repeat == 0])
    assert "6 cells have one chip instance in common" in sentences[0]
    assert not any("ahead" in sentence for sentence in sentences)


def test_one_adapter_is_described_without_a_comparison(measurements):
    cells = shifted([c for c in measurements if c.adapter == "grasp"], {"pcm": 0, "rram": 0})
    assert findings(cells) == [
        "grasp scores from 59.4 ±12.8 % on pcm at 0s to 59.4 ±12.8 % on pcm at 0s (accuracy)."
    ]


def test_every_metric_has_its_own_finding(measurements):
    other = [replace(cell, metric="nist", value=8 * cell.value) for cell in measurements]
    text = " ".join(findings(measurements + other))
    assert "(reviews, accuracy;" in text
    assert "(reviews, nist;" in text


def test_a_partial_grid_is_told(measurements):
    assert not any("partial" in sentence for sentence in findings(measurements))
    assert "47 of the 48 of a full grid" in findings(measurements[1:])[-1]


def test_settings_within_settings_are_named_with_a_dot():
    table = settings_text({"seed": 1, "training": {"epochs": 3}, "times": ["0s", "1d"]})
    shown = [(row.label, row.cells[0].text) for row in table.rows]
    assert shown == [("seed", "1"), ("training.epochs", "3"), ("times", "0s, 1d")]


def test_the_document_starts_with_the_finding(measurements, records):
    text = summary_markdown("Which one holds?", {"seed": 0}, measurements, records, ["A note."])
    title, _, finding, *_ = text.splitlines()
    assert title == "# Which one holds?"
    assert finding.startswith("- stochgrasp is ahead of grasp in ")
    order = ["A note.", "**pcm, reviews**", "**Trained adapters**", "**Settings**", "## How the"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
