"""Measurements of a run, arranged for its report: scores and paired differences by device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import NamedTuple

from analog_grasp.report.tables import (
    MISSING,
    TextTable,
    difference_mark,
    interval_text,
    mean_text,
    metric_title,
    score_text,
)
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
from analog_grasp.utils.time import format_time
from analog_grasp.utils.types import LOWER_IS_BETTER

RETAINED = 0.95
"""Share of the digital model's score down to which it counts as retained."""
LEGEND = (
    "Mean ± 95 % interval over chip instances, and over trainings where there are several (in"
    " parentheses: 5th percentile of the chips). Differences are paired by training and chip: ▲"
    " better and ▼ worse where the interval excludes zero, no mark where the difference is not"
    " significant, * where it is also significant after Holm's correction over all differences of"
    " the metric."
)
ANSWER_LEGEND = (
    "Mean ± 95 % interval. Marks compare with the first adapter on the same chips: ▲ better, ▼"
    " worse, * also after Holm's correction."
)
_TREATMENTS = (
    "Costs per age: examples, those read by the chip, parameters and bytes rewritten, and weights"
    " that reprogramming would write instead"
)


class DeviceTable(NamedTuple):
    """One metric of one task on one device over drift times.

    Attributes:
        task, metric, device: As in the measurements.
        labels: Labels of the variants.
        times: Drift times in seconds, ascending; the same in all tables of a comparison.
        scores: One row per variant, one summary per time; None where nothing was measured.
        differences: One row per variant except the first, from which they are paired differences.
    """

    task: str
    metric: str
    device: str
    labels: Sequence[str]
    times: Sequence[float]
    scores: Sequence[Sequence[Summary | None]]
    differences: Sequence[Sequence[PairedDifference | None]]


class Comparison:
    """The measurements of a run by variant, device and drift time.

    On the page each adapter, placement and device has a token, such as ``a0``, ``p0`` and ``d1``,
    by which the switches find its content.

    Args:
        measurements: Measurements of a complete or partial run.
        adapters: Give the order of the rows, the baseline and the digital scores.

    Attributes:
        variants: The measured variants in the order of the records; the first is the baseline.
        labels: Their labels, with the placement where there are several.
        tables: One table per task, metric and device in order of first appearance, those of the
            primary metric first where `adapters` are given; empty without a measurement.
        subjects: The same tables by task and metric.

    Example:
        >>> cells = [
        ...     Measurement("reviews", "accuracy", name, 0, "digital", "pcm", 0.0, i, i, 0.5 + i)
        ...     for name in ["grasp", "lora"]
        ...     for i in range(2)
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
        self.variants = sorted(
            variants(measurements),
            key=lambda variant: (*order, variant.adapter).index(variant.adapter),
        )
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
        differences = {
            (d.task, d.metric, d.device, d.time_s, d.adapter): d for d in self._differences()
        }
        metrics = [metric for record in self.adapters for metric in record.digital]
        wheres = dict.fromkeys((cell.task, cell.metric, cell.device) for cell in self.measurements)
        return [
            DeviceTable(
                *where,
                self.labels,
                times,
                [[summaries.get((*where, t, v)) for t in times] for v in self.variants],
                [[differences.get((*where, t, v)) for t in times] for v in self.variants[1:]],
            )
            for where in sorted(wheres, key=lambda where: (*metrics, where[1]).index(where[1]))
        ]

    def _differences(self) -> list[PairedDifference]:
        """Return every difference from the first variant, corrected per task and metric."""
        families: dict[tuple[str, str], list[PairedDifference]] = {}
        for variant in self.variants[1:]:
            for found in paired_differences(self.measurements, self.variants[0], variant):
                families.setdefault((found.task, found.metric), []).append(found)
        return [found for family in families.values() for found in holm_corrected(family)]

    def digital(self, table: DeviceTable) -> dict[str, float]:
        """Return the score of each adapter's digital model, the mean over its trainings."""
        found = _digital_scores(table.task, table.metric, self.adapters)
        return {adapter: score.mean for adapter, score in found.items()}

    def digital_score(self, table: DeviceTable, place: int) -> float | None:
        """Return the digital score of a variant; that of the adapter before recalibration."""
        adapter = TreatedAdapter.parse(self.variants[place].adapter).adapter
        return self.digital(table).get(adapter)

    def retained(self, table: DeviceTable, place: int) -> float | None:
        """Return the last time up to which every mean of a variant is retained; None if none is.

        A variant without a digital score is compared with its first score.
        """
        cells = [cell for cell in table.scores[place] if cell]
        start = self.digital_score(table, place)
        lower = table.metric in LOWER_IS_BETTER

        def is_retained(cell: Summary) -> bool:
            whole = cells[0].mean if start is None else start
            return cell.mean <= whole / RETAINED if lower else cell.mean >= RETAINED * whole

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
    """Return the table of one device as text: scores, then differences from the first row."""
    rows = [
        (label, *(_summary_text(cell) for cell in cells))
        for label, cells in zip(table.labels, table.scores, strict=True)
    ]
    for label, cells in zip(table.labels[1:], table.differences, strict=True):
        entries = (interval_text(cell, table.metric) + difference_mark(cell) for cell in cells)
        rows.append((f"{label} − {table.labels[0]}", *entries))
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
    tables, rows = comparison.subjects[0], []
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
    times = map(format_time, tables[0].times)
    columns = ("device, adapter", "digital", *times, f"{100 * RETAINED:.0f} % retained for")
    return TextTable(f"{metric_title(tables[0].metric)} on {tables[0].task}", columns, rows)


def adapter_text(adapters: Sequence[AdapterRecord]) -> TextTable:
    """Return the adapters as text: parameter counts, digital scores and training time.

    Digital scores are means over trainings with their 95 % interval, the training time is their
    sum; that of an adapter that was saved before the run is missing.
    """
    metrics = list(dict.fromkeys(metric for record in adapters for metric in record.digital))
    rows = []
    for adapter in dict.fromkeys(record.adapter for record in adapters):
        own = [record for record in adapters if record.adapter == adapter]
        task, seconds = own[0].task, sum(record.train_seconds for record in own)
        digital = [_digital_scores(task, metric, own).get(adapter) for metric in metrics]
        scores = (
            MISSING if score is None else mean_text(score.mean, score.high, metric)
            for score, metric in zip(digital, metrics, strict=True)
        )
        counts = (own[0].trainable_parameters, own[0].head_parameters, len(own))
        time = f"{seconds:,.0f} s" if seconds else MISSING
        rows.append((adapter, task, *(f"{count:,}" for count in counts), *scores, time))
    titles = (f"digital {metric_title(metric)}" for metric in metrics)
    counted = ("adapter parameters", "head parameters", "trainings")
    columns = ("adapter", "task", *counted, *titles, "training time")
    return TextTable("Trained adapters", columns, rows)


def _digital_scores(
    task: str, metric: str, adapters: Sequence[AdapterRecord]
) -> dict[str, Estimate]:
    """Return the score of each adapter's digital model: mean and interval over its trainings."""
    found: dict[str, list[float]] = {}
    for record in adapters:
        if record.task == task and metric in record.digital:
            found.setdefault(record.adapter, []).append(record.digital[metric])
    return {adapter: estimate(scores) for adapter, scores in found.items()}


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
        means = (cost.fits, cost.examples, cost.examples_read, cost.seconds, cost.parameters,
                 cost.bytes, cost.weights)  # fmt: skip
        texts = (MISSING if mean is None else f"{mean:,.0f}" for mean in means)
        rows.append((cost.variant, *texts))
    return TextTable(_TREATMENTS, columns, rows)
