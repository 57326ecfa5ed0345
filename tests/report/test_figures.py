"""Figures of a comparison: panels, axes and lines, and the bytes of their files."""

from dataclasses import replace
from itertools import product

import pytest
from matplotlib import rc_context, rcParams
from matplotlib.figure import Figure

from analog_grasp.report.figures import (
    PALETTE,
    accuracy_vs_drift,
    line_style_of,
    line_styles,
    svg_text,
)
from analog_grasp.report.noise import accuracy_vs_noise, noise_level
from analog_grasp.report.tables import Comparison
from analog_grasp.study.records import Measurement

NOISE_LEVELS = ("gaussian:0.02", "gaussian:0.05")


@pytest.fixture
def axes(monkeypatch, tmp_path):
    """Draws a figure without rendering it, which takes long, and returns its panels."""
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))

    def draw(function, cells, adapters=(), **settings):
        function(Comparison(cells, adapters), tmp_path / "figure", **settings)
        return drawn[-1].axes

    return draw


def noisy(devices, placement="digital", adapters=("grasp", "stochgrasp")):
    return [
        Measurement("reviews", "accuracy", adapter, 0, placement, device, 0.0, repeat, repeat,
                    0.9 - (noise_level(device) or 0.0) - 0.01 * repeat)
        for device in devices for adapter in adapters for repeat in range(3)
    ]  # fmt: skip


def test_files_have_the_same_bytes_twice(tmp_path, measurements, records):
    comparison = Comparison(measurements, records)
    first, second = (accuracy_vs_drift(comparison, tmp_path / stem) for stem in ("a.b", "c"))
    assert [path.name for path in first] == ["a.b.png", "a.b.svg", "a.b.pdf"]
    starts = (b"\x89PNG", b"<?xml", b"%PDF")
    for one, other, start in zip(first, second, starts, strict=True):
        assert one.read_bytes().startswith(start)
        assert one.read_bytes() == other.read_bytes()
    # Every series can be found by its id, in the file for paper too.
    svg = first[1].read_text()
    assert [f'id="panel{panel}-series1"' in svg for panel in (1, 2, 3)] == [True, True, False]


@pytest.mark.parametrize("count", [1, 5])
def test_one_panel_per_device_with_one_scale(axes, make, count):
    names = [f"device-{index}" for index in range(count)]
    panels = axes(accuracy_vs_drift, make(devices=names)[0])
    assert [panel.get_title("left") for panel in panels] == names
    (limits,) = {panel.get_ylim() for panel in panels}
    lows = [min(bottom.vertices[:, 1]) for panel in panels for bottom in bands(panel)]
    assert limits[0] < min(lows)


def bands(panel):
    return [collection.get_paths()[0] for collection in panel.collections]


def test_no_axis_shows_more_than_all_sentences(axes, measurements):
    """Intervals of few chips exceed 100 %, where no accuracy is."""
    scores = {0: 1.0, 1: 0.98}
    high = [replace(m, value=scores[m.repeat]) for m in measurements if m.repeat in scores]
    panels = axes(accuracy_vs_drift, high)
    low, top = panels[0].get_ylim()
    assert low < 90 < 100 < top < 102
    assert bands(panels[0])[0].vertices[:, 1].max() == 100


def test_zero_seconds_is_left_of_the_first_time(axes, measurements):
    panel = axes(accuracy_vs_drift, measurements)[-1]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["0s", "20s", "1d"]
    ticks = list(panel.get_xticks())
    assert ticks == sorted(ticks)
    assert panel.get_xlim()[0] < ticks[0]


def test_labels_that_would_overlap_are_on_two_lines(axes, make):
    day = 86400.0
    times = [0.0, 20.0, 3600.0, day, 7 * day, 30 * day, 365 * day, 3650 * day]
    panel, *_ = axes(accuracy_vs_drift, make(devices=["pcm"], times=times)[0])
    labels = [label.get_text() for label in panel.get_xticklabels()]
    assert labels == ["0s", "20s", "1h", "1d", "7d", "\n30d", "1y", "10y"]


@pytest.mark.parametrize("time", [0.0, 3600.0])
def test_a_single_time_shows_the_adapters_side_by_side(axes, make, time):
    panel, *_ = axes(accuracy_vs_drift, make(times=[time])[0])
    places = [float(bars[0].get_xdata()[0]) for bars in panel.containers]
    assert len(set(places)) == 2
    left, right = panel.get_xlim()
    assert all(left < place < right for place in places)


def test_digital_scores_are_dashed_lines(axes, measurements, records):
    without = len(axes(accuracy_vs_drift, measurements)[0].lines)
    lines = axes(accuracy_vs_drift, measurements, adapters=records)[0].lines
    assert len(lines) == without + 2
    assert [line.get_ydata()[0] for line in lines].count(86.75) == 2


