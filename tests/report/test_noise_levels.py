"""The figure of score against noise level."""

import pytest

from analog_grasp.report import noise_levels
from analog_grasp.report.noise_levels import accuracy_vs_noise, noise_level
from analog_grasp.study.records import Measurement


def cells(devices, placement="digital", adapters=("grasp", "stochgrasp")):
    return [
        Measurement(
            "reviews",
            "accuracy",
            adapter,
            placement,
            device,
            0.0,
            repeat,
            repeat,
            0.9 - (noise_level(device) or 0.0) - 0.01 * repeat,
        )
        for device in devices
        for adapter in adapters
        for repeat in range(3)
    ]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, as they are before they are written."""
    figures = []

    def keep(draw, _):
        figures.append(draw())
        return []

    monkeypatch.setattr(noise_levels, "write_figure", keep)
    return figures


def test_levels_stand_in_their_order(drawn, records):
    mixed = cells(["gaussian:0.2", "pcm-hermes-2", "gaussian:0.02", "gaussian"])
    accuracy_vs_noise(mixed, "unused", adapters=records)
    (panel,) = drawn[0].axes
    line = panel.lines[0]
    assert list(line.get_xdata()) == pytest.approx([2, 5, 20])
    assert list(line.get_ydata()) == pytest.approx([87, 84, 69])
    assert panel.get_title() == "noise on the frozen weights"
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert labels == ["grasp", "stochgrasp", "digital model"]
    # The digital scores of both.
    assert [line.get_ydata()[0] for line in panel.lines[2:]] == [86.75, 86.75]


def test_placements_have_panels_of_their_own(drawn):
    devices = ["gaussian:0.02", "gaussian:0.05"]
    accuracy_vs_noise(cells(devices) + cells(devices, "programmed"), "unused")
    assert [panel.get_title() for panel in drawn[0].axes] == [
        "noise on the frozen weights",
        "noise on the frozen weights and adapter",
    ]
    colours = [[line.get_color() for line in panel.lines] for panel in drawn[0].axes]
    assert colours[0] == colours[1]


def test_an_unfinished_run_is_drawn_as_far_as_it_is(drawn):
    half = cells(["gaussian:0.02", "gaussian:0.05"])
    accuracy_vs_noise([c for c in half if c.device[-1] == "2" or c.adapter == "grasp"], "unused")
    assert [len(line.get_xdata()) for line in drawn[0].axes[0].lines] == [2, 1]


def test_one_level_is_no_figure(tmp_path):
    assert accuracy_vs_noise(cells(["gaussian", "gaussian:0.05", "ideal"]), tmp_path / "x") == []
    assert not list(tmp_path.iterdir())


def test_three_formats_are_written(tmp_path):
    paths = accuracy_vs_noise(cells(["gaussian:0.02", "gaussian:0.1"]), tmp_path / "figure")
    assert [path.suffix for path in paths] == [".png", ".svg", ".pdf"]
    assert all(path.stat().st_size for path in paths)
