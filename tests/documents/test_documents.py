"""The documents: what they show runs and gives what they say, and the site is whole."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import typer

from analog_grasp.cli.main import COMMANDS, app

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
# Those that train or deploy the built-in model.
SLOW = {
    "tutorials/deployment.md",
    "how-to/results.md",
    "how-to/task.md",
    "scaling.md",
}
# Those that train it several times.
LONG = {"tutorials/drift.md", "tutorials/tuning.md"}
LARGEST_IMAGE = 150_000

pages = runpy.run_path(str(Path(__file__).with_name("pages.py")))


def named(path: Path) -> str:
    return path.relative_to(DOCS).as_posix()


def runs(path: Path) -> bool:
    return any(f"```{kind}\n" in path.read_text(encoding="utf-8") for kind in ("console", "python"))


def marked(path: Path):
    slow = [pytest.mark.slow] if named(path) in SLOW | LONG else []
    long = [pytest.mark.long] if named(path) in LONG else []
    return pytest.param(path, id=named(path), marks=slow + long)


@pytest.mark.parametrize("path", [marked(path) for path in PAGES if runs(path)])
def test_a_page_shows_what_comes_out(path, tmp_path):
    assert pages["run"](path, tmp_path).wrong == []


@pytest.mark.parametrize("path", [pytest.param(path, id=named(path)) for path in PAGES])
def test_every_option_that_a_page_shows_exists(path):
    group = typer.main.get_command(app)
    for name, *arguments in filter(None, pages["commands"](path)):
        assert name in COMMANDS
        with group.make_context("analog-grasp", [name], resilient_parsing=True) as context:
            _, command, _ = group.resolve_command(context, [name])
            known = {
                option for each in command.params for option in (*each.opts, *each.secondary_opts)
            }
            asked = {word for word in arguments if word.startswith("--")}
            assert asked <= known | {"--help"}


def test_the_page_of_the_command_line_has_every_command():
    sections = re.findall(
        r"^## (\w+)$", (DOCS / "command-line.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert sections == list(COMMANDS)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    path = DOCS / "tutorials" / "deployment.ipynb"
    before, after = nbformat.read(path, as_version=4), pages["run_notebook"](path, tmp_path)
    for shown, real in zip(before.cells, after.cells, strict=True):
        assert kinds(shown) == kinds(real)


def kinds(cell) -> list[str]:
    """What a cell puts out: text, a table, a figure."""
    return [output["output_type"] for output in cell.get("outputs", [])]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.mark.slow
def test_the_site_holds_the_reference(site):
    reference = (site / "reference" / "crossbar.html").read_text(encoding="utf-8")
    assert 'id="analog_grasp.crossbar.deployment.deploy"' in reference
    assert "METHOD 3][" not in reference


@pytest.mark.slow
def test_the_site_is_read_without_a_network(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|img|link)[^>]+(?:src|href)=\"?(https?:[^\" >]+)",
            page.read_text(encoding="utf-8"),
        )
        assert loaded == [], page


def test_images_are_small():
    images = list((DOCS / "images" / "tutorials").glob("*.png"))
    assert images
    assert all(image.stat().st_size < LARGEST_IMAGE for image in images)
