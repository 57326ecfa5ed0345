"""The report as a whole: its files, and a page that is safe and needs no network."""

import base64
import json
import re
from html.parser import HTMLParser

import pytest

from analog_grasp.report import page, write_report
from analog_grasp.report.summary import summary_markdown

HOSTILE = '</script><script>alert("1")</script>'


@pytest.fixture
def report(tmp_path, measurements, records):
    def write(cells=measurements, adapters=records, **columns):
        given = {"question": "Which one holds?", "settings": {"seed": 0}} | columns
        return write_report(tmp_path / "out", measurements=cells, adapters=adapters, **given)

    return write


@pytest.fixture
def page_of(tmp_path, measurements, records):
    """The page alone, without the figures for paper: they take long to be drawn."""

    def make(cells=measurements, adapters=records, notes=(), **columns):
        given = {"question": "Which one holds?", "settings": {"seed": 0}} | columns
        path = tmp_path / "page.html"
        text = page.page_html(measurements=cells, adapters=adapters, notes=notes, **given)
        path.write_text(text)
        return path

    return make


class Page(HTMLParser):
    """Every tag with its attributes, the text of all elements, and that of the data."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.text, self.data = [], "", ""
        self._within = {}
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        self._within = dict(attributes)
        self.elements.append((tag, self._within))

    def handle_data(self, text):
        if self._within.get("id") == "charts":
            self.data += text
        elif self.elements and self.elements[-1][0] not in ("script", "style"):
            self.text += text

    def handle_endtag(self, tag):
        self._within = {}

    @property
    def targets(self):
        return [a[name] for _, a in self.elements for name in ("href", "src") if name in a]

    def count(self, tag):
        return sum(name == tag for name, _ in self.elements)


def test_all_files_are_written(report):
    paths = report()
    assert [path.name for path in paths] == [
        "results.csv",
        "results.parquet",
        "summary.md",
        "accuracy_vs_drift.png",
        "accuracy_vs_drift.svg",
        "accuracy_vs_drift.pdf",
        "report.html",
    ]
    assert all(path.stat().st_size for path in paths)
    assert len(list(paths[0].parent.iterdir())) == len(paths)


def test_the_page_is_the_same_twice(page_of, layers):
    first = page_of(layers=layers).read_bytes()
    assert page_of(layers=layers).read_bytes() == first
    assert len(first) < 5_000_000


def test_names_are_escaped_everywhere(page_of, make):
    cells, adapters = make(adapters=[HOSTILE, "b"], devices=[HOSTILE, "c"])
    settings = {HOSTILE: HOSTILE}
    path = page_of(cells, adapters, [HOSTILE], question=HOSTILE, settings=settings)
    text, hostile, plain = path.read_text(), Page(path), Page(page_of())
    assert hostile.count("script") == plain.count("script")
    assert HOSTILE not in text
    assert hostile.text.count(HOSTILE) > 10
    # In the data of the figures too, and whole.
    assert HOSTILE in str(json.loads(hostile.data))


def test_the_page_asks_the_network_for_nothing(page_of):
    found = Page(page_of())
    assert [target[:5] for target in found.targets] == ["data:"]
    assert not {tag for tag, _ in found.elements} & {"link", "iframe", "img", "object"}
    policy = next(a["content"] for _, a in found.elements if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    assert not re.search(
        r"url\(|@import", page.Path(page.__file__).with_name("page.css").read_text()
    )


def test_the_page_holds_the_data(report):
    csv_path, *_, page_path = report()
    (target,) = Page(page_path).targets
    assert base64.b64decode(target.partition("base64,")[2]) == csv_path.read_bytes()


def test_large_data_lie_beside_the_page(page_of, monkeypatch):
    monkeypatch.setattr(page, "_MOST_DATA", 100)
    assert Page(page_of()).targets == ["results.csv"]


def test_a_figure_a_device_and_switches_for_all(page_of, layers):
    found = Page(page_of(layers=layers))
    charts = json.loads(found.data)
    assert len(charts) == sum(a.get("class") == "chart" for _, a in found.elements) == 4
    boxes = [a["value"] for tag, a in found.elements if tag == "input"]
    # Measured at one placement, for which there is nothing to switch.
    assert boxes == ["a0", "a1", "d0", "d1"]
    rows = {a["data-of"] for tag, a in found.elements if tag == "tr" and "data-of" in a}
    assert rows == {"a0 p0", "a1 p0"}


def test_gaussian_devices_are_drawn_against_their_noise(page_of, make):
    cells, adapters = make(devices=["gaussian:0.05", "gaussian:0.02", "pcm"])
    found = Page(page_of(cells, adapters))
    assert len(json.loads(found.data)) == 4
    assert "Score against noise level" in found.text
    cells, adapters = make(devices=["gaussian:0.05", "pcm"])
    assert "Score against noise level" not in Page(page_of(cells, adapters)).text


def test_a_partial_run_is_reported_with_dashes(page_of, measurements):
    cells = [c for c in measurements if not (c.adapter == "stochgrasp" and c.device == "rram")]
    summary = summary_markdown("Which?", {}, cells, [])
    assert "| stochgrasp | – | – | – |" in summary
    assert "partial" in summary
    assert "<td>–</td>" in page_of(cells).read_text()


def test_tiles_and_weight_error_are_shown_where_they_are_known(page_of, layers, measurements):
    summary = summary_markdown("Which?", {}, measurements, [], layers=layers)
    # Errors of 3 % on 100 weights and of 5 % on 300: the root of (9 + 3 x 25) / 4.
    row = ["pcm", "5", "400", "50.0%", "4.58%", "9.17%"]
    assert f"| {' | '.join(row)} |" in summary
    assert "".join(row) in Page(page_of(layers=layers)).text
    assert "Tiles and weight error" not in Page(page_of()).text


def test_one_measurement_and_no_record_suffice(report, measurements):
    assert len(report(measurements[:1], [])) == 7


def test_nothing_measured_is_refused(report):
    with pytest.raises(ValueError, match="nothing to report"):
        report([])
