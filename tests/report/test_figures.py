"""The figure is made for any comparison, and the same one twice gives the same bytes."""

from dataclasses import replace

import pytest
from matplotlib.figure import Figure

from analog_grasp.report import figures
from analog_grasp.report.curves import PALETTE
from analog_grasp.report.figures import accuracy_vs_drift


@pytest.fixture
def axes(monkeypatch):
    """The panels of the figure last drawn, which is not made into an image: that takes long."""
    made = []
    draw = figures._draw

    def remember(*arguments):
        made[:] = [draw(*arguments)]
        return made[0]

    monkeypatch.setattr(figures, "_draw", remember)
    monkeypatch.setattr(Figure, "savefig", lambda *arguments, **settings: None)
    return lambda: made[0].axes


def test_files_are_made_and_the_same_twice(tmp_path, measurements, records):
    first = accuracy_vs_drift(measurements, tmp_path / "a", adapters=records)
    second = accuracy_vs_drift(measurements, tmp_path / "b", adapters=records)
    assert [path.name for path in first] == ["a.png", "a.svg", "a.pdf"]
    starts = (b"\x89PNG", b"<?xml", b"%PDF")
    for one, other, start in zip(first, second, starts, strict=True):
        assert one.read_bytes().startswith(start)
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("count", [1, 5])
def test_one_panel_a_device(tmp_path, axes, make, count):
    names = [f"device-{index}" for index in range(count)]
    accuracy_vs_drift(make(devices=names)[0], tmp_path / "a")
    assert [panel.get_title("left") for panel in axes()] == names
    assert len({panel.get_ylim() for panel in axes()}) == 1


def test_zero_seconds_has_a_place_left_of_the_first_time(tmp_path, axes, measurements):
    accuracy_vs_drift(measurements, tmp_path / "a")
    panel = axes()[-1]
    labels = [label.get_text() for label in panel.get_xticklabels()]
    assert labels == ["0s", "20s", "1d"]
    ticks = panel.get_xticks()
    assert list(ticks) == sorted(ticks)
    assert panel.get_xlim()[0] < ticks[0]


def test_labels_that_would_touch_stand_on_two_lines(tmp_path, axes, make):
    day = 86400.0
    times = [0.0, 20.0, 3600.0, day, 7 * day, 30 * day, 365 * day, 3650 * day]
    accuracy_vs_drift(make(devices=["pcm"], times=times)[0], tmp_path / "a")
    labels = [label.get_text() for label in axes()[0].get_xticklabels()]
    assert labels == ["0s", "20s", "1h", "1d", "7d", "\n30d", "1y", "10y"]


@pytest.mark.parametrize("time", [0.0, 3600.0])
def test_a_single_time_shows_the_adapters_side_by_side(tmp_path, axes, make, time):
    accuracy_vs_drift(make(times=[time])[0], tmp_path / "a")
    places = [float(bars[0].get_xdata()[0]) for bars in axes()[0].containers]
    assert len(set(places)) == 2


def test_references_are_drawn(tmp_path, axes, measurements, records):
    plain = accuracy_vs_drift(measurements, tmp_path / "a") and len(axes()[0].lines)
    chance = {("reviews", "accuracy"): 0.5}
    accuracy_vs_drift(measurements, tmp_path / "a", adapters=records, chance=chance)
    lines = axes()[0].lines
    assert len(lines) == plain + 3
    heights = [line.get_ydata()[0] for line in lines]
    assert heights.count(86.75) == 2
    assert 50.0 in heights


def test_several_metrics_and_tasks_have_panels_of_their_own(tmp_path, axes, measurements):
    other = [replace(cell, task="glue/mrpc", metric="nist") for cell in measurements]
    accuracy_vs_drift(measurements + other, tmp_path / "a")
    titles = [panel.get_title("left") for panel in axes()]
    assert titles == ["pcm, reviews", "rram, reviews", "pcm, glue/mrpc", "rram, glue/mrpc"]
    assert [panel.get_ylabel() for panel in axes()] == ["accuracy (%)", "", "nist", ""]


def test_missing_cells_are_left_out(tmp_path, axes, measurements):
    cells = [c for c in measurements if c.adapter == "grasp" or c.time_s == 20]
    accuracy_vs_drift(cells, tmp_path / "a")
    lines = {line.get_color(): line for line in axes()[0].lines if line.get_marker() == "o"}
    assert [len(lines[colour].get_xdata()) for colour in PALETTE[:2]] == [3, 1]


def test_names_are_no_formulas(tmp_path, make):
    assert accuracy_vs_drift(make(adapters=["$\\nothing"], devices=["a$b"])[0], tmp_path / "a")


def test_no_measurement_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no measurement to draw"):
        accuracy_vs_drift([], tmp_path / "a")
