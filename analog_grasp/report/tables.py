"""The comparison as tables: built once as data, then as text for every kind of page.

:func:`comparison_tables` holds the numbers, :func:`device_text` and :func:`adapter_text` turn
them into a :class:`TextTable`, and a :class:`TextTable` is drawn by :func:`rich_table`,
:func:`markdown_table` or the HTML page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from analog_grasp.study.records import AdapterRecord, Measurement
from analog_grasp.study.statistics import (
    PairedDifference,
    Summary,
    Variant,
    holm_corrected,
    is_fraction,
    paired_differences,
    summarise,
    variants,
)
from analog_grasp.utils.time import format_time

MISSING = "–"
# Marks a difference whose interval excludes zero, beside the colour that not all can see.
MARKS = {"ahead": " ▲", "behind": " ▼"}
# Follows the mark where the difference also holds after the correction for their number.
CORRECTED_MARK = "*"
LEGEND = (
    "Mean ± 95 % interval over chip instances; differences are paired by chip instance,"
    " ▲ ahead and ▼ behind where their interval excludes zero, * where the difference also holds"
    " after Holm's correction over all differences of the metric."
)


@dataclass(frozen=True)
class ScoreRow:
    """One variant's scores: a cell for each drift time, None where nothing was measured."""

    label: str
    cells: tuple[Summary | None, ...]


@dataclass(frozen=True)
class DifferenceRow:
    """One variant's paired differences against the first variant."""

    adapter: str
    baseline: str
    cells: tuple[PairedDifference | None, ...]


@dataclass(frozen=True)
class DeviceTable:
    """One task's metric on one device, over drift times.

    Attributes:
        task, metric, device: as in the measurements.
        times: drift times in seconds, ascending; the same in all tables of a comparison.
        scores: one row a variant.
        differences: one row for every variant but the first.
    """

    task: str
    metric: str
    device: str
    times: tuple[float, ...]
    scores: tuple[ScoreRow, ...]
    differences: tuple[DifferenceRow, ...]


@dataclass(frozen=True)
class TextCell:
    """What is shown in one cell; the verdict is that of a difference, else empty."""

    text: str
    verdict: str = ""


@dataclass(frozen=True)
class TextRow:
    """One row; ``is_difference`` sets it apart from the scores."""

    label: str
    cells: tuple[TextCell, ...]
    is_difference: bool = False


@dataclass(frozen=True)
class TextTable:
    """A table of text: ``columns`` has a name for the labels and one for each cell of a row.

    Cells stand to the right, as figures do, unless the table is of words.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[TextRow, ...]
    of_words: bool = False


def ordered_variants(
    measurements: Sequence[Measurement], adapters: Sequence[AdapterRecord] = ()
) -> list[Variant]:
    """The measured variants in the order of the adapters' records; the first is the baseline."""
    ranks = {name: rank for rank, name in enumerate(dict.fromkeys(r.adapter for r in adapters))}
    return sorted(
        variants(measurements), key=lambda variant: ranks.get(variant.adapter, len(ranks))
    )


def variant_labels(measured: Sequence[Variant]) -> dict[Variant, str]:
    """What each variant is called: the placement is named where there are several."""
    if len({variant.placement for variant in measured}) == 1:
        return {variant: variant.adapter for variant in measured}
    return {variant: f"{variant.adapter} ({variant.placement})" for variant in measured}


def comparison_tables(
    measurements: Sequence[Measurement], adapters: Sequence[AdapterRecord] = ()
) -> list[DeviceTable]:
    """The comparison as data: one table for each task, metric and device.

    Args:
        measurements: those of a whole or a partial run.
        adapters: their order gives the order of the rows and the baseline.

    Returns:
        Tables in order of first appearance, none without a measurement.

    Example:
        >>> cells = [
        ...     Measurement("reviews", "accuracy", name, "digital", "pcm", 0.0, i, i, 0.5 + i / 10)
        ...     for name in ["grasp", "lora"]
        ...     for i in range(2)
        ... ]
        >>> table, = comparison_tables(cells)
        >>> table.differences[0].cells[0].verdict
        'level'
    """
    measured = ordered_variants(measurements, adapters)
    labels = variant_labels(measured)
    times = tuple(sorted({cell.time_s for cell in measurements}))
    summaries = {
        (s.task, s.metric, s.device, s.time_s, Variant(s.adapter, s.placement)): s
        for s in summarise(measurements)
    }
    differences = {
        (d.task, d.metric, d.device, d.time_s, d.adapter): d
        for d in _corrected(measurements, measured)
    }
    return [
        DeviceTable(
            *where,
            times,
            tuple(
                ScoreRow(labels[v], tuple(summaries.get((*where, time, v)) for time in times))
                for v in measured
            ),
            tuple(
                DifferenceRow(
                    labels[v],
                    labels[measured[0]],
                    tuple(differences.get((*where, time, v)) for time in times),
                )
                for v in measured[1:]
            ),
        )
        for where in dict.fromkeys((cell.task, cell.metric, cell.device) for cell in measurements)
    ]


def _corrected(
    measurements: Sequence[Measurement], measured: Sequence[Variant]
) -> list[PairedDifference]:
    """Every variant against the first, corrected over all cells of a task's metric."""
    families: dict[tuple[str, str], list[PairedDifference]] = {}
    for variant in measured[1:]:
        for difference in paired_differences(measurements, measured[0], variant):
            families.setdefault((difference.task, difference.metric), []).append(difference)
    return [d for family in families.values() for d in holm_corrected(family)]


