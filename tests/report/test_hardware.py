"""Costs in a report: parts add up to the bars, the Pareto front, files, table and page."""

from dataclasses import replace
from itertools import combinations

import pytest
from matplotlib.figure import Figure

from analog_grasp.costs import CostModel, Costs, LayerWork, Work
from analog_grasp.costs.estimate import cost_rows, costs_csv, read_costs
from analog_grasp.report.hardware import accuracy_vs_energy, bars, cost_text, front, points
from analog_grasp.report.page import comparison_report, write_report
from analog_grasp.report.tables import MISSING, Comparison

DEVICES = {"pcm": "hermes-1phase", "rram": "neurram"}


def work(adapter_macs):
    layers = (LayerWork("dense", 300, 300, reads=10),)
    return Work(layers, sequence=10, adapter_macs=adapter_macs, attention_macs=1000)


@pytest.fixture
def rows():
    """Two adapters on two devices; NeuRRAM's digital energy is not stated."""
    return [
        row
        for adapter, macs in (("grasp", 3000), ("stochgrasp", 3000))
        for device, name in DEVICES.items()
        for row in cost_rows(Costs(CostModel.load(name), work(macs)), adapter, device)
    ]


def test_rows_survive_the_file(rows, tmp_path):
    file = tmp_path / "costs.csv"
    file.write_text(costs_csv(rows))
    assert read_costs(file) == rows
    assert read_costs(tmp_path / "none.csv") == []
    header = costs_csv([])
    for damaged in ("", "a,b\n1,2\n", f"{header}grasp,pcm\n", f"{header}a,b,c,tokens,,x,y,z\n"):
        file.write_text(damaged)
        with pytest.raises(ValueError, match="is damaged: remove it, or run the study again"):
            read_costs(file)


def test_a_bar_is_the_sum_of_the_parts_that_are_stated(rows):
    found = bars(rows)
    assert [(bar.adapter, bar.cost_model) for bar in found] == [
        (adapter, name) for adapter in ("grasp", "stochgrasp") for name in DEVICES.values()
    ]
    hermes, neurram, *_ = found
    whole = Costs(CostModel.load("hermes-1phase"), work(3000))
    assert hermes.energy == pytest.approx(whole.energy[1])
    assert hermes.label == "grasp, hermes-1phase"
    # Attention and adapter are missing, so that the bar is marked.
    assert neurram.parts["attention"] is None
    assert neurram.label.endswith(" *")
    assert "NVIDIA H100 SXM, int8 peak" in hermes.others


def test_rows_without_their_sum_raise(rows):
    cut = [row for row in rows if row.quantity != "energy, all parts"]
    with pytest.raises(ValueError, match=r"costs\.csv is damaged: it lacks .* grasp on hermes-1ph"):
        bars(cut)


def test_points_are_the_scores_at_the_last_time(rows, measurements, records):
    found = points(rows, Comparison(measurements, records))
    assert len(found) == 4
    assert {point.score.time_s for point in found} == {86400.0}
    last = [m.value for m in measurements if (m.adapter, m.device, m.time_s) ==
            ("grasp", "pcm", 86400.0)]  # fmt: skip
    assert found[0].score.mean == pytest.approx(sum(last) / len(last))
    assert found[0].place == 0


def test_no_point_of_the_front_is_dominated(rows, measurements, records):
    found = points(rows, Comparison(measurements, records))
    best = front(found)
    for point in found:
        assert any(b.energy <= point.energy and b.score.mean >= point.score.mean for b in best)
    # Where a lower value is better, the front is another one.
    lower = [p._replace(score=replace(p.score, metric="perplexity")) for p in found]
    assert front(lower)[-1].score.mean == min(point.score.mean for point in found)


def test_a_report_has_their_files_and_their_section(rows, measurements, records, tmp_path):
    given = {"question": "Title", "settings": {"seed": 0}}
    paths = write_report(tmp_path, **given, measurements=measurements, adapters=records, costs=rows)
    names = [path.name for path in paths]
    kinds = ("png", "svg", "pdf")
    assert names[-8:] == [
        *(f"energy_by_part.{kind}" for kind in kinds),
        *(f"accuracy_vs_energy.{kind}" for kind in kinds), "report.html", "costs.csv",
    ]  # fmt: skip
    assert read_costs(tmp_path / "costs.csv") == rows
    page = (tmp_path / "report.html").read_text()
    assert "Energy by part" in page
    assert "accuracy (%) at 1d against energy" in page
    assert "not stated" in page
    assert "grasp, hermes-1phase, tile reads: " in page
    summary = (tmp_path / "summary.md").read_text()
    for name in ("energy_by_part", "accuracy_vs_energy"):
        assert f"({name}.svg)" in summary
    assert "| energy, attention | " in summary
    comparison = Comparison(measurements, records)
    report = comparison_report("Title", {"seed": 0}, comparison)
    assert "Energy by part" not in report.page()
    assert "energy_by_part" not in report.summary()


def test_the_table_says_what_is_not_stated(rows):
    table = cost_text(rows)
    assert table.columns[1:3] == ("grasp, hermes-1phase", "grasp, neurram")
    (attention,) = (entries for label, *entries in table.rows if label == "energy, attention")
    assert attention[1] == "not stated"
    assert "nJ" in attention[0] or "pJ" in attention[0]


def test_the_table_has_one_row_of_adapter_multiply_adds():
    rows = [
        row
        for adapter in ("grasp", "lora")
        for row in cost_rows(
            Costs(CostModel.load("hermes-1phase"), replace(work(3000), adapter=adapter)),
            adapter, "pcm",
        )
    ]  # fmt: skip
    table = cost_text(rows)
    assert table.columns[0] == "quantity"
    found = [row for row in table.rows if row[0].startswith("adapter multiply-adds")]
    assert found == [("adapter multiply-adds", "3,000", "3,000")]


def test_a_quantity_of_other_hardware_is_missing_not_unstated(rows):
    # The tile reads of HERMES include the ADC, of which it has no row.
    (adc,) = (entries for label, *entries in cost_text(rows).rows if label == "energy, ADC")
    assert adc[0] == MISSING
    assert "nJ" in adc[1]


def test_no_labels_of_points_of_equal_energy_overlap(measurements, records, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    costs = Costs(CostModel.load("hermes-1phase"), work(3000))
    rows = [
        row
        for adapter in ("grasp", "stochgrasp")
        for device in DEVICES
        for row in cost_rows(costs, adapter, device)
    ]
    folded = [replace(m, placement="folded") for m in measurements]
    comparison = Comparison(measurements + folded, records)
    accuracy_vs_energy(comparison, points(rows, comparison), tmp_path / "figure")
    figure = drawn[-1]
    figure.draw_without_rendering()
    texts = [*figure.axes[0].texts, *(t for legend in figure.legends for t in legend.get_texts())]
    assert len(texts) == 8
    boxes = [text.get_window_extent() for text in texts]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    lines = [line for line in figure.axes[0].lines if line.get_gid()]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 8
