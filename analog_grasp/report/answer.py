"""Answer of a comparison: which adapter, on which device, for how long, as a sentence and a table.

A score is retained while it is at least 95 % of that of the adapter's digital model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from analog_grasp.report.tables import (
    MISSING,
    DeviceTable,
    Entry,
    ScoreRow,
    TextRow,
    TextTable,
    comparison_tables,
    difference_mark,
    digital_means,
    interval_text,
    metric_title,
    ordered_variants,
    percent,
    score_text,
    verdict,
)
from analog_grasp.study.records import AdapterRecord, Measurement
from analog_grasp.study.statistics import PairedDifference, Summary, Variant, is_fraction
from analog_grasp.utils.time import format_time
from analog_grasp.utils.types import LOWER_IS_BETTER

RETAINED = 0.95
"""Share of the digital model's score down to which it counts as retained."""
ANSWER_LEGEND = (
    "Mean ± 95 % interval. Marks compare with the first adapter on the same chips: ▲ better, ▼"
    " worse, * also after Holm's correction."
)
_KINDS = {"grasp": "Deterministic", "stochgrasp": "Stochastic"}


@dataclass(frozen=True)
class Lifetime:
    """Time for which a variant retains its score on a device.

    Attributes:
        label: Label of the variant.
        device: Name of the device.
        seconds: The last drift time up to which every mean is retained; None if none is.
        last: The score at the last time that was measured.
    """

    label: str
    device: str
    seconds: float | None
    last: Summary

    @property
    def rank(self) -> tuple[float, float]:
        """By which lifetimes are ordered, the best last."""
        sign = -1.0 if self.last.metric in LOWER_IS_BETTER else 1.0
        return (-1.0 if self.seconds is None else self.seconds, sign * self.last.mean)


def main_tables(
    measurements: Sequence[Measurement], adapters: Sequence[AdapterRecord]
) -> list[DeviceTable]:
    """Return the tables of the first task and its primary metric."""
    tables = comparison_tables(measurements, adapters)
    return [t for t in tables if (t.task, t.metric) == (tables[0].task, tables[0].metric)]


def lifetimes(
    tables: Sequence[DeviceTable],
    measured: Sequence[Variant],
    adapters: Sequence[AdapterRecord],
) -> list[Lifetime]:
    """Return the lifetime of each variant on each device.

    Args:
        tables: From `main_tables`.
        measured: The variants in the order of the tables.
        adapters: Give the digital scores; a variant without one is compared with its first score.
    """
    digital = digital_means(tables[0], adapters)
    found = []
    for table in tables:
        for variant, row in zip(measured, table.scores, strict=True):
            cells = [cell for cell in row.summaries if cell]
            if cells:
                # A recalibrated adapter is compared with the adapter before it.
                start = digital.get(variant.adapter.partition("+")[0], cells[0].mean)
                seconds = _retained_until(cells, start)
                found.append(Lifetime(row.label, table.device, seconds, cells[-1]))
    return found


def _retained_until(cells: Sequence[Summary], start: float) -> float | None:
    seconds = None
    for cell in cells:
        lower = cell.metric in LOWER_IS_BETTER
        if (cell.mean > start / RETAINED) if lower else (cell.mean < RETAINED * start):
            break
        seconds = cell.time_s
    return seconds


def answer(measurements: Sequence[Measurement], adapters: Sequence[AdapterRecord] = ()) -> str:
    """Return the answer of a comparison as one sentence.

    Adapters are called better or worse by the differences that are significant after Holm's
    correction. The device is the one on which the score is retained longest, then the one with the
    best score at the last time.

    Args:
        measurements: Measurements of a complete or partial run.
        adapters: Their order gives the baseline, their records the digital scores.

    Example:
        >>> cells = [
        ...     Measurement("reviews", "accuracy", name, 0, "digital", "pcm", 0.0, i, i, score + i)
        ...     for name, score in [("grasp", 0.5), ("stochgrasp", 0.75)]
        ...     for i in range(2)
        ... ]
        >>> print(answer(cells).partition(":")[0])
        Stochastic (stochgrasp), on pcm, for 0s
    """
    tables = main_tables(measurements, adapters)
    found = lifetimes(tables, ordered_variants(measurements, adapters), adapters)
    choice, winner, reason = _comparison(tables)
    best = max((life for life in found if winner in (None, life.label)), key=lambda x: x.rank)
    duration = "" if best.seconds is None else f", for {format_time(best.seconds)}"
    devices = len({life.device for life in found})
    name = best.label if choice or reason else "it"
    known = best.label.partition("+")[0].partition(" ")[0] in {r.adapter for r in adapters}
    share = f"{100 * RETAINED:.0f} % of its {'digital' if known else 'first'} {best.last.metric}"
    result = f"{name} {_retained(best, devices, share)}"
    return f"{choice or best.label}, on {best.device}{duration}: {reason}{result}."