def metric_title(metric: str) -> str:
    """The metric with its unit."""
    return f"{metric} (%)" if is_fraction(metric) else metric


def score_text(value: float, metric: str) -> str:
    """A score as it is shown.

    Example:
        >>> score_text(0.8125, "accuracy"), score_text(8.6094, "nist")
        ('81.2', '8.609')
    """
    return _number(value, metric, "")


def scores_line(where: str, scores: Mapping[str, float]) -> str:
    """Every score of one measurement in a line.

    Example:
        >>> scores_line("digital", {"accuracy": 0.8125})
        'digital: accuracy (%) 81.2'
    """
    told = (f"{metric_title(name)} {score_text(value, name)}" for name, value in scores.items())
    return f"{where}: {', '.join(told)}"


def interval_text(cell: Summary | PairedDifference | None, metric: str) -> str:
    """A mean and half its interval; a difference carries its sign.

    Example:
        >>> interval_text(None, "accuracy")
        '–'
    """
    if cell is None or cell.mean is None:
        return MISSING
    text = _number(cell.mean, metric, "+" if isinstance(cell, PairedDifference) else "")
    if cell.high is None:
        return text
    return f"{text} ±{_number(cell.high - cell.mean, metric, '')}"


def device_text(table: DeviceTable) -> TextTable:
    """The table of one device: scores, then differences against the first row."""
    scores = [
        TextRow(row.label, tuple(TextCell(interval_text(cell, table.metric)) for cell in row.cells))
        for row in table.scores
    ]
    differences = [
        TextRow(
            f"{row.adapter} − {row.baseline}",
            tuple(_difference_cell(cell, table.metric) for cell in row.cells),
            is_difference=True,
        )
        for row in table.differences
    ]
    columns = (metric_title(table.metric), *(format_time(time) for time in table.times))
    return TextTable(f"{table.device}, {table.task}", columns, (*scores, *differences))


def adapter_text(adapters: Sequence[AdapterRecord]) -> TextTable:
    """The table of the trained adapters: their sizes and the scores of the digital models.

    An adapter that was saved before the run has no training time in it.
    """
    metrics = list(dict.fromkeys(metric for record in adapters for metric in record.digital))
    columns = (
        "adapter",
        "task",
        "adapter parameters",
        "head parameters",
        *(f"digital {metric_title(metric)}" for metric in metrics),
        "training time",
    )
    rows = tuple(
        TextRow(
            record.adapter,
            (
                TextCell(record.task),
                TextCell(f"{record.trainable_parameters:,}"),
                TextCell(f"{record.head_parameters:,}"),
                *(TextCell(_digital(record.digital, metric)) for metric in metrics),
                TextCell(f"{record.train_seconds:,.0f} s" if record.train_seconds else MISSING),
            ),
        )
        for record in adapters
    )
    return TextTable("Trained adapters", columns, rows)


def rich_table(table: TextTable) -> Table:
    """The table for a terminal.

    Example:
        >>> rich_table(TextTable("A", ("adapter", "20s"), ())).row_count
        0
    """
    drawn = Table(title=Text(table.title), title_justify="left")
    drawn.add_column(Text(table.columns[0]))
    for column in table.columns[1:]:
        drawn.add_column(Text(column), justify="left" if table.of_words else "right")
    for index, row in enumerate(table.rows):
        last = index + 1 == len(table.rows)
        opens_differences = not last and table.rows[index + 1].is_difference > row.is_difference
        drawn.add_row(
            Text(row.label),
            *(Text(cell.text, style=_STYLES.get(cell.verdict, "")) for cell in row.cells),
            end_section=opens_differences,
        )
    return drawn


_STYLES = {"ahead": "bold green", "behind": "bold red"}


def markdown_table(table: TextTable) -> str:
    """The table as Markdown, under its title.

    Example:
        >>> print(markdown_table(TextTable("A", ("adapter", "20s"), ())))
        **A**
        <BLANKLINE>
        | adapter | 20s |
        | :-- | --: |
    """
    side = ":--" if table.of_words else "--:"
    body = [
        " | ".join(map(markdown_escape, table.columns)),
        " | ".join([":--", *(side for _ in table.columns[1:])]),
    ]
    for row in table.rows:
        cells = (_emphasised(cell) for cell in row.cells)
        body.append(" | ".join([markdown_escape(row.label), *cells]))
    return f"**{markdown_escape(table.title)}**\n\n" + "\n".join(f"| {line} |" for line in body)


def markdown_escape(text: str) -> str:
    """Text that Markdown shows as it stands, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _emphasised(cell: TextCell) -> str:
    text = markdown_escape(cell.text)
    return f"**{text}**" if cell.verdict in MARKS else text


def _difference_cell(cell: PairedDifference | None, metric: str) -> TextCell:
    verdict = cell.verdict if cell else ""
    mark = MARKS.get(verdict, "")
    if mark and cell and cell.holds_corrected:
        mark += CORRECTED_MARK
    return TextCell(interval_text(cell, metric) + mark, verdict)


def _digital(scores: Mapping[str, float], metric: str) -> str:
    return score_text(scores[metric], metric) if metric in scores else MISSING


def _number(value: float, metric: str, sign: str) -> str:
    places = 1 if is_fraction(metric) else 3
    # Adding zero turns the -0.0 of a rounded small negative number into 0.0.
    shown = round(100 * value if is_fraction(metric) else value, places) + 0.0
    return f"{shown:{sign}.{places}f}"
