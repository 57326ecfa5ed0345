"""Execution of the documents: commands and Python run, and their output is compared.

The blocks of a page run in order, in one folder:

    ```console               lines after "$ " are commands, followed by their expected output
    ```python                runs in one namespace per page; a ```text block directly below it is
                             its expected output
    ```toml title="x.toml"   a block with a title is written to the file of that name
    <!-- runs/x.png -->      the image below is a copy of this file

Blocks in other languages are not executed. Numbers are ignored in the comparison; "..." matches
any lines or, at the end of a line, its rest. Without expected output, the output is ignored.

    python tests/documents/pages.py docs/tutorials/drift.md ...

updates the outputs and images of pages or notebooks. docs/command-line.md is generated as a whole.
"""

import contextlib
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
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
    """A page after execution.

    Attributes:
        path: The Markdown file.
        differences: Outputs that differ from those shown, as messages.
        text: The page with the present outputs.
        images: Files of the page's images, with the files that they are copies of.
    """

    path: Path
    differences: list[str] = field(default_factory=list)
    text: str = ""
    images: dict[Path, Path] = field(default_factory=dict)


def run(path: Path, folder: Path) -> Page:
    """Run a page in an empty folder.

    Raises:
        AssertionError: A command ends with another status than its expected output states.
        FileNotFoundError: The source of an image is missing.
        Exception: Raised by a Python block.
    """
    page, names = Page(path), {"__name__": "__main__"}
    printed, end, text = "", 0, path.read_text(encoding="utf-8")
    with _inside(folder):
        for block in BLOCK.finditer(text):
            kind, body = block["kind"], block["body"]
            page.text += text[end : block.start()]
            adjacent, end = not text[end : block.start()].strip(), block.end()
            if block["title"]:
                file = Path(block["title"])
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(body, encoding="utf-8")
            elif kind == "console":
                body = _session(page, body)
            elif kind == "python":
                printed = _printed(lambda code=body: exec(compile(code, path, "exec"), names))
            elif kind == "text" and adjacent:
                lines = _compared(page, "the code above", body, printed)
                body = "".join(f"{line}\n" for line in lines)
            elif block["image"]:
                source = Path(block["source"]).resolve(strict=True)
                page.images[path.parent / block["image"]] = source
            before = text[block.start() : block.start("body")]
            page.text += block[0] if block["image"] else f"{before}{body}```"
    page.text += text[end:]
    return page


def commands(path: Path) -> list[list[str]]:
    """Return the arguments of every analog-grasp command in the code blocks of a page."""
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:bash|console)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    found = re.findall(r"^(?:\$ )?(analog-grasp (?:\\\n|.)*)$", "\n".join(blocks), re.MULTILINE)
    return [shlex.split(command.replace("\\\n", " "), comments=True)[1:] for command in found]


def _session(page: Page, body: str) -> str:
    """Run the commands of a console block; return the block with the present outputs."""
    shown = []
    for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
        command, expected = re.fullmatch(r"((?:[^\n]*\\\n)*[^\n]*\n)(.*)", part, re.DOTALL).groups()
        real = _output(command.strip(), fails=expected.startswith("error: "))
        lines = _compared(page, command.strip(), expected, real) if expected else []
        shown.append("".join([f"$ {command}", *(f"{line}\n" for line in lines)]))
    return "".join(shown)


def _output(command: str, fails: bool) -> str:
    """Return the output of a command; analog-grasp runs in this process, to import torch once."""
    words = shlex.split(command.replace("\\\n", " "))
    if words[0] == "analog-grasp" and not {"&", "|", ">", "wait"} & set(words):
        errors, status = io.StringIO(), []
        with contextlib.redirect_stderr(errors):
            output = _printed(lambda: status.append(analog_grasp(words[1:])))
        assert bool(status[0]) == fails, f"{command} ended with {status[0]}: {errors.getvalue()}"
        return errors.getvalue() if fails else output
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euc", command], capture_output=True, text=True, env=os.environ | path
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}: {done.stderr}"
    return done.stdout


def _printed(action: Callable[[], object]) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        action()
    return output.getvalue()


def _compared(page: Page, source: str, expected: str, real: str) -> list[str]:
    """Return the lines to show: the expected ones with present numbers, or all if they differ."""
    lines = [line.rstrip() for line in real.strip("\n").splitlines()]
    matched = _matched(expected.splitlines(), lines)
    if matched is None:
        page.differences.append(
            f"{page.path.name}, output of {source}\nexpected:\n{expected}\nreal:\n{real}"
        )
        return lines
    return matched


def _matched(expected: list[str], real: list[str]) -> list[str] | None:
    if not expected:
        return None if real else []
    if expected[0].strip() == "...":
        rests = (_matched(expected[1:], real[skipped:]) for skipped in range(len(real) + 1))
        rest = next((rest for rest in rests if rest is not None), None)
        return None if rest is None else [expected[0], *rest]
    if not real or not _equal(expected[0], real[0]):
        return None
    rest = _matched(expected[1:], real[1:])
    line = expected[0] if expected[0].endswith("...") else real[0]
    return None if rest is None else [line, *rest]


def _equal(expected: str, real: str) -> bool:
    if expected.endswith("..."):
        return _masked(real).startswith(_masked(expected[:-3]))
    return _masked(expected) == _masked(real)


def _masked(line: str) -> str:
    """Return a line without numbers, signs of significance and widths, which may differ."""
    line = re.sub(r"[-+−]?\d[\d,.]*(?:e[-+]?\d+)?", "#", line.replace("**", ""))
    return re.sub(r"([━─]){2,}", r"\1", re.sub(r"\s*[▲▼*]|\s+", " ", line)).replace(" ", "")


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Change to a folder, with a fixed width of the terminal."""
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
    """Return a notebook executed in an empty folder, without its standard error."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, resources=resources, record_timing=False).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def main() -> None:
    """Update the pages given as arguments."""
    for name in sys.argv[1:]:
        path = Path(name).resolve()
        with tempfile.TemporaryDirectory() as folder:
            if path.name == "command-line.md":
                script = runpy.run_path(str(Path(__file__).with_name("command_line.py")))
                path.write_text(script["page"](), encoding="utf-8")
                continue
            if path.suffix == ".ipynb":
                nbformat.write(run_notebook(path, Path(folder)), path)
                continue
            page = run(path, Path(folder))
            for image, source in page.images.items():
                image.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, image)
        path.write_text(page.text, encoding="utf-8")
        print(f"{name}: {len(page.differences)} outputs differed")


if __name__ == "__main__":
    main()
