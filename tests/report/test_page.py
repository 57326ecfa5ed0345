"""The report as a whole: its files, and a page that is safe and needs no network."""

import base64
import re
from html.parser import HTMLParser

import pytest

from analog_grasp.report import write_report

HOSTILE = '<script>alert("1")</script>'


@pytest.fixture
def report(tmp_path, measurements, records):
    def write(cells=measurements, adapters=records, **columns):
        given = {"question": "Which one holds?", "settings": {"seed": 0}} | columns
        return write_report(tmp_path / "out", measurements=cells, adapters=adapters, **given)

    return write


class Links(HTMLParser):
    """Every tag, and where its attributes lead."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.targets = set(), []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.targets += [value for name, value in attributes if name in ("href", "src")]


def test_all_files_are_written(report):
    paths = report()
    assert [path.name for path in paths] == [
        "results.csv",
        "results.parquet",
        "summary.md",
        "accuracy_vs_drift.png",
        "accuracy_vs_drift.svg",
        "report.html",
    ]
    assert all(path.stat().st_size for path in paths)
    assert len(list(paths[0].parent.iterdir())) == len(paths)


def test_the_page_is_the_same_twice(report):
    first = report()[-1].read_bytes()
    assert report()[-1].read_bytes() == first


def test_names_are_escaped_everywhere(report, make):
    cells, adapters = make(adapters=[HOSTILE, "b"], devices=[HOSTILE])
    page = report(cells, adapters, question=HOSTILE, settings={HOSTILE: HOSTILE}, notes=[HOSTILE])[
        -1
    ].read_text()
    assert "script" not in Links(page).tags
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page


def test_the_page_asks_the_network_for_nothing(report):
    page = report()[-1].read_text()
    links = Links(page)
    assert len(links.targets) == 2
    assert all(target.startswith("data:") for target in links.targets)
    assert not links.tags & {"script", "link", "iframe"}
    assert not re.search(r"url\(|@import|https?://", page)


def test_the_page_holds_figure_and_data(report):
    csv_path, *_, svg_path, page_path = report()
    image, data = (
        base64.b64decode(target.partition("base64,")[2])
        for target in Links(page_path.read_text()).targets
    )
    assert image == svg_path.read_bytes()
    assert data == csv_path.read_bytes()


def test_the_page_is_for_light_and_dark_and_small_screens(report):
    page = report()[-1].read_text()
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page


def test_a_partial_run_is_reported_with_dashes(report, measurements):
    cells = [c for c in measurements if not (c.adapter == "stochgrasp" and c.device == "rram")]
    _, _, summary, *_, page = report(cells)
    assert "| stochgrasp | – | – | – |" in summary.read_text()
    assert "partial" in summary.read_text()
    assert "<td>–</td>" in page.read_text()


def test_one_measurement_and_no_record_suffice(report, measurements):
    assert len(report(measurements[:1], [])) == 6


def test_nothing_measured_is_refused(report):
    with pytest.raises(ValueError, match="nothing to report"):
        report([])
