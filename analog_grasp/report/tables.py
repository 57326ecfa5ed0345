"""Tables of text for the terminal, Markdown and HTML; scores and settings as text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from analog_grasp.study.statistics import PairedDifference, Summary, is_fraction

MISSING = "–"
MARKS = {"better": "▲", "worse": "▼"}
"""Marks of a significant difference, for readers who do not see the colour."""
_STYLES = {"better": "bold green", "worse": "bold red"}
# Scores from here on are shown with an exponent.
_LONG = 1e5


class TextTable(NamedTuple):
    """A table of text.

    Attributes:
        title: Its caption.
        columns: Headings, the first that of the labels.
        rows: A label and its entries; an entry with a mark of `MARKS` is emphasised.
        differences: Number of rows at the end that are differences of the rows above.
        is_prose: Align entries to the left.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    differences: int = 0
    is_prose: bool = False


def verdict(entry: str) -> str:
    """Return "better" or "worse" for an entry with a mark, else an empty text."""
    return next((name for name, mark in MARKS.items() if mark in entry), "")


def rich_table(table: TextTable) -> Table:
    """Return the table for a terminal."""
    drawn = Table(title=Text(table.title), title_justify="left")
    for place, column in enumerate(table.columns):
        is_left = table.is_prose or place == 0
        drawn.add_column(Text(column), justify="left" if is_left else "right")
    scores = len(table.rows) - table.differences
    for number, (label, *entries) in enumerate(table.rows, 1):
        texts = (Text(entry, style=_STYLES.get(verdict(entry), "")) for entry in entries)
        drawn.add_row(Text(label), *texts, end_section=number == scores and table.differences > 0)
    return drawn


def markdown_table(table: TextTable) -> str:
    """Return the table as Markdown, below its title.

    Example:
        >>> print(markdown_table(TextTable("A", ("adapter", "20s"), ())))
        **A**
        <BLANKLINE>
        | adapter | 20s |
        | :-- | --: |
    """
    side = ":--" if table.is_prose else "--:"
    rows = [[markdown_escape(column) for column in table.columns]]
    rows += [[":--", *(side for _ in table.columns[1:])]]
    rows += [
        [markdown_escape(label), *(_emphasised(entry) for entry in entries)]
        for label, *entries in table.rows
    ]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"**{markdown_escape(table.title)}**\n\n{lines}"


def _emphasised(entry: str) -> str:
    text = markdown_escape(entry)
    return f"**{text}**" if verdict(entry) else text


def markdown_bullets(sentences: Sequence[str]) -> str:
    """Return sentences as a Markdown list."""
    return "\n".join(f"- {markdown_escape(sentence)}" for sentence in sentences)


def markdown_escape(text: str) -> str:
    """Return text that Markdown renders literally, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def settings_text(settings: Mapping[str, object]) -> TextTable:
    """Return the settings as text; nested names are joined with a dot."""
    return TextTable("Settings", ("setting", "value"), _flat(settings), is_prose=True)


def _flat(settings: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            parts = value if isinstance(value, list | tuple) else [value]
            rows.append((f"{prefix}{name}", ", ".join(map(str, parts))))
    return rows


def metric_title(metric: str) -> str:
    """Return the metric with its unit."""
    return f"{metric}{' (%)' if is_fraction(metric) else ''}"


def percent(metric: str) -> str:
    """Return the unit that follows a score in a sentence."""
    return " %" if is_fraction(metric) else ""


def unit(metric: str) -> float:
    """Return the factor from a score to the value shown: 100 for a fraction."""
    return 100.0 if is_fraction(metric) else 1.0


def score_text(value: float | None, metric: str, sign: str = "") -> str:
    """Return a score as text, in per cent for a fraction; "+" as `sign` shows that of a difference.

    Example:
        >>> score_text(0.8125, "accuracy"), score_text(8.6094, "nist"), score_text(None, "nist")
        ('81.2', '8.609', '–')
        >>> score_text(1.23456e9, "perplexity")
        '1.235e+09'
    """
    if value is None:
        return MISSING
    places = 1 if is_fraction(metric) else 3
    # Adding zero turns the -0.0 of a rounded small negative number into 0.0.
    rounded = round(unit(metric) * value, places) + 0.0
    return f"{rounded:{sign}.{places}{'e' if abs(rounded) >= _LONG else 'f'}}"


def scores_line(where: str, scores: Mapping[str, float]) -> str:
    """Return every score of one measurement on one line, such as "digital: accuracy (%) 81.2"."""
    texts = (f"{metric_title(name)} {score_text(value, name)}" for name, value in scores.items())
    return f"{where}: {', '.join(texts)}"


def mean_text(mean: float | None, high: float | None, metric: str, sign: str = "") -> str:
    """Return a mean and half the width of its interval, if it has one.

    Example:
        >>> mean_text(0.8, 0.9, "accuracy"), mean_text(0.8, None, "accuracy", "+")
        ('80.0 ±10.0', '+80.0')
    """
    half = "" if mean is None or high is None else f" ±{score_text(high - mean, metric)}"
    return score_text(mean, metric, sign) + half


def interval_text(cell: Summary | PairedDifference | None, metric: str) -> str:
    """Return a mean and half the width of its interval; a difference has a sign."""
    if cell is None:
        return MISSING
    sign = "+" if isinstance(cell, PairedDifference) else ""
    return mean_text(cell.mean, cell.high, metric, sign)


def difference_mark(cell: PairedDifference | None) -> str:
    """Return the mark of a significant difference, with * after Holm's correction too."""
    if cell is None or cell.verdict not in MARKS:
        return ""
    return f" {MARKS[cell.verdict]}{'*' if cell.holds_corrected else ''}"
