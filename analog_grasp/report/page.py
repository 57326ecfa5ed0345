"""The page of a comparison: one HTML file that holds everything and opens anywhere, offline."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from analog_grasp.experiments.export import csv_text
from analog_grasp.experiments.records import AdapterRecord, Measurement
from analog_grasp.report.summary import METHOD, findings, settings_text
from analog_grasp.report.tables import (
    LEGEND,
    TextCell,
    TextTable,
    adapter_text,
    comparison_tables,
    device_text,
)

STYLE = Path(__file__).with_name("page.css")


def page_html(
    question: str,
    settings: Mapping[str, object],
    measurements: Sequence[Measurement],
    adapters: Sequence[AdapterRecord],
    figure_svg: bytes,
    notes: Sequence[str] = (),
) -> str:
    """The text of report.html.

    Every name and setting is escaped; figure and data are inside the page, which asks the
    network for nothing and runs no script.

    Args:
        question: what the run was to answer.
        settings: names and values, as they were given or resolved.
        measurements: those of a whole or a partial run, at least one.
        adapters: the trained adapters; the first is the baseline.
        figure_svg: the figure.
        notes: further sentences for the reader.
    """
    finding, *more = [*findings(measurements, adapters), *notes]
    tables = [device_text(table) for table in comparison_tables(measurements, adapters)]
    data = _data_uri("text/csv", csv_text(measurements).encode())
    parts = [
        f"<h1>{escape(question)}</h1>",
        f'<p class="finding">{escape(finding)}</p>',
        _list(more),
        "<h2>Score against time since programming</h2>",
        '<div class="wide"><img alt="Score against time since programming, one panel a device;'
        f' the tables below hold the same figures" src="{_data_uri("image/svg+xml", figure_svg)}">'
        "</div>",
        f"<p>{escape(_CAPTION)}</p>",
        "<h2>Scores and paired differences</h2>",
        f"<p>{escape(LEGEND)}</p>",
        *map(html_table, tables),
        html_table(adapter_text(adapters)) if adapters else "",
        html_table(settings_text(settings)),
        "<h2>How the numbers were computed</h2>",
        _list(METHOD),
        f'<p><a download="results.csv" href="{data}">Download the {len(measurements):,}'
        " measurements (CSV)</a></p>",
    ]
    return _FRAME.format(
        title=escape(question), style=STYLE.read_text(encoding="utf-8"), body="\n".join(parts)
    )


def html_table(table: TextTable) -> str:
    """The table as HTML, with its title as the caption.

    Example:
        >>> html_table(TextTable("<A>", ("adapter",), ())).split("</caption>")[0]
        '<div class="wide"><table class="figures"><caption>&lt;A&gt;'
    """
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    rows = "".join(
        f"<tr{_class('difference' if row.is_difference else '')}>"
        f'<th scope="row">{escape(row.label)}</th>{"".join(map(_cell, row.cells))}</tr>\n'
        for row in table.rows
    )
    return (
        f'<div class="wide"><table{_class("words" if table.of_words else "figures")}>'
        f"<caption>{escape(table.title)}</caption>"
        f"<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>"
    )


def _cell(cell: TextCell) -> str:
    return f"<td{_class(cell.verdict)}>{escape(cell.text)}</td>"


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _list(sentences: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f"<ul>{items}</ul>" if items else ""


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


_CAPTION = (
    "Lines: mean over chip instances; bands: its 95 % interval; dashed lines: the digital model,"
    " before deployment."
)

_FRAME = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
