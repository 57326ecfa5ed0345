"""Means and paired differences over trainings and chips, with their 95 % confidence intervals.

Trainings (seeds) and chip instances (draws of every random quantity of a device) are the two
repetitions. They are crossed: every training is measured on every chip. Adapters that share frozen
weights are measured on the same chips: their difference is computed per training and chip, which
cancels the effect that a chip has on both.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analog_grasp.study.intervals import (
    CONFIDENCE,
    Repetition,
    complete_table,
    holm,
    table_estimate,
)
from analog_grasp.study.records import Measurement
from analog_grasp.utils.types import LOWER_IS_BETTER

TAIL = 5
"""Percentile of the chips that is stated with the mean, counted from the worst."""
# Beginnings of the names of scores that are fractions of one.
_FRACTIONS = (
    *("accuracy", "f1", "macro_f1", "matthews", "pearson", "spearman", "bleu", "meteor", "rouge"),
)


class Variant(NamedTuple):
    """An adapter at one placement: a row of a table or a line of a figure."""

    adapter: str
    placement: str


@dataclass(frozen=True)
class Summary:
    """The mean score of one variant in one cell of the comparison.

    Attributes:
        task, metric, adapter, placement, device: As in the measurements.
        time_s: Seconds since programming finished.
        n: Number of chip instances.
        mean: Mean over trainings and instances.
        low, high: 95 % interval of the mean; None with one instance.
        trainings: Number of trainings; with one, the interval does not cover trainings.
        tail: 5th percentile of the scores of single chips, from the worst; None with one.
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
    trainings: int = 1
    tail: float | None = None


@dataclass(frozen=True)
class PairedDifference:
    """Difference between two variants in one cell of the comparison.

    Attributes:
        task, metric, device: As in the measurements.
        time_s: Seconds since programming finished.
        baseline, adapter: The two variants; the difference is adapter - baseline.
        n: Number of chip instances on which both were measured.
        unpaired: Number of measurements without a partner, which are ignored.
        mean: Mean of the differences; None without a pair.
        low, high: 95 % interval of the mean; None with fewer than two instances.
        p_value: Of a two-sided paired t-test of no difference, not corrected for the number of
            cells; None with fewer than two instances.
        p_holm: The same after Holm's correction, see `holm_corrected`; None before it.
        trainings: Number of trainings of which both were measured.
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
    trainings: int = 1

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
    """Return mean and 95 % interval over the trainings and chip instances of every cell.

    Args:
        measurements: In any order.
        metric: Only this metric; all if None.

    Returns:
        One summary per cell that has a measurement, in order of first appearance.

    Example:
        >>> cells = [
        ...     Measurement("reviews", "accuracy", "grasp", 0, "digital", "pcm", 0.0, i, i, score)
        ...     for i, score in enumerate([0.80, 0.82])
        ... ]
        >>> [(summary.n, round(summary.mean, 2)) for summary in summarise(cells)]
        [(2, 0.81)]
    """
    groups: dict[tuple[str, str, str, str, str, float], dict[Repetition, float]]
    groups = defaultdict(dict)
    for cell in measurements:
        if metric is None or cell.metric == metric:
            where = (cell.task, cell.metric, cell.adapter, cell.placement, cell.device)
            groups[*where, cell.time_s][_repetition(cell)] = cell.value
    return [_summary(where, complete_table(values)) for where, values in groups.items()]


def _repetition(cell: Measurement) -> Repetition:
    return cell.training, (cell.repeat, cell.seed)


def _summary(where: tuple[str, str, str, str, str, float], table: NDArray[np.float64]) -> Summary:
    trainings, chips = table.shape
    worst = 100 - TAIL if where[1] in LOWER_IS_BETTER else TAIL
    tail = float(np.percentile(table, worst)) if chips > 1 else None
    return Summary(*where, chips, *table_estimate(table)[:3], trainings, tail)


def paired_differences(
    measurements: Sequence[Measurement], baseline: Variant | str, adapter: Variant | str
) -> list[PairedDifference]:
    """Return the difference adapter - baseline of every cell, paired by training and chip.

    Two measurements are a pair if they agree in task, metric, training, device, time, repeat and
    seed; the placements may differ.

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
        ...     Measurement("reviews", "accuracy", name, 0, "digital", "pcm", 0.0, i, i, score + i)
        ...     for name, score in [("grasp", 0.5), ("lora", 0.75)]
        ...     for i in range(2)
        ... ]
        >>> [difference.mean for difference in paired_differences(cells, "grasp", "lora")]
        [0.25]
    """
    first, second = (_resolve(measurements, name) for name in (baseline, adapter))
    cells: dict[tuple[str, str, str, float], dict[Variant, dict[Repetition, float]]] = {}
    for cell in measurements:
        variant = Variant(cell.adapter, cell.placement)
        if variant in (first, second):
            where = (cell.task, cell.metric, cell.device, cell.time_s)
            values = cells.setdefault(where, {first: {}, second: {}})
            values[variant][_repetition(cell)] = cell.value
    return [
        _difference(where, first, second, values[first], values[second])
        for where, values in cells.items()
    ]


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
    subtracted: Mapping[Repetition, float],
    values: Mapping[Repetition, float],
) -> PairedDifference:
    pairs = {key: value - subtracted[key] for key, value in values.items() if key in subtracted}
    unpaired = len(values.keys() ^ subtracted.keys())
    if not pairs:
        return PairedDifference(*where, baseline, adapter, 0, unpaired, None, None, None, None)
    table = complete_table(pairs)
    trainings, chips = table.shape
    result = table_estimate(table)
    return PairedDifference(
        *where, baseline, adapter, chips, unpaired, *result, trainings=trainings
    )


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
