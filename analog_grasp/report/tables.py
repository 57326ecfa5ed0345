"""Tables of a comparison: built once as data, rendered for the terminal, Markdown and HTML.

`comparison_tables` holds the values; `device_text`, `adapter_text` and `settings_text` turn values
into a `TextTable`, which `rich_table`, `markdown_table` and the HTML template render.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from analog_grasp.study.records import AdapterRecord, Measurement
from analog_grasp.study.statistics import (
    Estimate,
    PairedDifference,
    Summary,
    Variant,
    estimate,
    holm_corrected,
    is_fraction,
    paired_differences,
    summarise,
    variants,
)
from analog_grasp.utils.time import format_time

MISSING = "–"
# Marks of a significant difference, for readers who do not see the colour.
MARKS = {"better": " ▲", "worse": " ▼"}
# Follows the mark where the difference is significant after Holm's correction too.
CORRECTED_MARK = "*"
# Scores from here on are shown with an exponent.
_LONG = 1e5
LEGEND = (
    "Mean ± 95 % interval over chip instances, and over trainings where there are several (in"
    " parentheses: 5th percentile of the chips). Differences are paired by training and chip: ▲"
    " better and ▼ worse where the interval excludes zero, no mark where the difference is not"
    " significant, * where it is also significant after Holm's correction over all differences of"
    " the metric."
)


@dataclass(frozen=True)
class ScoreRow:
    """Scores of one variant: a summary per drift time, None where nothing was measured."""

    label: str
    summaries: tuple[Summary | None, ...]


@dataclass(frozen=True)
class DifferenceRow:
    """Paired differences of one variant against the first: one per drift time."""

    adapter: str
    baseline: str
    differences: tuple[PairedDifference | None, ...]


@dataclass(frozen=True)
class DeviceTable:
    """One metric of one task on one device, over drift times.

    Attributes:
        task, metric, device: As in the measurements.
        times: Drift times in seconds, ascending; the same in all tables of a comparison.
        scores: One row per variant.
        differences: One row per variant except the first.
    """

    task: str
    metric: str
    device: str
    times: tuple[float, ...]
    scores: tuple[ScoreRow, ...]
    differences: tuple[DifferenceRow, ...]


@dataclass(frozen=True)
class Entry:
    """Text of one table entry; the verdict is that of a difference, else empty."""

    text: str
    verdict: str = ""


@dataclass(frozen=True)
class TextRow:
    """One row of text; ``is_difference`` separates differences from scores."""

    label: str
    entries: tuple[Entry, ...]
    is_difference: bool = False


@dataclass(frozen=True)
class TextTable:
    """A table of text: ``columns`` names the labels and each entry of a row.

    Entries are aligned to the right, unless ``is_prose`` is set.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[TextRow, ...]
    is_prose: bool = False


def ordered_variants(
    measurements: Sequence[Measurement], adapters: Sequence[AdapterRecord] = ()
) -> list[Variant]:
    """Return the measured variants in the order of the records; the first is the baseline."""
    ranks = {name: rank for rank, name in enumerate(dict.fromkeys(r.adapter for r in adapters))}
    return sorted(
        variants(measurements), key=lambda variant: ranks.get(variant.adapter, len(ranks))
    )


def variant_labels(measured: Sequence[Variant]) -> dict[Variant, str]:
    """Return the label of each variant, with its placement where there are several."""
    if len({variant.placement for variant in measured}) == 1:
        return {variant: variant.adapter for variant in measured}
    return {variant: f"{variant.adapter} ({variant.placement})" for variant in measured}