def _comparison(tables: Sequence[DeviceTable]) -> tuple[str, str | None, str]:
    """Return what to choose, the label of the only variant to choose if any, and the reason."""
    rows, counts = tables[0].differences, []
    for index in range(len(rows)):
        cells = [cell for table in tables for cell in table.differences[index].differences]
        counts.append(_Counts([cell for cell in cells if cell and cell.n]))
    if len(rows) != 1:
        if not any(count.tested for count in counts):
            return "", None, ""
        tested = conditions(max(count.tested for count in counts))
        pairs = zip(rows, counts, strict=True)
        listed = ", ".join(f"{row.adapter} {c.better} / {c.worse}" for row, c in pairs)
        return "", None, f"better / worse than {rows[0].baseline}: {listed} of {tested}; "
    (row,), (count,) = rows, counts
    both = f"{row.adapter} and {row.baseline}"
    if not count.tested:
        return "", None, f"{both} share a single chip, too few to compare them; "
    among = f"of {conditions(count.tested)}"
    known = {row.adapter, row.baseline} == set(_KINDS)
    if not count.better and not count.worse:
        reason = f"{both} differ significantly in none {among}{count.span}; "
        return "Either", None, reason
    reason = (
        f"{row.adapter} is better than {row.baseline} in {count.better} and worse in {count.worse}"
        f" {among}; "
    )
    if count.better and count.worse:
        return "It depends on the condition", None, reason
    winner = row.adapter if count.better else row.baseline
    return (f"{_KINDS[winner]} ({winner})" if known else winner), winner, reason


class _Counts:
    """Numbers of conditions: tested, and significant after Holm's correction."""

    def __init__(self, cells: Sequence[PairedDifference]) -> None:
        verdicts = Counter(cell.verdict for cell in cells if cell.holds_corrected)
        self.better, self.worse = verdicts["better"], verdicts["worse"]
        self.tested = sum(cell.verdict != "open" for cell in cells)
        self._cells = cells

    @property
    def span(self) -> str:
        """The smallest and the largest mean difference."""
        if len(self._cells) < 2:
            return ""
        points = " points" if is_fraction(self._cells[0].metric) else ""
        ends = (choose(self._cells, key=_mean) for choose in (min, max))
        low, high = (interval_text(replace(cell, high=None), cell.metric) for cell in ends)
        return f" ({low} to {high}{points})"


def _mean(cell: PairedDifference) -> float:
    assert cell.mean is not None
    return cell.mean


def conditions(count: int) -> str:
    """Return a number of conditions as text."""
    return f"{count} condition{'' if count == 1 else 's'}"


def _retained(best: Lifetime, devices: int, share: str) -> str:
    """Return how well the best variant retains a share of its score."""
    last = best.last
    score = (
        f"{interval_text(last, last.metric)}{percent(last.metric)} at {format_time(last.time_s)}"
    )
    if best.seconds is None:
        among = f", the best of {devices} devices" if devices > 1 else ""
        return f"does not retain {share}, and has {score}{among}"
    among = f" (the longest of {devices} devices)" if devices > 1 else ""
    return f"retains {share} there{among} and has {score}"


def answer_table(
    measurements: Sequence[Measurement], adapters: Sequence[AdapterRecord] = ()
) -> TextTable:
    """Return one table of all devices: scores over time, and how long they are retained."""
    tables = main_tables(measurements, adapters)
    measured = ordered_variants(measurements, adapters)
    lives = {(life.device, life.label): life for life in lifetimes(tables, measured, adapters)}
    digital = digital_means(tables[0], adapters)
    rows = []
    for table in tables:
        for index, (variant, row) in enumerate(zip(measured, table.scores, strict=True)):
            differences = table.differences[index - 1].differences if index else ()
            life = lives.get((table.device, row.label))
            retained = (
                MISSING if life is None or life.seconds is None else format_time(life.seconds)
            )
            entries = (
                Entry(_digital_text(digital, variant, table.metric)),
                *_score_entries(row, differences, table.metric),
                Entry(retained),
            )
            rows.append(TextRow(f"{table.device}, {row.label}", entries))
    times = (format_time(time) for time in tables[0].times)
    columns = ("device, adapter", "digital", *times, f"{100 * RETAINED:.0f} % retained for")
    return TextTable(f"{metric_title(tables[0].metric)} on {tables[0].task}", columns, tuple(rows))


def _digital_text(scores: Mapping[str, float], variant: Variant, metric: str) -> str:
    score = scores.get(variant.adapter.partition("+")[0])
    return MISSING if score is None else score_text(score, metric)


def _score_entries(
    row: ScoreRow, differences: Sequence[PairedDifference | None], metric: str
) -> list[Entry]:
    """Return the scores, marked where they differ from those of the first variant."""
    entries = []
    for place, summary in enumerate(row.summaries):
        difference = differences[place] if differences else None
        text = interval_text(summary, metric) + difference_mark(difference)
        entries.append(Entry(text, verdict(difference)))
    return entries
