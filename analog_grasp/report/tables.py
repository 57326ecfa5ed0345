"""Tables of a report: scores and paired differences by device, for terminal and Markdown."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from functools import partial
from itertools import takewhile
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from analog_grasp.study.records import (
    AdapterRecord,
    Measurement,
    TreatedAdapter,
    TreatmentCost,
)
from analog_grasp.study.statistics import (
    Estimate,
    PairedDifference,
    Summary,
    Variant,
    estimate,
    holm_corrected,
    paired_differences,
    summarise,
    variants,
)
from analog_grasp.utils.metrics import is_fraction, lower_is_better
from analog_grasp.utils.time import format_time

MISSING = "–"
MARKS = {"better": "▲", "worse": "▼"}
"""Marks of a significant difference, for readers who do not see the colour."""
RETAINED = 0.95
"""Share of the digital model's score down to which it counts as retained."""
LEGEND = (
    "Mean ± 95 % interval over chip instances, and over trainings where there are several (in"
    " parentheses: 5th percentile of the chips, from the worst). Differences are paired by training"
    " and chip: ▲ better and ▼ worse where the interval excludes zero, no mark where the difference"
    " is not significant, * where it is also significant after Holm's correction over all"
    " differences of the metric."
)
ANSWER_LEGEND = (
    "Mean ± 95 % interval. Marks compare with the first adapter on the same chips, and those of an"
    " adapter re-fitted to an age with the same adapter as trained: ▲ better, ▼ worse, * also after"
    " Holm's correction."
)
_TREATMENTS = (
    "Costs per age: examples, those read by the chip, parameters and bytes rewritten, and weights"
    " that reprogramming would write instead"
)
_STYLES = {"better": "bold green", "worse": "bold red"}
# Scores from here on are shown with an exponent.
_LONG = 1e5


class TextTable(NamedTuple):
    """A table of text; each row is a label and its entries."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    differences: int = 0
    """Number of rows at the end that are differences of the rows above."""
    is_prose: bool = False
    """Align entries to the left."""
    tokens: str = ""
    """From `Comparison.tokens`, for the page: those of the table."""
    row_tokens: Sequence[str] = ()
    """Those of each row."""


def verdict(entry: str) -> str:
    """Return "better" or "worse" for an entry with a mark, else an empty text."""
    return next((name for name, mark in MARKS.items() if mark in entry), "")


def rich_table(table: TextTable) -> Table:
    """Return the table for a terminal."""
    drawn = Table(title=Text(table.title), title_justify="left")
    for place, column in enumerate(table.columns):
        is_left = table.is_prose or place == 0
        # On a narrow terminal a long entry goes on in the next line, instead of losing its end.
        drawn.add_column(Text(column), justify="left" if is_left else "right", overflow="fold")
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
    rows = [list(map(markdown_escape, table.columns)), [":--", *(side for _ in table.columns[1:])]]
    for row in table.rows:
        label, *entries = map(markdown_escape, row)
        rows.append([label, *(f"**{text}**" if verdict(text) else text for text in entries)])
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"**{markdown_escape(table.title)}**\n\n{lines}"


def markdown_bullets(sentences: Sequence[str]) -> str:
    """Return sentences as a Markdown list."""
    return "\n".join(f"- {markdown_escape(sentence)}" for sentence in sentences)


def markdown_escape(text: str) -> str:
    """Return text that Markdown renders literally, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def settings_text(settings: Mapping[str, object]) -> TextTable:
    """Return the settings as text, without empty ones; nested names are joined with a dot."""
    return TextTable("Settings", ("setting", "value"), _flat(settings), is_prose=True)