def comparison_tables(
    measurements: Sequence[Measurement], adapters: Sequence[AdapterRecord] = ()
) -> list[DeviceTable]:
    """Return the comparison as data: one table per task, metric and device.

    Args:
        measurements: Measurements of a complete or partial run.
        adapters: Give the order of the rows and the baseline.

    Returns:
        Tables in order of first appearance, those of the primary metric first where `adapters`
        are given; empty without a measurement.

    Example:
        >>> cells = [
        ...     Measurement("reviews", "accuracy", name, 0, "digital", "pcm", 0.0, i, i, 0.5 + i)
        ...     for name in ["grasp", "lora"]
        ...     for i in range(2)
        ... ]
        >>> table, = comparison_tables(cells)
        >>> table.differences[0].differences[0].verdict
        'not significant'
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
    metrics = list(dict.fromkeys(metric for record in adapters for metric in record.digital))
    wheres = dict.fromkeys((cell.task, cell.metric, cell.device) for cell in measurements)
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
        for where in sorted(wheres, key=lambda where: (*metrics, where[1]).index(where[1]))
    ]


def _corrected(
    measurements: Sequence[Measurement], measured: Sequence[Variant]
) -> list[PairedDifference]:
    """Return every difference against the first variant, corrected per task and metric."""
    families: dict[tuple[str, str], list[PairedDifference]] = {}
    for variant in measured[1:]:
        for difference in paired_differences(measurements, measured[0], variant):
            families.setdefault((difference.task, difference.metric), []).append(difference)
    return [d for family in families.values() for d in holm_corrected(family)]


def metric_title(metric: str) -> str:
    """Return the metric with its unit."""
    return f"{metric} (%)" if is_fraction(metric) else metric


def percent(metric: str) -> str:
    """Return the unit that follows a score in a sentence."""
    return " %" if is_fraction(metric) else ""


def score_text(value: float, metric: str) -> str:
    """Return a score as text, in per cent for a fraction.

    Example:
        >>> score_text(0.8125, "accuracy"), score_text(8.6094, "nist")
        ('81.2', '8.609')
        >>> score_text(1.23456e9, "perplexity")
        '1.235e+09'
    """
    return _number(value, metric, "")


def scores_line(where: str, scores: Mapping[str, float]) -> str:
    """Return every score of one measurement on one line.

    Example:
        >>> scores_line("digital", {"accuracy": 0.8125})
        'digital: accuracy (%) 81.2'
    """
    texts = (f"{metric_title(name)} {score_text(value, name)}" for name, value in scores.items())
    return f"{where}: {', '.join(texts)}"


def interval_text(cell: Summary | PairedDifference | None, metric: str) -> str:
    """Return a mean and half the width of its interval; a difference has a sign.

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


def summary_text(cell: Summary | None, metric: str) -> str:
    """Return a mean, half the width of its interval, and the 5th percentile of the chips.

    Example:
        >>> cell = Summary("t", "accuracy", "a", "digital", "d", 0.0, 3, 0.8, 0.7, 0.9, 1, 0.75)
        >>> summary_text(cell, "accuracy")
        '80.0 ±10.0 (75.0)'
    """
    tail = "" if cell is None or cell.tail is None else f" ({_number(cell.tail, metric, '')})"
    return interval_text(cell, metric) + tail


def digital_scores(
    task: str, metric: str, adapters: Sequence[AdapterRecord]
) -> dict[str, Estimate]:
    """Return the score of each adapter's digital model: mean and interval over its trainings."""
    found: dict[str, list[float]] = {}
    for record in adapters:
        if record.task == task and metric in record.digital:
            found.setdefault(record.adapter, []).append(record.digital[metric])
    return {adapter: estimate(scores) for adapter, scores in found.items()}


def digital_means(table: DeviceTable, adapters: Sequence[AdapterRecord]) -> dict[str, float]:
    """Return the scores of the digital models for a table, means over trainings by adapter."""
    found = digital_scores(table.task, table.metric, adapters)
    return {adapter: score.mean for adapter, score in found.items()}


def _number(value: float, metric: str, sign: str) -> str:
    places = 1 if is_fraction(metric) else 3
    # Adding zero turns the -0.0 of a rounded small negative number into 0.0.
    rounded = round(100 * value if is_fraction(metric) else value, places) + 0.0
    return f"{rounded:{sign}.{places}{'e' if abs(rounded) >= _LONG else 'f'}}"


def device_text(table: DeviceTable) -> TextTable:
    """Return the table of one device as text: scores, then differences from the first row."""
    scores = [
        TextRow(row.label, tuple(Entry(summary_text(s, table.metric)) for s in row.summaries))
        for row in table.scores
    ]
    differences = [
        TextRow(
            f"{row.adapter} − {row.baseline}",
            tuple(
                Entry(interval_text(cell, table.metric) + difference_mark(cell), verdict(cell))
                for cell in row.differences
            ),
            is_difference=True,
        )
        for row in table.differences
    ]
    columns = (metric_title(table.metric), *(format_time(time) for time in table.times))
    return TextTable(f"{table.device}, {table.task}", columns, (*scores, *differences))


