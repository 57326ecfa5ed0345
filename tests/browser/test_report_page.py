"""The page in a browser: it opens, requests nothing, and its switches and labels work."""

import base64
import shutil
from itertools import product

import pytest

from analog_grasp.report.page import comparison_report
from analog_grasp.report.tables import Comparison
from analog_grasp.study.records import AdapterRecord, LayerRecord, Measurement

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP, PHONE = {"width": 1180, "height": 900}, {"width": 360, "height": 740}
LONG = "pcm-" + "with-a-very-long-name" * 8

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A page of two adapters at two placements on two devices."""
    adapters, placements, devices = ("grasp", "stochgrasp"), ("digital", "folded"), ("pcm", LONG)
    times = (0.0, 3600.0, 86400.0)
    offsets = {"grasp": 0.0, "stochgrasp": 0.02, "digital": 0.0, "folded": 0.05}
    cells = [
        Measurement("reviews", "accuracy", adapter, 0, placement, device, time, repeat, repeat,
                    0.7 + repeat / 100 + offsets[adapter] + offsets[placement])
        for adapter, placement, device, time, repeat in
        product(adapters, placements, devices, times, range(2))
    ]  # fmt: skip
    records = [
        AdapterRecord(name, "reviews", 1152, 770, {"accuracy": 0.85}, 12.5, name, "f")
        for name in adapters
    ]
    layers = [
        LayerRecord(device, 0, time, f"layer.{index}", 1, 100, 0.5, 0.03)
        for device, time, index in product(devices, times, range(3))
    ]
    path = tmp_path_factory.mktemp("page") / "report.html"
    report = comparison_report("Title", {"seed": 0}, Comparison(cells, records), layers)
    path.write_text(report.page())
    return path


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, path):
    """Opens the page; in the end it must have logged no error and requested nothing else."""
    pages, logged, requested = [], [], []

    def open_page(**options):
        page = browser.new_page(**{"viewport": DESKTOP} | options)
        page.on("console", lambda m: logged.append(m.text) if m.type in ("error", "warning") else 0)
        page.on("pageerror", lambda error: logged.append(str(error)))
        page.on("request", lambda request: requested.append(request.url))
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert logged == []
    assert set(requested) == {path.as_uri()}


def background(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def contrasts(page):
    """Returns the contrast with the page of every drawn colour: text, axes and series."""
    return page.evaluate("""() => {
        const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
        const light = (colour) => parts(colour).slice(0, 3).map((c) => c / 255)
            .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
            .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
        const paper = light(getComputedStyle(document.body).backgroundColor);
        const contrast = (colour) => {
            const [low, high] = [paper, light(colour)].sort((a, b) => a - b);
            return (high + 0.05) / (low + 0.05);
        };
        const style = (selector, name) => [...document.querySelectorAll(selector)]
            .map((element) => getComputedStyle(element)[name]).filter((c) => c.startsWith("rgb"));
        return {
            text: style(".chart text", "fill").map(contrast),
            series: style(".series > path:first-of-type", "stroke").map(contrast),
            bars: style(".series.point > path:first-of-type", "fill").map(contrast),
            ticks: style("[id*=xtick] use", "stroke").map(contrast),
        };
    }""")


def shown(page, tokens):
    """Returns for the series with these tokens whether each is drawn."""
    series = page.locator(f".series[data-of='{tokens}']")
    return [series.nth(index).is_visible() for index in range(series.count())]


def test_every_figure_is_drawn(opened):
    page = opened()
    drawn = [box.bounding_box() for box in page.locator(".chart svg").all()]
    assert len(drawn) == 4
    assert all(box["width"] > 400 and box["height"] > 200 for box in drawn)


def test_a_switch_hides_series_bands_and_rows_of_an_adapter(opened):
    page = opened()
    box, row = page.locator("input[value=a1]"), page.locator("tr[data-of='a1 p0']").first
    everything = page.locator("[data-of~=a1]")
    assert shown(page, "a1 p0") == [True, True]
    box.click()
    assert shown(page, "a1 p0") == [False, False]
    assert shown(page, "a0 p0") == [True, True]
    assert not row.is_visible()
    assert not any(part.is_visible() for part in everything.all())
    box.click()
    assert shown(page, "a1 p0") == [True, True]
    assert row.is_visible()


def test_all_switches_are_reached_by_keyboard(opened):
    page = opened()
    reached = []
    for _ in range(7):
        page.keyboard.press("Tab")
        focused = "document.activeElement.id || document.activeElement.value"
        reached.append(page.evaluate(focused))
        page.keyboard.press("Space")
    assert reached == ["theme", "a0", "a1", "p0", "p1", "d0", "d1"]
    assert page.locator("html").get_attribute("data-theme") == "dark"
    assert page.locator("input:checked").count() == 0
    assert page.locator(".charts figure:visible").count() == 0
    page.keyboard.press("Space")
    # One device is back; without an adapter its figures are empty.
    assert page.locator(".charts figure:visible").count() == 3


def test_arrow_keys_label_the_visible_points(opened):
    page = opened()
    label = page.locator("#label")
    page.locator("input[value=a0]").uncheck()
    page.locator(".chart").first.focus()
    assert not label.is_visible()
    labels = []
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft"):
        page.keyboard.press(key)
        labels.append(label.inner_text())
    interval = "±6.4 %, 2 chips"
    assert labels == [
        f"stochgrasp (digital), 0s: 72.5 {interval}",
        f"stochgrasp (digital), 1h: 72.5 {interval}",
        f"stochgrasp (folded), 0s: 77.5 {interval}",
        f"stochgrasp (digital), 1d: 72.5 {interval}",
    ]
    page.keyboard.press("Escape")
    assert not label.is_visible()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")
    assert not label.is_visible()


def test_the_pointer_labels_points_lines_and_bars(opened):
    page = opened()
    label = page.locator("#label")

    def label_at(locator, right=0.5):
        locator.scroll_into_view_if_needed()
        box = locator.bounding_box()
        page.mouse.move(box["x"] + right * box["width"], box["y"] + box["height"] / 2)
        return label.inner_text()

    point = page.locator(".series[data-of='a1 p1'] .point").nth(1)
    assert label_at(point).startswith("stochgrasp (folded), 1h: 77.5")
    # The other series are pale meanwhile.
    opacity = "element => getComputedStyle(element).opacity"
    page.wait_for_timeout(200)
    assert page.locator(".series[data-of='a1 p1']").first.evaluate(opacity) == "1"
    assert float(page.locator(".series[data-of='a0 p0']").first.evaluate(opacity)) < 0.5
    line = page.locator("[aria-label^='stochgrasp, digital model']").first
    assert label_at(line, right=0.3) == "stochgrasp, digital model: 85.0 %"
    bar = page.locator("[aria-label^='layer.1']").first
    assert label_at(bar) == "layer.1: 50.0% of 1 tile, 100 weights"
    page.mouse.move(2, 2)
    assert not label.is_visible()


def test_a_device_is_hidden_with_its_figures_and_tables(opened):
    page = opened()
    page.locator("input[value=d0]").uncheck()
    titles = page.locator("caption:visible, figcaption:visible").all_inner_texts()
    assert "pcm, reviews" not in titles
    assert "pcm" not in titles
    assert titles.count(f"{LONG}, reviews") == titles.count(LONG) == 1
    # Both devices use the same tiles, in one figure; the other device is still shown.
    assert any(title.startswith("Utilisation of the tiles") for title in titles)


def test_a_placement_is_hidden_for_every_adapter(opened):
    page = opened()
    page.locator("input[value=p1]").uncheck()
    assert not page.locator("tr[data-of='a0 p1']").first.is_visible()
    assert page.locator("tr[data-of='a0 p0']").first.is_visible()
    assert shown(page, "a0 p1") + shown(page, "a1 p1") == [False] * 4
    assert shown(page, "a0 p0") + shown(page, "a1 p0") == [True] * 4


def test_the_data_are_downloaded(opened):
    page = opened()
    link = page.locator("a[download]")
    with page.expect_download() as download:
        link.click()
    assert download.value.suggested_filename == "results.csv"
    content = base64.b64decode(link.get_attribute("href").partition("base64,")[2])
    assert content.decode().count("\n") == 49


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_are_readable_in_both_colour_schemes(opened, scheme):
    found = contrasts(opened(color_scheme=scheme))
    assert min(map(len, found.values())) >= 3
    assert min(found["text"]) > 7
    assert min(found["series"] + found["bars"] + found["ticks"]) > 3


def test_the_colour_scheme_follows_the_system_and_the_button(opened):
    dark, light = opened(color_scheme="dark"), opened(color_scheme="light")
    assert background(dark) != background(light)
    button = light.get_by_role("button", name="Dark")
    assert button.get_attribute("aria-pressed") == "false"
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert background(light) == background(dark)
    assert contrasts(light) == contrasts(dark)


def test_a_phone_needs_no_sideways_scrolling(opened):
    page = opened(viewport=PHONE, is_mobile=True, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    assert page.locator(".chart svg").first.bounding_box()["width"] <= PHONE["width"]
    page.locator(".series .point").first.tap()
    assert page.locator("#label").is_visible()
    page.locator("input[value=d1]").tap()
    assert not page.locator("input[value=d1]").is_checked()
