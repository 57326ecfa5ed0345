"""Findings and summary of a comparison."""

from dataclasses import replace

from analog_grasp.report.summary import coverage, findings, summary_markdown


def shifted(measurements, shift):
    """Returns scores that differ between the adapters by the shift of the device only."""
    return [
        replace(
            cell,
            value=0.5 + cell.repeat / 16 + shift[cell.device] * (cell.adapter == "stochgrasp"),
        )
        for cell in measurements
    ]


def test_better_worse_and_insignificant_conditions_are_counted(measurements):
    cells = shifted(measurements, {"pcm": 0.0625, "rram": -0.0625})
    cells = [replace(c, value=0.5) if c.time_s == 0 else c for c in cells]
    sentences = findings(cells)
    assert sentences[1] == (
        "stochgrasp is better than grasp in 2 of 6 conditions (device and time), worse in 2 and not"
        " significantly different in 2; after Holm's correction it is better in 2 and worse in 2"
        " (reviews, accuracy)."
    )
    assert sentences[2] == (
        "The mean difference stochgrasp − grasp ranges from -6.2 ±0.0 points on rram at 20s to"
        " +6.2 ±0.0 points on pcm at 20s."
    )


def test_a_single_chip_instance_gives_no_comparison(measurements):
    sentences = findings([cell for cell in measurements if cell.repeat == 0])
    assert "share a single chip, too few to compare them" in sentences[0]
    assert "share a single chip instance in 6 conditions" in sentences[1]
    assert not any("better" in sentence for sentence in sentences)


def test_one_adapter_is_described_without_a_comparison(measurements):
    cells = shifted([c for c in measurements if c.adapter == "grasp"], {"pcm": 0, "rram": 0})
    assert findings(cells)[1:] == [
        "The accuracy of grasp on reviews ranges from 59.4 ±12.8 % on pcm at 0s to 59.4 ±12.8 % on"
        " pcm at 0s."
    ]


def test_every_metric_has_its_own_finding(measurements):
    other = [replace(cell, metric="nist", value=8 * cell.value) for cell in measurements]
    text = " ".join(findings(measurements + other))
    assert "(reviews, accuracy)" in text
    assert "(reviews, nist)" in text


def test_the_first_of_several_comparisons_names_every_adapter(make):
    names = ("grasp", "stochgrasp", "lora")
    first, *_ = findings(make(adapters=names)[0])
    assert "better / worse than grasp: stochgrasp 0 / 0, lora 0 / 0 of 6 conditions;" in first


def test_a_partial_grid_is_reported(measurements):
    assert not any("partial" in sentence for sentence in findings(measurements))
    assert "47 of the 48 measurements of the full grid" in findings(measurements[1:])[-1]


def test_the_summary_begins_with_the_result(measurements, records, layers):
    text = summary_markdown("A *title*", {"seed": 0}, measurements, records, layers)
    title, _, finding, *_ = text.splitlines()
    assert title == r"# A \*title\*"
    assert finding.startswith("Either, on rram: stochgrasp and grasp differ significantly in none")
    order = [
        "accuracy_vs_drift.svg", "**accuracy (%) on reviews**", "Each adapter was trained once",
        "**pcm, reviews**", "ranges from", "**Trained adapters**",
        "**Tiles and weight error**", "**Settings**", "## Methodology",
    ]  # fmt: skip
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    # Errors of 3 % on 100 weights and of 5 % on 300: the root of (9 + 3 x 25) / 4.
    assert "| pcm | 5 | 400 | 50.0% | 4.58% | 9.17% |" in text


def test_the_share_of_weights_on_tiles_is_stated(layers, measurements):
    (sentence,) = coverage(layers)
    assert sentence == "40.0% of the model's weights are on tiles; digital: embeddings (600)."
    assert sentence in summary_markdown("Title", {}, measurements, [], layers)
    others = [replace(layers[2], layer=f"expert.{index}", cells=100) for index in range(7)]
    assert coverage(layers[:2] + others)[0].endswith("expert.4 (100), 2 more (200).")
    # The frozen weights can be digital altogether, as for the noise of a programmed adapter.
    digital = [layer for layer in layers if not layer.tiles]
    assert coverage(digital)[0].startswith("0.0% of the model's weights")
    assert "Tiles and weight error" not in summary_markdown("Title", {}, measurements, [], digital)
    assert coverage([]) == []


def test_a_partial_run_has_a_summary_with_dashes(measurements):
    cells = [c for c in measurements if not (c.adapter == "stochgrasp" and c.device == "rram")]
    summary = summary_markdown("Title", {}, cells, [])
    assert "| stochgrasp | – | – | – |" in summary
    assert "partial" in summary
