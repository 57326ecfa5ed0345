"""Means and paired differences over chip instances, with their 95 % intervals.

A chip instance is one draw of everything a device leaves to chance, so instances are the
independent repetitions. Adapters that share frozen weights are measured on the same instances:
their difference is taken instance by instance, and what the instance does to both cancels.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from scipy import stats

from analog_grasp.study.records import Measurement

CONFIDENCE = 0.95
# Scores that are fractions of one, by how their names begin.
_FRACTIONS = ("accuracy", "f1", "matthews", "pearson", "spearman", "bleu", "meteor", "rouge")


class Variant(NamedTuple):
    """An adapter at one placement: what a row of a table or a line of a figure stands for."""

    adapter: str
    placement: str


class Estimate(NamedTuple):
    """A mean and its interval; ``low`` and ``high`` are None where one value gives no spread."""

    mean: float
    low: float | None
    high: float | None
    p_value: float | None


@dataclass(frozen=True)
class Summary:
    """The mean score of one variant in one cell of the comparison.

    Attributes:
        task, metric, adapter, placement, device: as in the measurements.
        time_s: seconds since programming finished.
        n: number of chip instances.
        mean: mean over the instances.
        low, high: 95 % Student-t interval of the mean; None with one instance.
    """

    task: str
    metric: str
    adapter: str
    placement: str
    device: str
    time_s: float
    n: int
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class PairedDifference:
    """By how much one variant differs from another in one cell of the comparison.

    Attributes:
        task, metric, device: as in the measurements.
        time_s: seconds since programming finished.
        baseline, adapter: the two variants; the difference is adapter - baseline.
        n: number of pairs, a pair being one chip instance on which both were measured.
        unpaired: number of measurements without a partner, which are left out.
        mean: mean of the differences; None without a pair.
        low, high: 95 % Student-t interval of the mean; None with fewer than two pairs.
        p_value: two-sided paired t-test of no difference, uncorrected for the number of
            cells; None with fewer than two pairs.
        p_holm: the same after Holm's correction, see `holm_corrected`; None before it.
    """

    task: str
    metric: str
    device: str
    time_s: float
    baseline: Variant
    adapter: Variant
    n: int
    unpaired: int
    mean: float | None
    low: float | None
    high: float | None
    p_value: float | None
    p_holm: float | None = None

    @property
    def holds_corrected(self) -> bool:
        """Whether the difference is one after Holm's correction too, at the level of 5 %."""
        return self.p_holm is not None and self.p_holm < 1 - CONFIDENCE

    @property
    def verdict(self) -> str:
        """``"ahead"``, ``"behind"`` or ``"level"``, or ``"open"`` where there is no interval.

        Level means that the interval holds zero.
        """
        if self.low is None or self.high is None:
            return "open"
        if self.low > 0:
            return "ahead"
        return "behind" if self.high < 0 else "level"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, 95 % Student-t interval and the p-value of a zero mean, of independent values.

    ``mean +- t(0.975, n - 1) * s / sqrt(n)``, with s the standard deviation of the sample.
    Equal values give an interval of no width, and p = 1 if they are zero, else 0.

    Args:
        values: n values, n >= 1.

    Raises:
        ValueError: there is no value.

    Example:
        >>> estimate([1.0, 2.0, 3.0]).mean
        2.0
        >>> round(estimate([1.0, 2.0, 3.0]).high, 3)  # 2 + 4.3027 / sqrt(3)
        4.484
    """
    if not values:
        raise ValueError("A mean of no values is asked for; give one value or more.")
    # The standard library sums exactly, so equal values have no spread made of rounding.
    mean = float(statistics.mean(values))
    if len(values) == 1:
        return Estimate(mean, None, None, None)
    error = statistics.stdev(values) / math.sqrt(len(values))
    if error == 0.0:
        return Estimate(mean, mean, mean, 1.0 if mean == 0.0 else 0.0)
    freedom = len(values) - 1
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    p_value = 2 * float(stats.t.sf(abs(mean) / error, freedom))
    return Estimate(mean, mean - half, mean + half, p_value)


def values_needed(values: Sequence[float], half_width: float, most: int) -> int:
    """How many values like these have a 95 % interval of at most this half width.

    The smallest n >= 2 with ``t(0.975, n - 1) * s / sqrt(n) <= half_width``, s being the standard
    deviation of the values given; 2 for a single value, which tells no spread. Values that are
    drawn until their interval is narrow stop a little early on average, at samples that happen
    to spread less, so that the interval holds the true mean somewhat less often than it says.

    Args:
        values: independent values.
        half_width: in the unit of the values.
        most: the answer if it takes more than these.

    Example:
        >>> values_needed([1.0, 2.0, 3.0], half_width=1.0, most=9)  # 2.4469 / sqrt(7) = 0.92
        7
    """
    if len(values) < 2:
        return 2
    spread = statistics.stdev(values)
    widths = ((n, stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) / math.sqrt(n)) for n in range(2, most))
    return next((n for n, width in widths if width * spread <= half_width), most)


def is_fraction(metric: str) -> bool:
    """Whether a metric is a fraction of one, shown in per cent.

    Example:
        >>> is_fraction("accuracy"), is_fraction("matthews_correlation"), is_fraction("nist")
        (True, True, False)
    """
    return metric.lower().startswith(_FRACTIONS)


def variants(measurements: Iterable[Measurement]) -> list[Variant]:
    """The variants that were measured, in order of first appearance."""
    return list(dict.fromkeys(Variant(cell.adapter, cell.placement) for cell in measurements))


def summarise(measurements: Iterable[Measurement], metric: str | None = None) -> list[Summary]:
    """Mean and 95 % interval over the chip instances of every cell.

    Args:
        measurements: in any order.
        metric: only this metric; every one if None.

    Returns:
        One summary a cell that has a measurement, in order of first appearance.

    Example:
        >>> cells = [
        ...     Measurement("reviews", "accuracy", "grasp", "digital", "pcm", 0.0, i, i, score)
        ...     for i, score in enumerate([0.80, 0.82])
        ... ]
        >>> [(summary.n, round(summary.mean, 2)) for summary in summarise(cells)]
        [(2, 0.81)]
    """
    groups: dict[tuple[str, str, str, str, str, float], list[float]] = defaultdict(list)
    for cell in measurements:
        if metric is None or cell.metric == metric:
            where = (cell.task, cell.metric, cell.adapter, cell.placement, cell.device)
            groups[*where, cell.time_s].append(cell.value)
    return [Summary(*where, len(values), *estimate(values)[:3]) for where, values in groups.items()]


def paired_differences(
    measurements: Sequence[Measurement], baseline: Variant | str, adapter: Variant | str
) -> list[PairedDifference]:
    """The difference adapter - baseline of every cell, paired by chip instance.

    Two measurements are a pair if they agree in task, metric, device, time, repeat and seed;
    the placements may differ.

    Args:
        measurements: in any order; those of other variants are passed over.
        baseline: the variant to subtract; its adapter's name suffices where that was measured
            at one placement only.
        adapter: the variant to subtract it from, given in the same way.

    Returns:
        One difference a cell in which either was measured, in order of first appearance.

    Raises:
        ValueError: a variant is not among the measurements, or a name fits several.

    Example:
        >>> cells = [
        ...     Measurement("reviews", "accuracy", name, "digital", "pcm", 0.0, i, i, score + i)
        ...     for name, score in [("grasp", 0.5), ("lora", 0.75)]
        ...     for i in range(2)
        ... ]
        >>> [difference.mean for difference in paired_differences(cells, "grasp", "lora")]
        [0.25]
    """
    first, second = (_resolve(measurements, name) for name in (baseline, adapter))
    cells: dict[tuple[str, str, str, float], dict[Variant, dict[tuple[int, int], float]]] = {}
    for cell in measurements:
        variant = Variant(cell.adapter, cell.placement)
        if variant in (first, second):
            where = (cell.task, cell.metric, cell.device, cell.time_s)
            values = cells.setdefault(where, {first: {}, second: {}})
            values[variant][cell.repeat, cell.seed] = cell.value
    return [
        _difference(where, first, second, values[first], values[second])
        for where, values in cells.items()
    ]


def holm_corrected(differences: Sequence[PairedDifference]) -> list[PairedDifference]:
    """The differences with their p-values corrected for how many there are.

    With m p-values in ascending order, ``p_holm(i) = max over j <= i of min((m - j + 1) p(j), 1)``:
    the chance that any of the differences called real is not one stays below the level, however
    they depend on each other. Those without a p-value do not count.

    Args:
        differences: those of one table, the family that is looked at together.

    Source:
        Holm, Scandinavian Journal of Statistics 6, 65 (1979).

    Example:
        >>> pcm = Variant("grasp", "digital")
        >>> given = [
        ...     PairedDifference("t", "m", "d", 0.0, pcm, pcm, 3, 0, 0.1, 0.0, 0.2, p)
        ...     for p in (0.04, 0.01, None)
        ... ]
        >>> [difference.p_holm for difference in holm_corrected(given)]
        [0.04, 0.02, None]
    """
    known = [(d.p_value, i) for i, d in enumerate(differences) if d.p_value is not None]
    corrected = list(differences)
    highest = 0.0
    for rank, (p_value, index) in enumerate(sorted(known)):
        highest = max(highest, min((len(known) - rank) * p_value, 1.0))
        corrected[index] = replace(differences[index], p_holm=highest)
    return corrected


def _difference(
    where: tuple[str, str, str, float],
    baseline: Variant,
    adapter: Variant,
    subtracted: dict[tuple[int, int], float],
    values: dict[tuple[int, int], float],
) -> PairedDifference:
    chips = sorted(values.keys() & subtracted.keys())
    unpaired = len(values.keys() ^ subtracted.keys())
    differences = [values[chip] - subtracted[chip] for chip in chips]
    result = estimate(differences) if differences else (None,) * 4
    return PairedDifference(*where, baseline, adapter, len(chips), unpaired, *result)


def _resolve(measurements: Sequence[Measurement], name: Variant | str) -> Variant:
    """The variant meant by a name."""
    adapter = name if isinstance(name, str) else name.adapter
    known = [variant for variant in variants(measurements) if variant.adapter == adapter]
    if isinstance(name, Variant):
        known = [variant for variant in known if variant == name]
    if len(known) == 1:
        return known[0]
    if not known:
        raise ValueError(f"Nothing was measured of {_title(name)}; name one that was.")
    placements = ", ".join(variant.placement for variant in known)
    raise ValueError(
        f"The adapter {adapter!r} was measured at several placements ({placements}); say which."
    )


def _title(name: Variant | str) -> str:
    if isinstance(name, str):
        return f"the adapter {name!r}"
    return f"the adapter {name.adapter!r} at placement {name.placement!r}"