def test_each_metric_and_task_has_its_own_panels(axes, measurements):
    other = [replace(cell, task="glue/mrpc", metric="nist") for cell in measurements]
    panels = axes(accuracy_vs_drift, measurements + other)
    titles = [panel.get_title("left") for panel in panels]
    assert titles == ["pcm, reviews", "rram, reviews", "pcm, glue/mrpc", "rram, glue/mrpc"]
    assert [panel.get_ylabel() for panel in panels] == ["accuracy (%)", "", "nist", ""]


@pytest.mark.parametrize(("factor", "scale"), [(1.05, "linear"), (1e3, "log")])
def test_a_wide_range_of_perplexity_is_logarithmic(axes, measurements, factor, scale):
    cells = [
        replace(c, metric="perplexity", value=60 * c.value * (factor if c.time_s else 1))
        for c in measurements
    ]
    panels = axes(accuracy_vs_drift, cells)
    assert {panel.get_yscale() for panel in panels} == {scale}
    labels = [label.get_text() for label in panels[0].get_yticklabels(which="both")]
    assert all(label.replace(".", "").isdigit() for label in labels if label)
    low, high = panels[0].get_ylim()
    assert 0 < low < 60 * min(c.value for c in measurements)
    assert high > max(c.value for c in cells) * 0.9


def variants_of(adapters, treatments, placements=("digital",)):
    """Returns measurements of every adapter with every treatment at every placement."""
    return [
        Measurement("reviews", "accuracy", f"{adapter}{treatment}", 0, placement, "pcm", time,
                    0, 0, 0.8)
        for adapter, treatment, placement, time in
        product(adapters, treatments, placements, (0.0, 20.0))
    ]  # fmt: skip


TREATMENTS = ["", "+scheduled", "+recalibrated-64", "+recalibrated-256"]


@pytest.mark.parametrize(
    "cells",
    [
        variants_of(["grasp", "lora"], TREATMENTS),
        variants_of(["grasp", "lora", "stochgrasp"], TREATMENTS),
        variants_of(["grasp", "lora"], TREATMENTS, ["digital", "folded", "programmed"]),
        variants_of([f"adapter-{index}" for index in range(20)], TREATMENTS[:2]),
        variants_of(["grasp"], ["", *(f"+recalibrated-{2**power}" for power in range(12))]),
    ],
    ids=["8", "12", "24", "40", "13"],
)
def test_no_two_variants_look_alike(axes, cells):
    comparison = Comparison(cells)
    styles = line_styles(comparison)
    assert len({tuple(style.values()) for style in styles}) == len(comparison.variants)
    # As they are drawn, on the panel and in the legend.
    (panel,) = axes(accuracy_vs_drift, cells)
    (legend,) = panel.figure.legends
    for lines in (
        [line for line in panel.lines if line.get_gid()],
        legend.get_lines(),
    ):
        looks = {(line.get_color(), line.get_marker(), str(line._dash_pattern)) for line in lines}
        assert len(lines) == len(looks) == len(styles)


def test_an_adapter_has_one_colour_and_a_treatment_one_line_style():
    comparison = Comparison(variants_of(["grasp", "lora"], TREATMENTS))
    styles = dict(zip(comparison.labels, line_styles(comparison), strict=True))
    for treatment in TREATMENTS:
        grasp, lora = styles[f"grasp{treatment}"], styles[f"lora{treatment}"]
        assert (grasp["color"], lora["color"]) == PALETTE[:2]
        assert grasp | {"color": ""} == lora | {"color": ""}
    assert len({style["marker"] for style in styles.values()}) == 4


def test_untreated_adapters_are_solid_lines_with_a_marker_per_placement():
    cells = variants_of(["grasp", "stochgrasp"], [""], ["digital", "folded"])
    assert line_styles(Comparison(cells)) == [
        {"color": colour, "linestyle": line_style_of(0), "marker": marker}
        for colour, marker in product(PALETTE[:2], "os")
    ]


def test_a_legend_of_many_rows_leaves_the_panels_their_height(axes):
    one, many = (
        axes(accuracy_vs_drift, variants_of(["grasp", "lora"], treatments))[0].figure
        for treatments in ([""], TREATMENTS)
    )
    assert many.get_figheight() > one.get_figheight() + 1


def test_a_legend_of_long_names_is_not_cut(axes, make):
    cells, _ = make(adapters=["m" * 90, "W" * 60], devices=["pcm"])
    (panel,) = axes(accuracy_vs_drift, cells)
    figure = panel.figure
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert legend.get_window_extent().x0 >= 0
    assert legend.get_window_extent().x1 <= figure.bbox.width


def test_missing_scores_are_skipped(axes, measurements):
    cells = [c for c in measurements if c.adapter == "grasp" or c.time_s == 20]
    panel, *_ = axes(accuracy_vs_drift, cells)
    lines = {line.get_color(): line for line in panel.lines if line.get_marker() == "o"}
    assert [len(lines[colour].get_xdata()) for colour in PALETTE[:2]] == [3, 1]


