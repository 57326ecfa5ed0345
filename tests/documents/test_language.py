"""Wording of code and documents: plain technical English, without the words listed here."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES = (
    "analog_grasp",
    "benchmarks",
    "device_models",
    "docs",
    "tests",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.md",
)
SUFFIXES = (".css", ".html", ".ipynb", ".js", ".md", ".py", ".toml")

# Word to avoid -> what to write instead.
AVOIDED = {
    r"told|tells?|telling": "warn, report, print",
    r"mend(s|ed|ing)?": "fix, suggestion",
    r"refus(e|es|ed|al|als|ing)": "raise, fail, reject",
    r"(held|holds?|holding) (\w+ )?against": "compare with",
    r"(go|goes|gone|going|went) on (with|where|from)": "resume",
    r"keep(s|ing)? (its|their|the) scores?": "retained accuracy",
    r"(given|gives?|giving) up": "trial pruned",
    r"pass(es|ed|ing)? over": "epochs; skip",
    r"(left|leaves?|leaving) (out|aside)": "skip, ignore, drop",
    r"says? so": "warn, report",
    r"says? the same of": "collapses to a constant prediction",
    r"need be": "requires, must",
    r"strangers?": "untrusted",
    r"claim(s|ed|ing)?": "lease",
    r"(is|are|was|were) (ahead|behind)|ahead of|level with": "better, worse, not different",
    r"devices? miss(es)?|miss(es)? (its|their)": "programming error",
    r"learned numbers?|numbers? (trained|learned)": "parameters",
    r"examples an? batch": "batch size",
    r"anew|whither|whence|for ever": "again, from the start",
    r"(bytes|cells|chips|devices|draw|figure|files|job|line|numbers|pairs|row|rows|tensor|tiles|value"
    r"|weights) an? (adapter|batch|card|cell|chip|column|device|file|group|layer|page|process"
    r"|step|tile|trial|weight|worker)": "per",
}
PATTERN = re.compile(rf"\b(?:{'|'.join(AVOIDED)})\b", re.IGNORECASE)
SECTION_NUMBER = re.compile(r"\bMETHOD\b")
BEGINNINGS = re.compile(r"(?:What|How|Whether)\b")

# Justified cases: the end of a path, and the phrase.
ALLOWED = {
    ("tests/documents/test_language.py", ""),
}


def files(place: str) -> Iterator[Path]:
    """Yield the files of a place that people read."""
    path = ROOT / place
    found = [path] if path.is_file() else sorted(path.rglob("*"))
    yield from (f for f in found if f.suffix in SUFFIXES and "__pycache__" not in f.parts)


def text_of(path: Path) -> str:
    """Return the text of a file; of a notebook its sources alone."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])


def offences(text: str, python: bool = False) -> Iterator[tuple[int, str]]:
    """Yield the line number and phrase of each avoided wording."""
    for number, line in enumerate(text.splitlines(), 1):
        # The words of an identifier are read as words.
        for pattern, words in ((PATTERN, line.replace("_", " ")), (SECTION_NUMBER, line)):
            yield from ((number, match[0]) for match in pattern.finditer(words))
    if python:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node) or ""
                if BEGINNINGS.match(docstring):
                    yield getattr(node, "lineno", 1), docstring.splitlines()[0]


def is_allowed(path: Path, phrase: str) -> bool:
    name = path.as_posix()
    return any(name.endswith(end) and part in phrase for end, part in ALLOWED)


@pytest.mark.parametrize("place", PLACES)
def test_wording(place):
    found = [
        f"{path.relative_to(ROOT)}:{number}: {phrase}"
        for path in files(place)
        for number, phrase in offences(text_of(path), path.suffix == ".py")
        if not is_allowed(path, phrase)
    ]
    assert found == [], f"{len(found)} phrases to reword (see AVOIDED)"


@pytest.mark.parametrize(
    "text",
    [
        "the user is told",
        "def test_a_wrong_card_is_refused(): ...",
        "two devices a weight",
        "see METHOD 3",
        "the trial was given up",
        '"""How it works."""',
    ],
)
def test_the_check_finds(text):
    assert list(offences(text, python=text.startswith('"""')))


@pytest.mark.parametrize("text", ["see docs/method.md", "a file per layer", "def method(): ..."])
def test_the_check_permits(text):
    assert list(offences(text)) == []