def _flat(settings: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            parts = value if isinstance(value, list | tuple) else [value]
            rows += [(f"{prefix}{name}", ", ".join(map(str, parts)))] if parts else []
    return rows


def metric_title(metric: str) -> str:
    """Return the metric with its unit."""
    return f"{metric} (%)" if is_fraction(metric) else metric


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


def interval_text(cell: Summary | PairedDifference | Estimate | None, metric: str) -> str:
    """Return a mean and half the width of its interval, if it has one; a difference has a sign.

    Example:
        >>> interval_text(Estimate(0.8, 0.7, 0.9, None), "accuracy")
        '80.0 ±10.0'
    """
    if cell is None:
        return MISSING
    sign = "+" if isinstance(cell, PairedDifference) else ""
    text = score_text(cell.mean, metric, sign)
    if cell.mean is None or cell.high is None:
        return text
    return f"{text} ±{score_text(cell.high - cell.mean, metric)}"


def difference_mark(cell: PairedDifference | None) -> str:
    """Return the mark of a significant difference, with * after Holm's correction too."""
    if cell is None or cell.verdict not in MARKS:
        return ""
    return f" {MARKS[cell.verdict]}{'*' if cell.holds_corrected else ''}"


class DeviceTable(NamedTuple):
    """One metric of one task on one device over drift times.

    Attributes:
        task, metric, device: As in the measurements.
        labels: Labels of the variants.
        times: Drift times in seconds, ascending; the same in all tables of a comparison.
        scores: One row per variant, one summary per time; None where nothing was measured.
        baselines: Labels of the variants with which each variant except the first is compared.
        differences: One row per variant except the first: paired differences from its baseline.
    """

    task: str
    metric: str
    device: str
    labels: Sequence[str]
    times: Sequence[float]
    scores: Sequence[Sequence[Summary | None]]
    baselines: Sequence[str]
    differences: Sequence[Sequence[PairedDifference | None]]


def _place(order: Sequence[str], variant: Variant) -> tuple[int, int, int]:
    """Return the place of a variant: adapters in their order, treated ones then, by examples."""
    name, treated = variant.adapter, TreatedAdapter.parse(variant.adapter)
    places = [(*order, each).index(each) for each in (name, treated.adapter)]
    return places[0], places[1], treated.examples


class Comparison:
    """The measurements of a run by variant, device and drift time.

    On the page each adapter, placement and device has a token, such as ``a0``, ``p0`` and ``d1``,
    by which the switches find its content.

    Args:
        measurements: Measurements of a complete or partial run.
        adapters: Give the order of the rows, the baseline and the digital scores.

    Attributes:
        variants: The measured variants in the order of the records. An adapter re-fitted to an
            age is compared with the same adapter as trained, any other one with the first.
        labels: Their labels, with the placement where there are several.
        tables: One table per task, metric and device in order of first appearance, those of the
            primary metric first where `adapters` are given; empty without a measurement.
        subjects: The same tables by task and metric.

    Example:
        >>> cells = [
        ...     Measurement("reviews", "accuracy", name, 0, "digital", "pcm", 0.0, i, i, score)
        ...     for name, scores in [("grasp", (0.5, 0.6)), ("lora", (0.6, 0.5))]
        ...     for i, score in enumerate(scores)
        ... ]
        >>> table, = Comparison(cells).tables
        >>> table.differences[0][0].verdict
        'not significant'
        >>> Comparison(cells).tokens(Variant("lora", "digital"), devices=["pcm"])
        'a1 p0 d0'
    """

    def __init__(
        self, measurements: Sequence[Measurement], adapters: Sequence[AdapterRecord] = ()
    ) -> None:
        self.measurements, self.adapters = measurements, adapters
        order = list(dict.fromkeys(record.adapter for record in adapters))
        self.variants = sorted(variants(measurements), key=partial(_place, order))
        self.names = list(dict.fromkeys(variant.adapter for variant in self.variants))
        self.placements = list(dict.fromkeys(variant.placement for variant in self.variants))
        self.labels = [
            f"{adapter} ({placement})" if len(self.placements) > 1 else adapter
            for adapter, placement in self.variants
        ]
        self.tables = self._tables()
        self.devices = list(dict.fromkeys(table.device for table in self.tables))
        self.subjects: list[list[DeviceTable]] = [
            [table for table in self.tables if table[:2] == subject]
            for subject in dict.fromkeys(table[:2] for table in self.tables)
        ]

    def _tables(self) -> list[DeviceTable]:
        times = sorted({cell.time_s for cell in self.measurements})
        summaries = {
            (s.task, s.metric, s.device, s.time_s, Variant(s.adapter, s.placement)): s
            for s in summarise(self.measurements)
        }
        families: dict[tuple[str, str], list[PairedDifference]] = {}
        bases = [self._baseline(variant) for variant in self.variants[1:]]
        for base, variant in zip(bases, self.variants[1:], strict=True):
            for found in paired_differences(self.measurements, base, variant):
                families.setdefault((found.task, found.metric), []).append(found)
        differences = {
            (d.task, d.metric, d.device, d.time_s, d.adapter): d
            for family in families.values()
            for d in holm_corrected(family)
        }
        metrics = [metric for record in self.adapters for metric in record.digital]
        wheres = dict.fromkeys((cell.task, cell.metric, cell.device) for cell in self.measurements)
        return [
            DeviceTable(
                *where,
                self.labels,
                times,
                [[summaries.get((*where, t, v)) for t in times] for v in self.variants],
                [self.labels[self.variants.index(base)] for base in bases],
                [[differences.get((*where, t, v)) for t in times] for v in self.variants[1:]],
            )
            for where in sorted(wheres, key=lambda where: (*metrics, where[1]).index(where[1]))
        ]

    def _baseline(self, variant: Variant) -> Variant:
        """Return the variant with which another one is compared: the first if it has none."""
        first = self.variants[0]
        adapter = TreatedAdapter.parse(variant.adapter).baseline(first.adapter)
        placement = variant.placement if adapter != first.adapter else first.placement
        own = Variant(adapter, placement)
        return own if own in self.variants else first

    def digital(self, table: DeviceTable) -> dict[str, float]:
        """Return the score of each adapter's digital model, the mean over its trainings."""
        found: dict[str, list[float]] = {}
        for record in self.adapters:
            if record.task == table.task and table.metric in record.digital:
                found.setdefault(record.adapter, []).append(record.digital[table.metric])
        return {adapter: estimate(scores).mean for adapter, scores in found.items()}

    def digital_score(self, table: DeviceTable, place: int) -> float | None:
        """Return the digital score of a variant; that of the adapter before recalibration."""
        adapter = TreatedAdapter.parse(self.variants[place].adapter).adapter
        return self.digital(table).get(adapter)

    def retained(self, table: DeviceTable, place: int, start: float | None = None) -> float | None:
        """Return the last time up to which every mean of a variant is retained; None if none is.

        Means are compared with `start`, else with the digital score, else with the first mean.
        """
        cells = [cell for cell in table.scores[place] if cell]
        start = self.digital_score(table, place) if start is None else start

        def is_retained(cell: Summary) -> bool:
            whole = cells[0].mean if start is None else start
            # Of a negative score, such as a correlation, 95 % are more than the whole.
            ends = RETAINED * whole, whole / RETAINED
            if lower_is_better(table.metric):
                return cell.mean <= max(ends)
            return cell.mean >= min(ends)

        return max((cell.time_s for cell in takewhile(is_retained, cells)), default=None)

    def tokens(
        self, *measured: Variant, placement: str | None = None, devices: Iterable[str] = ()
    ) -> str:
        """Return the tokens of variants, of a placement and of those devices that were measured."""
        found = []
        for variant in measured:
            found.append(f"a{self.names.index(variant.adapter)}")
            found.append(f"p{self.placements.index(variant.placement)}")
        if placement is not None:
            found.append(f"p{self.placements.index(placement)}")
        found += [f"d{self.devices.index(name)}" for name in devices if name in self.devices]
        return " ".join(found)


def device_text(table: DeviceTable) -> TextTable:
    """Return the table of one device as text: scores, then differences from their baselines."""
    rows = [
        (label, *(_summary_text(cell) for cell in cells))
        for label, cells in zip(table.labels, table.scores, strict=True)
    ]
    compared = zip(table.labels[1:], table.baselines, table.differences, strict=True)
    for label, baseline, cells in compared:
        entries = (interval_text(cell, table.metric) + difference_mark(cell) for cell in cells)
        rows.append((f"{label} − {baseline}", *entries))
    columns = (metric_title(table.metric), *map(format_time, table.times))
    title = f"{table.device}, {table.task}"
    return TextTable(title, columns, rows, differences=len(table.differences))


def _summary_text(cell: Summary | None) -> str:
    if cell is None:
        return MISSING
    tail = "" if cell.tail is None else f" ({score_text(cell.tail, cell.metric)})"
    return interval_text(cell, cell.metric) + tail


def answer_table(comparison: Comparison) -> TextTable:
    """Return one table of all devices: scores over time, and how long they are retained."""
    tables, rows, tokens = comparison.subjects[0], [], []
    for table in tables:
        for place, cells in enumerate(table.scores):
            differences = table.differences[place - 1] if place else [None] * len(cells)
            seconds = comparison.retained(table, place)
            entries = (
                score_text(comparison.digital_score(table, place), table.metric),
                *(
                    interval_text(cell, table.metric) + difference_mark(difference)
                    for cell, difference in zip(cells, differences, strict=True)
                ),
                MISSING if seconds is None else format_time(seconds),
            )
            rows.append((f"{table.device}, {table.labels[place]}", *entries))
            tokens.append(comparison.tokens(comparison.variants[place], devices=[table.device]))
    times = map(format_time, tables[0].times)
    columns = ("device, adapter", "digital", *times, f"{100 * RETAINED:.0f} % retained for")
    title = f"{metric_title(tables[0].metric)} on {tables[0].task}"
    return TextTable(title, columns, rows, row_tokens=tokens)


def adapter_text(adapters: Sequence[AdapterRecord]) -> TextTable:
    """Return the adapters as text: parameters, digital scores and training time.

    Scores are means over trainings with their 95 % interval, and the time is the sum; that of an
    adapter that was saved before the run is missing.
    """
    metrics = list(dict.fromkeys(metric for record in adapters for metric in record.digital))
    rows = []
    for adapter in dict.fromkeys(record.adapter for record in adapters):
        own = [record for record in adapters if record.adapter == adapter]
        scores = []
        for metric in metrics:
            values = [record.digital[metric] for record in own if metric in record.digital]
            scores.append(interval_text(estimate(values) if values else None, metric))
        counts = (own[0].trainable_parameters, own[0].head_parameters, len(own))
        seconds = sum(record.train_seconds for record in own)
        time = f"{seconds:,.0f} s" if seconds else MISSING
        rows.append((adapter, own[0].task, *(f"{count:,}" for count in counts), *scores, time))
    titles = (f"digital {metric_title(metric)}" for metric in metrics)
    counted = ("adapter parameters", "head parameters", "trainings")
    columns = ("adapter", "task", *counted, *titles, "training time")
    return TextTable("Trained adapters", columns, rows)


def treatment_text(costs: Sequence[TreatmentCost]) -> TextTable:
    """Return the mean cost of each recalibrated or scheduled adapter per age as text.

    Example:
        >>> cost = TreatmentCost("grasp+recalibrated-64", 3, 64, 3376, 49.0, 5506, 22024, 21233664)
        >>> treatment_text([cost]).rows[0][1:]
        ('3', '64', '3,376', '49', '5,506', '22,024', '21,233,664')
    """
    columns = (
        "adapter", "fits", "examples", "chip reads", "seconds", "parameters", "bytes", "weights"
    )  # fmt: skip
    rows = []
    for cost in costs:
        variant, *means = astuple(cost)
        texts = (MISSING if m is None else f"{m:,.{int(m < 10 and m % 1 > 0)}f}" for m in means)
        rows.append((variant, *texts))
    return TextTable(_TREATMENTS, columns, rows)