def test_a_dollar_sign_in_a_name_starts_no_formula(tmp_path, make):
    cells, _ = make(adapters=["$\\nothing"], devices=["a$b"])
    assert len(accuracy_vs_drift(Comparison(cells), tmp_path / "a")) == 3


def test_noise_levels_are_in_ascending_order(axes, records):
    mixed = noisy(["gaussian:0.2", "pcm-hermes-2", "gaussian:0.02", "gaussian"])
    (panel,) = axes(accuracy_vs_noise, mixed, adapters=records)
    line = panel.lines[0]
    assert list(line.get_xdata()) == pytest.approx([2, 5, 20])
    assert list(line.get_ydata()) == pytest.approx([87, 84, 69])
    assert panel.get_title("left") == "noise on the frozen weights"
    (legend,) = panel.figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["grasp", "stochgrasp", "digital model"]
    assert [line.get_ydata()[0] for line in panel.lines[2:]] == [86.75, 86.75]


def test_each_placement_has_its_own_noise_panel(axes):
    cells = noisy(NOISE_LEVELS) + noisy(NOISE_LEVELS, "programmed")
    panels = axes(accuracy_vs_noise, cells)
    assert [panel.get_title("left") for panel in panels] == [
        "noise on the frozen weights",
        "noise on the frozen weights and adapter",
    ]
    colours = [[line.get_color() for line in panel.lines] for panel in panels]
    assert colours[0] == colours[1]
    (panel,) = axes(accuracy_vs_noise, noisy(NOISE_LEVELS, "programmed"), weights="digital")
    assert panel.get_title("left") == "noise on the adapter"


def test_a_partial_run_has_a_noise_figure(axes):
    cells = [c for c in noisy(NOISE_LEVELS) if c.device[-1] == "2" or c.adapter == "grasp"]
    (panel,) = axes(accuracy_vs_noise, cells)
    assert [len(line.get_xdata()) for line in panel.lines] == [2, 1]


def test_the_users_own_style_has_no_influence():
    plain, drawn = svg_text((2, 2), lambda panel: {})
    with rc_context({"axes.facecolor": "red", "svg.hashsalt": "mine"}):
        assert svg_text((2, 2), lambda panel: {}) == (plain, drawn)
        assert rcParams["svg.hashsalt"] == "mine"


def test_a_card_of_the_users_is_no_noise_level():
    assert [noise_level(name) for name in ("gaussian:mine", "gaussian-2", "pcm")] == [None] * 3
    assert noise_level("gaussian:2e-2") == pytest.approx(0.02)


def test_a_score_in_per_cent_that_is_called_a_fraction_is_drawn(axes, make):
    cells, _ = make(times=[0.0])
    high = [replace(cell, metric="bleu_100", value=100 * cell.value) for cell in cells]
    (panel, *_) = axes(accuracy_vs_drift, high)
    assert panel.get_ylim()[1] > 7000


def test_an_interval_near_zero_does_not_stretch_a_logarithmic_axis(axes, measurements):
    scores = {0: 60.0, 1: 900.0}
    few = [
        replace(m, metric="perplexity", value=scores[m.repeat] if m.time_s else 40 + m.repeat)
        for m in measurements
        if m.repeat in scores
    ]
    low, high = axes(accuracy_vs_drift, few)[0].get_ylim()
    assert 20 < low < 40
    assert high > 480


def test_a_logarithmic_axis_has_labels_between_powers_of_ten(axes, measurements):
    cells = [
        replace(m, metric="perplexity", value=(500.0 if m.time_s else 40.0) + m.repeat)
        for m in measurements
    ]
    first, inner = axes(accuracy_vs_drift, cells)
    first.figure.draw_without_rendering()
    assert shown_labels(first) == {"50", "100", "200", "500"}
    assert shown_labels(inner) == set()


def shown_labels(panel):
    low, high = panel.get_ylim()
    ticks = [*panel.yaxis.get_major_ticks(), *panel.yaxis.get_minor_ticks()]
    shown = [tick.label1 for tick in ticks if low <= tick.get_loc() <= high]
    return {label.get_text() for label in shown if label.get_visible()}


@pytest.mark.parametrize(("metric", "lowest"), [("f1", 0), ("matthews_correlation", -100)])
def test_an_interval_of_a_fraction_is_cut_at_its_lowest_value(axes, measurements, metric, lowest):
    scores = {0: 0.1, 1: 0.6}
    few = [
        replace(m, metric=metric, value=scores[m.repeat])
        for m in measurements
        if m.repeat in scores
    ]
    panel = axes(accuracy_vs_drift, few)[0]
    assert bands(panel)[0].vertices[:, 1].min() == lowest
    assert panel.get_ylim()[0] > lowest - 20
