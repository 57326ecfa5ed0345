"""The documents: examples run and give the output shown, links resolve, the site builds."""

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
# Pages that train or deploy the built-in model.
SLOW = {
    "tutorials/deployment.md",
    "tutorials/recalibration.md",
    "how-to/results.md",
    "how-to/task.md",
    "scaling.md",
}
# Pages that train it several times.
LONG = {"tutorials/drift.md", "tutorials/tuning.md"}
LARGEST_IMAGE = 150_000

pages = runpy.run_path(str(Path(__file__).with_name("pages.py")))


def page_name(path: Path) -> str:
    return path.relative_to(DOCS).as_posix()


def is_executable(path: Path) -> bool:
    return any(f"```{kind}\n" in path.read_text(encoding="utf-8") for kind in ("console", "python"))


def marked(path: Path):
    slow = [pytest.mark.slow] if page_name(path) in SLOW | LONG else []
    long = [pytest.mark.long] if page_name(path) in LONG else []
    return pytest.param(path, id=page_name(path), marks=slow + long)


@pytest.mark.parametrize("path", [marked(path) for path in PAGES if is_executable(path)])
def test_outputs_are_as_shown(path, tmp_path):
    assert pages["run"](path, tmp_path).differences == []


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.name) for path in (ROOT / "README.md", *PAGES)],
)
def test_options_exist(path):
    group = typer.main.get_command(app)
    for name, *arguments in filter(None, pages["commands"](path)):
        if not name.islower():
            continue  # A placeholder, as in "analog-grasp COMMAND --help".
        assert name in COMMANDS
        with group.make_context("analog-grasp", [name], resilient_parsing=True) as context:
            _, command, _ = group.resolve_command(context, [name])
            known = {
                option for each in command.params for option in (*each.opts, *each.secondary_opts)
            }
            options = {word for word in arguments if word.startswith("--")}
            assert options <= known | {"--help"}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150


def test_command_line_page_is_generated_from_the_commands():
    generated = runpy.run_path(str(Path(__file__).with_name("command_line.py")))["page"]()
    assert (DOCS / "command-line.md").read_text(encoding="utf-8") == generated


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.relative_to(ROOT).as_posix())
        for path in (*ROOT.glob("*.md"), *PAGES)
    ],
)
def test_links_resolve(path):
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    links = re.findall(r"\]\(([^)#\s]+)(?:#([\w-]+))?\)", text)
    for target, anchor in links:
        if target.startswith(("http://", "https://")):
            continue
        file = path.parent / target
        assert file.is_file(), target
        if anchor:
            assert anchor in anchors(file), f"{target}#{anchor}"


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    found = set()
    for title in re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
        slug = re.sub(r"[^\w\s-]", "", title).strip().lower()
        found.add(re.sub(r"[\s-]+", "-", slug))
    return found


@pytest.mark.slow
def test_notebook_runs(tmp_path):
    path = DOCS / "tutorials" / "deployment.ipynb"
    before, after = nbformat.read(path, as_version=4), pages["run_notebook"](path, tmp_path)
    for shown, real in zip(before.cells, after.cells, strict=True):
        assert output_types(shown) == output_types(real)


def output_types(cell) -> list[str]:
    """Return the types of a cell's outputs: text, a table, a figure."""
    return [output["output_type"] for output in cell.get("outputs", [])]


@pytest.fixture(scope="module")
def site() -> Path:
    folder = ROOT / "site"
    command = [Path(sys.executable).with_name("zensical"), "build", "--strict"]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.mark.slow
def test_site_contains_the_reference(site):
    reference = (site / "reference" / "crossbar.html").read_text(encoding="utf-8")
    assert 'id="analog_grasp.crossbar.api.deploy"' in reference
    assert "docs/method.md" not in reference


@pytest.mark.slow
def test_site_loads_nothing_from_other_servers(site):
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
