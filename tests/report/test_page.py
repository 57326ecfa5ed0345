"""The report of a run: its files, and a page that is safe and needs no network."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from analog_grasp.report import html
from analog_grasp.report.page import comparison_report, write_report
from analog_grasp.report.tables import Comparison

HOSTILE = "</script></svg></style><script>alert(\"1\")</script><img src=x onerror='a'>"


class Page(HTMLParser):
    """Every element with its attributes, and the text outside script and style."""

    def __init__(self, text):
        super().__init__()
        self.source, self.elements, self.text = text, [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, text):
        if self.elements and self.elements[-1][0] not in ("script", "style"):
            self.text += text

    def values(self, attribute):
        return [own[attribute] for _, own in self.elements if attribute in own]

    def count(self, tag):
        return sum(name == tag for name, _ in self.elements)


@pytest.fixture
def report(tmp_path, measurements, records):
    def write(cells=measurements, adapters=records, **columns):
        given = {"question": "Title", "settings": {"seed": 0}} | columns
        return write_report(tmp_path / "out", measurements=cells, adapters=adapters, **given)

    return write


@pytest.fixture
def page_of(measurements, records):
    """Builds the page alone: the figures for paper take long."""

    def build(cells=measurements, adapters=records, question="Title", settings=None, layers=()):
        settings = {"seed": 0} if settings is None else settings
        report = comparison_report(question, settings, Comparison(cells, adapters), layers)
        return Page(report.page())

    return build


def test_all_files_are_written(report, make):
    cells, adapters = make(devices=["gaussian:0.05", "gaussian:0.02"])
    paths = report(cells, adapters)
    assert [path.name for path in paths] == [
        "results.csv", "results.parquet", "summary.md",
        *(f"accuracy_vs_drift.{kind}" for kind in ("png", "svg", "pdf")),
        *(f"accuracy_vs_noise.{kind}" for kind in ("png", "svg", "pdf")), "report.html",
    ]  # fmt: skip
    assert all(path.stat().st_size for path in paths)
    assert len(list(paths[0].parent.iterdir())) == len(paths)
    # The page has the data.
    (target,) = Page(paths[-1].read_text()).values("href")[-1:]
    assert base64.b64decode(target.partition("base64,")[2]) == paths[0].read_bytes()


def test_one_measurement_and_no_record_suffice(report, measurements):
    assert len(report(measurements[:1], [])) == 7
    with pytest.raises(ValueError, match="no measurements yet"):
        report([])


def test_the_page_is_small_and_the_same_twice(page_of, layers):
    first = page_of(layers=layers).source
    assert page_of(layers=layers).source == first
    assert len(first) < 300_000


def test_names_are_escaped_everywhere(page_of, make, layers):
    cells, adapters = make(adapters=[HOSTILE, "b"], devices=[HOSTILE, "c"])
    changed = [layers[0].__class__(**vars(layers[0]) | {"layer": HOSTILE, "device": HOSTILE})]
    hostile = page_of(cells, adapters, HOSTILE, {HOSTILE: HOSTILE}, changed)
    plain = page_of(layers=layers[:1])
    assert HOSTILE not in hostile.source
    assert hostile.count("script") == plain.count("script") == 1
    assert hostile.count("img") == 0
    assert not any(name.startswith("on") for _, own in hostile.elements for name in own)
    assert hostile.text.count(HOSTILE) > 10
    # In the labels of the points too, unchanged.
    labels = hostile.values("aria-label")
    assert any(label.startswith(f"{HOSTILE}, 20s: ") for label in labels)
    assert any(label.startswith(f"{HOSTILE}: 50.0% of 2 tiles") for label in labels)


def test_control_characters_in_names_do_not_break_the_figures(page_of, make):
    cells, adapters = make(adapters=["a\x01b"], devices=["c\x0b\ufffe"])
    assert page_of(cells, adapters).count("figure") == 1


def test_the_page_requests_nothing_from_the_network(page_of, layers):
    page = page_of(layers=layers)
    targets = page.values("href") + page.values("src") + page.values("xlink:href")
    assert {target[:1] for target in targets} == {"#", "d"}
    assert [target[:5] for target in targets if target[0] == "d"] == ["data:"]
    assert not {tag for tag, _ in page.elements} & {"link", "iframe", "img", "object", "image"}
    policy = next(own["content"] for _, own in page.elements if own.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    assert set(re.findall(r"url\((.)", page.source)) == {"#"}
    assert "@import" not in page.source


def test_ids_are_unique_and_references_resolve(page_of, layers):
    page = page_of(layers=layers)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:href="|url\()#([^")]+)', page.source)
    assert used
    assert set(used) <= set(ids)


def test_large_data_are_linked(page_of, monkeypatch):
    monkeypatch.setattr(html, "_EMBEDDED_BYTES", 100)
    assert page_of().values("href")[-1] == "results.csv"


def test_the_page_begins_with_result_figure_and_table(page_of):
    page = page_of()
    order = ['class="finding"', "<h2>Score against time", "<svg viewBox", "<caption>accuracy (%)"]
    places = [page.source.index(part) for part in order]
    assert places == sorted(places)


def test_every_score_has_a_labelled_point(page_of, measurements):
    page = page_of([c for c in measurements if c.adapter == "grasp" or c.time_s == 20])
    labels = [own["aria-label"] for tag, own in page.elements if tag == "use" and "class" in own]
    # Three times of one adapter and one of the other, on two devices.
    assert len(labels) == 8
    assert all(re.fullmatch(r"\w+, (0s|20s|1d): 7\d\.\d ±\d\.\d %, 4 chips", e) for e in labels)
    assert sum(label.startswith("stochgrasp, 20s") for label in labels) == 2
    assert page.values("aria-label").count("grasp, digital model: 86.8 %") == 2


def test_figures_and_switches_have_tokens(page_of, layers):
    page = page_of(layers=layers)
    assert sum(own.get("class") == "chart" for _, own in page.elements) == 4
    boxes = [own["value"] for tag, own in page.elements if tag == "input"]
    # A single placement has no switch.
    assert boxes == ["a0", "a1", "d0", "d1"]
    rows = [own["data-of"] for tag, own in page.elements if tag == "tr" and "data-of" in own]
    # One table of both devices, then a table for each with a row of differences.
    assert rows[:4] == ["a0 p0 d0", "a1 p0 d0", "a0 p0 d1", "a1 p0 d1"]
    assert rows[4:] == ["a0 p0", "a1 p0", "a1 p0"] * 2
    series = [own["data-of"] for tag, own in page.elements if own.get("class") == "series"]
    assert series.count("a0 p0") == series.count("a1 p0") == 2
    bands = [own.get("data-of") for _, own in page.elements if "-band" in own.get("id", "")]
    assert bands == ["a0 p0", "a1 p0"] * 2


def test_switches_show_how_each_variant_is_drawn(page_of, make):
    def swatches(adapters, placements=("digital",)):
        cells = [replace(c, placement=p) for p in placements for c in make(adapters=adapters)[0]]
        form = page_of(cells).source.partition('<form class="switches"')[2].partition("</form>")[0]
        labels = re.findall(r"<label>.*?</label>", form)
        return [re.sub(r"<input[^>]*>|<span>.*?</span>", "", label) for label in labels]

    treated = swatches([f"{a}{t}" for t in ("", "+scheduled", "+recalibrated-64")
                        for a in ("grasp", "lora")])  # fmt: skip
    assert len(set(treated[:6])) == 6
    assert all("stroke-dasharray" in each for each in treated[:6])
    untreated = swatches(["grasp", "lora"])
    assert not any("stroke-dasharray" in each for each in untreated)
    # The lines are of the treatments, and every marker is of one placement.
    *lines, digital, folded = swatches(["grasp", "grasp+scheduled"], ["digital", "folded"])[:4]
    assert len(set(lines)) == 2
    assert [each.count("<svg") for each in (*lines, digital, folded)] == [1, 1, 2, 2]
    assert not set(re.findall("<svg.*?</svg>", digital)) & set(re.findall("<svg.*?</svg>", folded))


def test_figures_use_the_colours_of_the_page(page_of, layers):
    svgs = "".join(re.findall(r"<svg viewBox.*?</svg>", page_of(layers=layers).source, re.DOTALL))
    assert "var(--series-0)" in svgs
    assert not re.search(r"#[0-9a-f]{6}\b(?!\d)", re.sub(r'"[^"]*#[pm][0-9a-f]+[^"]*"', "", svgs))


def test_gaussian_devices_have_a_figure_of_noise_levels(page_of, make):
    page = page_of(*make(devices=["gaussian:0.05", "gaussian:0.02", "pcm"]))
    assert "Score against noise level" in page.text
    assert any("2 % noise: " in label for label in page.values("aria-label"))
    page = page_of(*make(devices=["gaussian:0.05", "pcm"]))
    assert "Score against noise level" not in page.text
