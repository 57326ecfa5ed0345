"""The page in a real browser: it opens, asks for nothing, and its switches do what they say."""

import base64
import shutil
from itertools import product

import pytest

from analog_grasp.report.page import page_html
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
DESK, PHONE = {"width": 1180, "height": 900}, {"width": 360, "height": 740}
LONG = "pcm-" + "of-a-name-without-end" * 8
# What shows of the figures: whether the renderers of a token are drawn.
DRAWN = """token => Bokeh.documents.flatMap(page => [...page.all_models])
    .filter(model => model.tags.includes(token)).map(model => model.visible)"""

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A page of two adapters at two placements on two devices."""
    adapters, placements, devices = ("grasp", "stochgrasp"), ("digital", "folded"), ("pcm", LONG)
    times = (0.0, 3600.0, 86400.0)
    cells = [
        Measurement("reviews", "accuracy", *where, repeat, repeat, 0.7 + repeat / 20)
        for *where, repeat in product(adapters, placements, devices, times, range(2))
    ]
    records = [
        AdapterRecord(name, "reviews", 1152, 770, {"accuracy": 0.85}, 12.5, name, "f")
        for name in adapters
    ]
    layers = [
        LayerRecord(device, 0, time, f"layer.{index}", 1, 100, 0.5, 0.03)
        for device, time, index in product(devices, times, range(3))
    ]
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page_html("Which one holds?", {"seed": 0}, cells, records, layers=layers))
    return path


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, path):
    """Opens the page; at the end, it must have said no ill and asked for nothing."""
    pages, said, asked = [], [], []

    def open_page(**options):
        page = browser.new_page(**{"viewport": DESK} | options)
        page.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else 0)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]", state="attached")
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert said == []
    assert set(asked) == {path.as_uri()}


def background(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def axis_colours(page):
    return page.evaluate("""() => Bokeh.documents.flatMap(page => [...page.all_models])
        .filter(model => model.type === "LinearAxis").map(axis => axis.major_label_text_color)""")


def test_every_figure_is_drawn(opened):
    page = opened()
    drawn = page.locator(".chart", has=page.locator("canvas"))
    assert page.locator(".chart").count() == drawn.count() == 4


def test_an_adapter_is_switched_by_mouse(opened):
    page = opened()
    box, row = page.locator("input[value=a1]"), page.locator("tr[data-of='a1 p0']").first
    assert set(page.evaluate(DRAWN, "a1")) == {True}
    box.click()
    assert set(page.evaluate(DRAWN, "a1")) == {False}
    assert True in page.evaluate(DRAWN, "a0")
    assert not row.is_visible()
    box.click()
    assert set(page.evaluate(DRAWN, "a1")) == {True}
    assert row.is_visible()


def test_all_switches_are_reached_and_used_by_keyboard(opened):
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
    # One device is back; without an adapter, its figures stand empty.
    assert page.locator(".charts figure:visible").count() == 3


def test_a_device_takes_its_figures_and_tables_along(opened):
    page = opened()
    page.locator("input[value=d0]").uncheck()
    shown = page.locator("caption:visible, figcaption:visible").all_inner_texts()
    assert "pcm, reviews" not in shown
    assert shown.count(f"{LONG}, reviews") == 2
    # Both devices use their tiles alike, in one figure; the other one is still there.
    assert any(text.startswith("Tile use") for text in shown)


def test_a_placement_is_switched_whatever_the_adapter(opened):
    page = opened()
    page.locator("input[value=p1]").uncheck()
    assert not page.locator("tr[data-of='a0 p1']").first.is_visible()
    assert page.locator("tr[data-of='a0 p0']").first.is_visible()
    assert False not in page.evaluate(DRAWN, "p0")


def test_the_data_are_downloaded(opened, path):
    page = opened()
    link = page.locator("a[download]")
    with page.expect_download() as download:
        link.click()
    assert download.value.suggested_filename == "results.csv"
    inside = base64.b64decode(link.get_attribute("href").partition("base64,")[2])
    assert inside.decode().count("\n") == 49


def test_dark_follows_the_reader_and_the_switch(opened):
    dark, light = opened(color_scheme="dark"), opened(color_scheme="light")
    assert background(dark) != background(light)
    assert axis_colours(dark) != axis_colours(light)
    switch = light.get_by_role("button", name="Dark")
    assert switch.get_attribute("aria-pressed") == "false"
    switch.click()
    assert switch.get_attribute("aria-pressed") == "true"
    assert background(light) == background(dark)
    assert axis_colours(light) == axis_colours(dark)


def test_a_phone_shows_it_without_scrolling_sideways(opened):
    page = opened(viewport=PHONE, is_mobile=True, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    assert page.locator(".chart canvas").first.bounding_box()["width"] <= PHONE["width"]
    page.locator("input[value=d1]").tap()
    assert not page.locator("input[value=d1]").is_checked()
