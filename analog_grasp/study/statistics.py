"""Means and paired differences over chip instances, with their 95 % confidence intervals.

A chip instance is one draw of every random quantity of a device, so instances are the independent
repetitions. Adapters that share frozen weights are measured on the same instances: their difference
is computed per instance, which cancels the effect that an instance has on both.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import stats

from analog_grasp.study.records import Measurement
from analog_grasp.study.sections import RunSettings
from analog_grasp.utils.types import LOWER_IS_BETTER

CONFIDENCE = 0.95
FIRST_CHIPS = 5
"""Chip instances per device that `until_ci` begins with: from fewer, its intervals cover less."""
# Beginnings of the names of scores that are fractions of one.
_FRACTIONS = (
    *("accuracy", "f1", "macro_f1", "matthews", "pearson", "spearman", "bleu", "meteor", "rouge"),
)


class Variant(NamedTuple):
    """An adapter at one placement: a row of a table or a line of a figure."""

    adapter: str
    placement: str


class Estimate(NamedTuple):
    """A mean, its interval and a p-value; None but for the mean where there is a single value."""

    mean: float
    low: float | None
    high: float | None
    p_value: float | None


@dataclass(frozen=True)
class Summary:
    """The mean score of one variant in one cell of the comparison.

    Attributes:
        task, metric, adapter, placement, device: As in the measurements.
        time_s: Seconds since programming finished.
        n: Number of chip instances.
        mean: Mean over the instances.
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
    """Difference between two variants in one cell of the comparison.

    Attributes:
        task, metric, device: As in the measurements.
        time_s: Seconds since programming finished.
        baseline, adapter: The two variants; the difference is adapter - baseline.
        n: Number of pairs, a pair being one chip instance on which both were measured.
        unpaired: Number of measurements without a partner, which are ignored.
        mean: Mean of the differences; None without a pair.
        low, high: 95 % Student-t interval of the mean; None with fewer than two pairs.
        p_value: Of a two-sided paired t-test of no difference, not corrected for the number of
            cells; None with fewer than two pairs.
        p_holm: The same after Holm's correction, see `holm_corrected`; None before it.
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
        """True where the difference is significant at 5 % after Holm's correction."""
        return self.p_holm is not None and self.p_holm < 1 - CONFIDENCE

    @property
    def verdict(self) -> str:
        """Return "better", "worse" or "not significant"; "open" where there is no interval.

        A difference is not significant if its interval contains zero.
        """
        if self.low is None or self.high is None:
            return "open"
        if self.low <= 0 <= self.high:
            return "not significant"
        return "better" if (self.low > 0) != (self.metric in LOWER_IS_BETTER) else "worse"


def estimate(values: Sequence[float]) -> Estimate:
    """Return mean, 95 % Student-t interval and the p-value of a zero mean, of independent values.

    ``mean +- t(0.975, n - 1) * s / sqrt(n)``, with s the standard deviation of the sample.
    Equal values give an interval of zero width, and p = 1 if they are zero, else 0.

    Args:
        values: n values, n >= 1.

    Raises:
        ValueError: `values` is empty.

    Example:
        >>> estimate([1.0, 2.0, 3.0]).mean
        2.0
        >>> round(estimate([1.0, 2.0, 3.0]).high, 3)  # 2 + 4.3027 / sqrt(3)
        4.484
    """
    if not values:
        raise ValueError("`values` must not be empty.")
    # The standard library sums exactly, so rounding gives equal values no deviation.
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
    """Return how many values like these have a 95 % interval of at most this half width.

    The smallest n >= 2 with ``t(0.975, n - 1) * s / sqrt(n) <= half_width``, where s is the
    standard deviation of the values; 2 for a single value, which has none.

    Args:
        values: Independent values.
        half_width: In the unit of the values.
        most: The result if more than these are needed.

    Example:
        >>> values_needed([1.0, 2.0, 3.0], half_width=1.0, most=9)  # 2.4469 / sqrt(7) = 0.92
        7
    """
    if len(values) < 2:
        return 2
    std = statistics.stdev(values)
    return next((n for n in range(2, most) if _half_width(n) * std <= half_width), most)