def verdict(cell: PairedDifference | None) -> str:
    """Return the verdict of a difference, empty where there is none."""
    return cell.verdict if cell else ""


def difference_mark(cell: PairedDifference | None) -> str:
    """Return the mark of a significant difference, with a star where it holds corrected."""
    mark = MARKS.get(verdict(cell), "")
    return mark + CORRECTED_MARK if mark and cell and cell.holds_corrected else mark


def adapter_text(adapters: Sequence[AdapterRecord]) -> TextTable:
    """Return the adapters as text: parameter counts, digital scores and training time.

    Digital scores are means over trainings with their 95 % interval, the training time is their
    sum; that of an adapter that was saved before the run is missing.
    """
    metrics = list(dict.fromkeys(metric for record in adapters for metric in record.digital))
    trainings: dict[str, list[AdapterRecord]] = {}
    for record in adapters:
        trainings.setdefault(record.adapter, []).append(record)
    columns = (
        "adapter",
        "task",
        "adapter parameters",
        "head parameters",
        "trainings",
        *(f"digital {metric_title(metric)}" for metric in metrics),
        "training time",
    )
    rows = tuple(
        TextRow(
            adapter,
            (
                Entry(first.task),
                Entry(f"{first.trainable_parameters:,}"),
                Entry(f"{first.head_parameters:,}"),
                Entry(str(len(own))),
                *(Entry(_digital(first.task, metric, own)) for metric in metrics),
                Entry(_seconds(sum(record.train_seconds for record in own))),
            ),
        )
        for adapter, own in trainings.items()
        for first in own[:1]
    )
    return TextTable("Trained adapters", columns, rows)


def _digital(task: str, metric: str, trainings: Sequence[AdapterRecord]) -> str:
    for score in digital_scores(task, metric, trainings).values():
        half = "" if score.high is None else f" ±{_number(score.high - score.mean, metric, '')}"
        return score_text(score.mean, metric) + half
    return MISSING


def _seconds(total: float) -> str:
    return f"{total:,.0f} s" if total else MISSING


def settings_text(settings: Mapping[str, object]) -> TextTable:
    """Return the settings as text; nested names are joined with a dot."""
    rows = tuple(TextRow(name, (Entry(text),)) for name, text in _flat(settings))
    return TextTable("Settings", ("setting", "value"), rows, is_prose=True)


def _flat(settings: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            rows.append((f"{prefix}{name}", ", ".join(map(str, value))))
        else:
            rows.append((f"{prefix}{name}", str(value)))
    return rows


def rich_table(table: TextTable) -> Table:
    """Return the table for a terminal.

    Example:
        >>> rich_table(TextTable("A", ("adapter", "20s"), ())).row_count
        0
    """
    drawn = Table(title=Text(table.title), title_justify="left")
    drawn.add_column(Text(table.columns[0]))
    for column in table.columns[1:]:
        drawn.add_column(Text(column), justify="left" if table.is_prose else "right")
    for index, row in enumerate(table.rows):
        last = index + 1 == len(table.rows)
        precedes_differences = not last and table.rows[index + 1].is_difference > row.is_difference
        drawn.add_row(
            Text(row.label),
            *(Text(entry.text, style=_STYLES.get(entry.verdict, "")) for entry in row.entries),
            end_section=precedes_differences,
        )
    return drawn


_STYLES = {"better": "bold green", "worse": "bold red"}


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
    body = [
        " | ".join(map(markdown_escape, table.columns)),
        " | ".join([":--", *(side for _ in table.columns[1:])]),
    ]
    for row in table.rows:
        entries = (_emphasised(entry) for entry in row.entries)
        body.append(" | ".join([markdown_escape(row.label), *entries]))
    return f"**{markdown_escape(table.title)}**\n\n" + "\n".join(f"| {line} |" for line in body)


def _emphasised(entry: Entry) -> str:
    text = markdown_escape(entry.text)
    return f"**{text}**" if entry.verdict in MARKS else text


def markdown_bullets(sentences: Sequence[str]) -> str:
    """Return sentences as a Markdown list."""
    return "\n".join(f"- {markdown_escape(sentence)}" for sentence in sentences)


def markdown_escape(text: str) -> str:
    """Return text that Markdown renders literally, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
