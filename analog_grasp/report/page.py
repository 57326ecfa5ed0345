"""The page of a comparison: one HTML file that holds everything and opens anywhere, offline."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from analog_grasp.report.charts import Chart, charts_html, charts_script
from analog_grasp.report.chips import CHIPS_LEGEND, chip_summaries, chip_text
from analog_grasp.report.layer_charts import layer_charts
from analog_grasp.report.score_charts import drift_charts, noise_charts
from analog_grasp.report.summary import METHOD, findings, settings_text
from analog_grasp.report.switches import Switches
from analog_grasp.report.tables import (
    LEGEND,
    TextCell,
    TextTable,
    adapter_text,
    comparison_tables,
    device_text,
    ordered_variants,
)
from analog_grasp.study.export import csv_text
from analog_grasp.study.records import AdapterRecord, LayerRecord, Measurement

# Of the data in the page, in bytes; with more, it would be slow to open.
_MOST_DATA = 2_000_000


def page_html(
    question: str,
    settings: Mapping[str, object],
    measurements: Sequence[Measurement],
    adapters: Sequence[AdapterRecord],
    notes: Sequence[str] = (),
    *,
    layers: Sequence[LayerRecord] = (),
    chance: Mapping[tuple[str, str], float] | None = None,
) -> str:
    """The text of report.html, at most 5 MB.

    Every name and setting is escaped; figures, their script and the data are inside the page,
    which asks the network for nothing and is not allowed to.

    Args:
        question: what the run was to answer.
        settings: names and values, as they were given or resolved.
        measurements: those of a whole or a partial run, at least one.
        adapters: the trained adapters; the first is the baseline.
        notes: further sentences for the reader.
        layers: what each layer takes of the chips, where it is known.
        chance: score of guessing by task and metric.
    """
    finding, *more = [*findings(measurements, adapters), *notes]
    tables = comparison_tables(measurements, adapters)
    measured = ordered_variants(measurements, adapters)
    switches = Switches(measured, (table.device for table in tables))
    rows = [switches.variant(variant) for variant in (*measured, *measured[1:])]
    drift = drift_charts(tables, measured, adapters, switches, chance or {})
    noise = noise_charts(tables, measured, switches, str(settings.get("weights", "analog")))
    chips = chip_summaries(layers)
    tiles = layer_charts(chips, switches) if chips else []
    body = [
        heading(question),
        f'<p class="finding">{escape(finding)}</p>',
        bullets(more),
        switches.html(),
        section("Score against time since programming", drift, _CAPTION),
        section("Score against noise level", noise, _NOISE_CAPTION),
        "<h2>Scores and paired differences</h2>",
        f"<p>{escape(LEGEND)}</p>",
        *(
            html_table(device_text(table), switches.devices([table.device]), rows)
            for table in tables
        ),
        section("The chips", tiles, CHIPS_LEGEND),
        html_table(chip_text(chips)) if chips else "",
        html_table(adapter_text(adapters)) if adapters else "",
        html_table(settings_text(settings)),
        "<h2>How the numbers were computed</h2>",
        bullets(METHOD),
        _download(measurements),
    ]
    return document(question, body, [*drift, *noise, *tiles])


def document(title: str, body: Sequence[str], charts: Sequence[Chart]) -> str:
    """A whole page.

    Args:
        title: Of the window, not yet escaped.
        body: The parts as HTML, with the places of the charts.
        charts: In the order of their places.
    """
    style, script = (
        Path(__file__).with_name(name).read_text(encoding="utf-8")
        for name in ("page.css", "page.js")
    )
    return _FRAME.format(
        title=escape(title),
        style=style,
        body="\n".join(filter(None, body)),
        charts=charts_script(charts),
        script=script,
    )


def heading(title: str) -> str:
    """The title, beside the switch for light and dark."""
    return (
        f"<header><h1>{escape(title)}</h1>"
        '<button type="button" id="theme" aria-pressed="false">Dark</button></header>\n'
        "<noscript><p>The figures and switches need Javascript; the tables hold the same"
        " numbers.</p></noscript>"
    )


def section(title: str, charts: Sequence[Chart], caption: str) -> str:
    """Charts under a title; nothing where there are none."""
    if not charts:
        return ""
    return f"<h2>{escape(title)}</h2>\n{charts_html(charts)}\n<p>{escape(caption)}</p>"


def html_table(table: TextTable, tokens: str = "", rows: Sequence[str] = ()) -> str:
    """The table as HTML, with its title as the caption.

    Args:
        table: The table.
        tokens: Of what it shows; see `Switches`.
        rows: The tokens of each row, where rows can be hidden.

    Example:
        >>> html_table(TextTable("<A>", ("adapter",), ()), "d0").split("</caption>")[0]
        '<div class="wide" data-of="d0"><table class="figures"><caption>&lt;A&gt;'
    """
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    shown = rows or [""] * len(table.rows)
    body = "".join(
        f"<tr{_attribute('class', 'difference' if row.is_difference else '')}"
        f"{_attribute('data-of', of)}>"
        f'<th scope="row">{escape(row.label)}</th>{"".join(map(_cell, row.cells))}</tr>\n'
        for row, of in zip(table.rows, shown, strict=True)
    )
    return (
        f'<div class="wide"{_attribute("data-of", tokens)}>'
        f'<table class="{"words" if table.of_words else "figures"}">'
        f"<caption>{escape(table.title)}</caption>"
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def bullets(sentences: Sequence[str]) -> str:
    """Sentences as a list; nothing where there are none."""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f"<ul>{items}</ul>" if items else ""


def download(name: str, content: str, text: str) -> str:
    """A link to a CSV file that is inside the page, or beside it where it is large."""
    data = content.encode()
    inside = f"data:text/csv;base64,{base64.b64encode(data).decode()}"
    target = inside if len(data) <= _MOST_DATA else name
    return f'<p><a download="{name}" href="{target}">{escape(text)}</a></p>'


def _download(measurements: Sequence[Measurement]) -> str:
    text = f"Download the {len(measurements):,} measurements (CSV)"
    return download("results.csv", csv_text(measurements), text)


def _cell(cell: TextCell) -> str:
    return f"<td{_attribute('class', cell.verdict)}>{escape(cell.text)}</td>"


def _attribute(name: str, value: str) -> str:
    return f' {name}="{value}"' if value else ""


_CAPTION = (
    "Lines: mean over chip instances; bands: its 95 % interval; dashed lines: the digital model,"
    " before deployment. The time axis is logarithmic, with 0 s put to its left."
)
_NOISE_CAPTION = (
    "Lines: mean over chip instances; bands: its 95 % interval. These devices do not drift: the"
    " scores are those of the first time."
)

_FRAME = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data: blob:; \
style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
{charts}
<script>
{script}</script>
</body>
</html>
"""