@lru_cache
def _half_width(n: int) -> float:
    """Return the half width of the interval of n values with standard deviation 1."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) / math.sqrt(n)


def chip_count(run: RunSettings, values: int, measured: Iterable[Measurement]) -> int:
    """Return how many chip instances of a device to measure, given what is measured so far.

    This is `repeats`; with `until_ci`, `FIRST_CHIPS` at least, then as many more as the widest
    interval seems to require, at most twice as many at once, until each interval is narrow enough
    or `repeats_limit` is reached. The result follows from the first instances alone, so that the
    order of the work does not change it.

    Drawing ends at samples that happen to vary less, so that the intervals cover the true mean less
    often than 95 %: as low as 90, 92 and 94 % when it begins with 3, 5 and 10 chips (simulated with
    normally distributed scores, at the half width where coverage is lowest).

    Args:
        run: Gives repeats, until_ci and repeats_limit.
        values: Number of values that each chip instance gives when it is measured completely.
        measured: The device's measurements.

    Example:
        >>> chip_count(RunSettings(repeats=3), 10, [])
        3
        >>> chip_count(RunSettings(repeats=3, until_ci=0.5), 10, [])
        5
    """
    if run.until_ci is None:
        return run.repeats
    count = max(run.repeats, min(FIRST_CHIPS, run.repeats_limit))
    groups: dict[tuple[str, str, float], dict[int, float]] = {}
    for cell in measured:
        unit = 100.0 if is_fraction(cell.metric) else 1.0
        group = groups.setdefault((cell.metric, cell.adapter, cell.time_s), {})
        group[cell.repeat] = unit * cell.value
    while count < run.repeats_limit:
        known = [[g[r] for r in range(count) if r in g] for g in groups.values()]
        if len(known) < values or any(len(group) < count for group in known):
            return count
        most = min(2 * count, run.repeats_limit)
        needed = max(values_needed(group, run.until_ci, most) for group in known)
        if needed <= count:
            return count
        count = needed
    return count


def is_fraction(metric: str) -> bool:
    """Return whether a metric is a fraction of one, shown in per cent.

    Example:
        >>> is_fraction("accuracy"), is_fraction("matthews_correlation"), is_fraction("nist")
        (True, True, False)
    """
    return metric.lower().startswith(_FRACTIONS)


def variants(measurements: Iterable[Measurement]) -> list[Variant]:
    """Return the variants that were measured, in order of first appearance."""
    return list(dict.fromkeys(Variant(cell.adapter, cell.placement) for cell in measurements))


def summarise(measurements: Iterable[Measurement], metric: str | None = None) -> list[Summary]:
    """Return mean and 95 % interval over the chip instances of every cell.

    Args:
        measurements: In any order.
        metric: Only this metric; all if None.

    Returns:
        One summary per cell that has a measurement, in order of first appearance.

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
    """Return the difference adapter - baseline of every cell, paired by chip instance.

    Two measurements are a pair if they agree in task, metric, device, time, repeat and seed;
    the placements may differ.

    Args:
        measurements: In any order; those of other variants are ignored.
        baseline: The variant to subtract; its adapter's name suffices where that was measured
            at one placement only.
        adapter: The variant to subtract it from, given in the same way.

    Returns:
        One difference per cell in which either was measured, in order of first appearance.

    Raises:
        ValueError: A variant is not among the measurements, or a name fits several.

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


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return p-values corrected for their number by Holm's method.

    With m p-values in ascending order, ``p_holm(i) = max over j <= i of min((m - j + 1) p(j), 1)``:
    the probability of at least one false discovery stays below the level, however the tests depend
    on each other.

    Args:
        p_values: Shape (m,), the family of tests that is read together.

    Returns:
        Shape (m,), in the order given.

    Source:
        Holm, Scandinavian Journal of Statistics 6, 65 (1979).

    Example:
        >>> holm([0.04, 0.01]).tolist()
        [0.04, 0.02]
    """
    values = np.asarray(p_values, dtype=float)
    order = np.argsort(values, kind="stable")
    corrected = np.empty_like(values)
    steps = values[order] * np.arange(len(values), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected


def holm_corrected(differences: Sequence[PairedDifference]) -> list[PairedDifference]:
    """Return the differences of one table with their p-values corrected by `holm`.

    Args:
        differences: The family that is read together; those without a p-value do not count.

    Example:
        >>> pcm = Variant("grasp", "digital")
        >>> given = [
        ...     PairedDifference("t", "m", "d", 0.0, pcm, pcm, 3, 0, 0.1, 0.0, 0.2, p)
        ...     for p in (0.04, 0.01, None)
        ... ]
        >>> [difference.p_holm for difference in holm_corrected(given)]
        [0.04, 0.02, None]
    """
    tested = [(i, d.p_value) for i, d in enumerate(differences) if d.p_value is not None]
    corrected = list(differences)
    p_values = holm([p for _, p in tested]).tolist()
    for (index, _), p_holm in zip(tested, p_values, strict=True):
        corrected[index] = replace(differences[index], p_holm=p_holm)
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
    """Return the variant that a name refers to."""
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
