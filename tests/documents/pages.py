"""Runs what a page of the documents shows, and holds what it says comes out against what does.

The blocks of a page run in their order, in one folder:

    ```console               each line after "$ " is a command, what follows it is its output
    ```python                runs, in one namespace a page; a ```text block right below it is what
                             it prints
    ```toml title="x.toml"   any block with a title is written to the file of that name
    <!-- runs/x.png -->      the image below is a copy of this file

Blocks in other languages are for reading. Numbers may differ from those shown; "..." stands for any
lines or, at the end of one, for its rest. A command that shows no output may print anything.

    python tests/documents/pages.py docs/tutorials/drift.md ...

writes into the pages, or notebooks, what comes out now, and their images.
"""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from analog_grasp.cli import main as analog_grasp

BLOCK = re.compile(
    r'^```(?P<kind>\w+)(?: title="(?P<title>[\w./-]+)")?\n(?P<body>.*?)^```$'
    r"|^<!-- (?P<source>\S+) -->\n!\[[^\]]*\]\((?P<image>[^)]+)\)",
    re.DOTALL | re.MULTILINE,
)
WIDTH = "100"


@dataclass
class Page:
    """A page, as it is and as it should be.

    Attributes:
        path: Of the Markdown file.
        wrong: What of it does not come out as shown, in words.
        text: The page with what comes out now.
        images: Its images, each with the file that it is a copy of.
    """

    path: Path
    wrong: list[str] = field(default_factory=list)
    text: str = ""
    images: dict[Path, Path] = field(default_factory=dict)


def run(path: Path, folder: Path) -> Page:
    """Run a page in an empty folder.

    Raises:
        AssertionError: A command ends with another status than its output says.
        FileNotFoundError: There is no such file as an image is a copy of.
        Exception: What a block of Python raises.
    """
    page, names = Page(path), {"__name__": "__main__"}
    printed, end, text = "", 0, path.read_text(encoding="utf-8")
    with _inside(folder):
        for block in BLOCK.finditer(text):
            kind, body = block["kind"], block["body"]
            page.text += text[end : block.start()]
            follows, end = not text[end : block.start()].strip(), block.end()
            if block["title"]:
                Path(block["title"]).write_text(body, encoding="utf-8")
            elif kind == "console":
                body = _session(page, body)
            elif kind == "python":
                printed = _printed(lambda code=body: exec(compile(code, path, "exec"), names))
            elif kind == "text" and follows:
                body = "".join(f"{line}\n" for line in _held(page, "the code above", body, printed))
            elif block["image"]:
                page.images[path.parent / block["image"]] = Path(block["source"]).resolve(
                    strict=True
                )
            page.text += (
                block[0]
                if block["image"]
                else f"{text[block.start() : block.start('body')]}{body}```"
            )
    page.text += text[end:]
    return page


def commands(path: Path) -> list[list[str]]:
    """The words of every command of ours that a page runs or shows."""
    found = re.findall(r"^\$ (analog-grasp (?:\\\n|.)*)$", path.read_text(encoding="utf-8"), re.M)
    return [shlex.split(command.replace("\\\n", " "))[1:] for command in found]


def _session(page: Page, body: str) -> str:
    """The commands of a console block, each followed by what it should show."""
    shown = []
    for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
        command, output = re.fullmatch(r"((?:[^\n]*\\\n)*[^\n]*\n)(.*)", part, re.DOTALL).groups()
        real = _output(command.strip(), fails=output.startswith("error: "))
        lines = _held(page, command.strip(), output, real) if output else []
        shown.append("".join([f"$ {command}", *(f"{line}\n" for line in lines)]))
    return "".join(shown)


def _output(command: str, fails: bool) -> str:
    """What a command prints; our own is run in this process, which has imported it already."""
    words = shlex.split(command.replace("\\\n", " "))
    if words[0] == "analog-grasp" and not {"&", "|", ">", "wait"} & set(words):
        errors, status = io.StringIO(), []
        with contextlib.redirect_stderr(errors):
            output = _printed(lambda: status.append(analog_grasp(words[1:])))
        assert bool(status[0]) == fails, f"{command} ended with {status[0]}: {errors.getvalue()}"
        return errors.getvalue() if fails else output
    places = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euc", command], capture_output=True, text=True, env=os.environ | places
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}: {done.stderr}"
    return done.stdout


def _printed(action) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        action()
    return output.getvalue()


def _held(page: Page, what: str, shown: str, real: str) -> list[str]:
    """The lines to show: those shown, with the numbers of now; all where they do not fit."""
    lines = [line.rstrip() for line in real.strip("\n").splitlines()]
    fitting = _fitted(shown.splitlines(), lines)
    if fitting is None:
        page.wrong.append(f"{page.path.name} shows of {what}\n{shown}\nwhich gives\n{real}")
        return lines
    return fitting


def _fitted(shown: list[str], real: list[str]) -> list[str] | None:
    if not shown:
        return None if real else []
    if shown[0].strip() == "...":
        rests = (_fitted(shown[1:], real[skipped:]) for skipped in range(len(real) + 1))
        rest = next((rest for rest in rests if rest is not None), None)
        return None if rest is None else [shown[0], *rest]
    if not real or not _alike(shown[0], real[0]):
        return None
    rest = _fitted(shown[1:], real[1:])
    return None if rest is None else [shown[0] if shown[0].endswith("...") else real[0], *rest]


def _alike(shown: str, real: str) -> bool:
    if shown.endswith("..."):
        return _masked(real).startswith(_masked(shown[:-3]))
    return _masked(shown) == _masked(real)


def _masked(line: str) -> str:
    """A line without its numbers, and without what their widths and signs change."""
    line = re.sub(r"[-+−]?\d[\d,.]*(?:e[-+]?\d+)?", "#", line.replace("**", ""))
    return re.sub(r"([━─]){2,}", r"\1", re.sub(r"\s*[▲▼*]|\s+", " ", line)).replace(" ", "")


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """In a folder, with an output of one width wherever it goes."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = WIDTH
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before


def run_notebook(path: Path, folder: Path) -> nbformat.NotebookNode:
    """A notebook after it has run in an empty folder, without what it wrote to standard error."""
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, resources=where, record_timing=False).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [told for told in cell.outputs if told.get("name") != "stderr"]
    return notebook


def main() -> None:
    """Write the pages that are named anew."""
    for name in sys.argv[1:]:
        path = Path(name).resolve()
        with tempfile.TemporaryDirectory() as folder:
            if path.suffix == ".ipynb":
                nbformat.write(run_notebook(path, Path(folder)), path)
                continue
            page = run(path, Path(folder))
            for image, source in page.images.items():
                image.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, image)
        path.write_text(page.text, encoding="utf-8")
        print(f"{name}: {len(page.wrong)} outputs were others than shown")


if __name__ == "__main__":
    main()
