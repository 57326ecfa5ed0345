"""Means and paired differences over trainings and chips, with their 95 % confidence intervals.

Trainings (seeds) and chip instances (draws of every random quantity of a device) are the two
repetitions. They are crossed: every training is measured on every chip. Adapters that share frozen
weights are measured on the same chips: their difference is computed per training and chip, which
cancels the effect that a chip has on both.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from analog_grasp.study.records import Measurement
from analog_grasp.utils.metrics import lower_is_better

CONFIDENCE = 0.95
TAIL = 5
"""Percentile of the chips that is stated with the mean, counted from the worst."""
# Relative rounding of differences of scores, with room.
_ROUNDING = 1e-9

type Repetition = tuple[int, tuple[int, int]]
"""Training, and the repeat and the seed of a chip instance."""


class Variant(NamedTuple):
    """An adapter at one placement: a row of a table or a line of a figure."""

    adapter: str
    placement: str


@dataclass(frozen=True)
class Summary:
    """The mean score of one variant in one cell of the comparison.

    Attributes:
        task, metric, adapter, placement, device, time_s: As in the measurements.
        n: Number of chip instances.
        mean: Mean over trainings and instances.
        low, high: 95 % interval of the mean; None with one instance or equal scores.
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
        task, metric, device, time_s: As in the measurements.
        baseline, adapter: The two variants; the difference is adapter - baseline.
        n: Number of chip instances on which both were measured.
        mean: Mean of the differences; None without a pair.
        low, high: 95 % interval of the mean; None with fewer than two instances or if the
            differences are equal.
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
        return "better" if (self.low > 0) != lower_is_better(self.metric) else "worse"


def variants(measurements: Iterable[Measurement]) -> list[Variant]:
    """Return the variants that were measured, in order of first appearance."""
    return list(dict.fromkeys(Variant(cell.adapter, cell.placement) for cell in measurements))


def summarise(measurements: Iterable[Measurement]) -> list[Summary]:
    """Return mean and 95 % interval over the trainings and chip instances of every cell.

    Measurements may be in any order; the summaries are in order of first appearance.

    Example:
        >>> cells = [
        ...     Measurement("reviews", "accuracy", "grasp", 0, "digital", "pcm", 0.0, i, i, score)
        ...     for i, score in enumerate([0.80, 0.82])
        ... ]
        >>> [(summary.n, round(summary.mean, 2)) for summary in summarise(cells)]
        [(2, 0.81)]
    """
    groups: dict[tuple[str, str, str, str, str, float], dict[Repetition, float]] = defaultdict(dict)
    for cell in measurements:
        where = (cell.task, cell.metric, cell.adapter, cell.placement, cell.device, cell.time_s)
        groups[where][_repetition(cell)] = cell.value
    summaries = []
    for where, values in groups.items():
        table = complete_table(values)
        trainings, chips = table.shape
        worst = 100 - TAIL if lower_is_better(where[1]) else TAIL
        tail = float(np.percentile(table, worst)) if chips > 1 else None
        summaries.append(Summary(*where, chips, *estimate(table)[:3], trainings, tail))
    return summaries


def _repetition(cell: Measurement) -> Repetition:
    return cell.training, (cell.repeat, cell.seed)


def paired_differences(
    measurements: Iterable[Measurement], baseline: Variant, adapter: Variant
) -> list[PairedDifference]:
    """Return the difference adapter - baseline of every cell, paired by training and chip.

    Two measurements are a pair if they agree in task, metric, training, device, time, repeat and
    seed; the placements may differ, and those without a partner do not count. Measurements may be
    in any order, and cells are in order of first appearance.

    Example:
        >>> cells = [
        ...     Measurement("reviews", "accuracy", name, 0, "digital", "pcm", 0.0, i, i, score + i)
        ...     for name, score in [("grasp", 0.5), ("lora", 0.75)]
        ...     for i in range(2)
        ... ]
        >>> [difference.mean for difference in paired_differences(cells, *variants(cells))]
        [0.25]
    """
    cells: dict[tuple[str, str, str, float], dict[Variant, dict[Repetition, float]]] = {}
    for cell in measurements:
        variant = Variant(cell.adapter, cell.placement)
        if variant in (baseline, adapter):
            where = (cell.task, cell.metric, cell.device, cell.time_s)
            values = cells.setdefault(where, {baseline: {}, adapter: {}})
            values[variant][_repetition(cell)] = cell.value
    differences = []
    for where, values in cells.items():
        subtracted = values[baseline]
        pairs = {k: v - subtracted[k] for k, v in values[adapter].items() if k in subtracted}
        table = complete_table(pairs) if pairs else np.empty((1, 0))
        found: tuple[float | None, float | None, float | None, float | None] = (
            estimate(table) if pairs else (None, None, None, None)
        )
        trainings, chips = table.shape
        differences.append(
            PairedDifference(*where, baseline, adapter, chips, *found, trainings=trainings)
        )
    return differences


def averaged(measurements: Iterable[Measurement]) -> list[Measurement]:
    """Return the mean over devices and times of each variant's training and chip number.

    The chips of one number, one of each device, count as one: they have the same seed. Means are at
    0 s on the device "all". Where a measurement is missing there is none.

    Example:
        >>> cells = [
        ...     Measurement("reviews", "accuracy", "grasp", 0, "digital", device, 0.0, 0, 7, score)
        ...     for device, score in [("pcm", 0.5), ("rram", 0.75)]
        ... ]
        >>> [(cell.device, cell.value) for cell in averaged(cells)]
        [('all', 0.625)]
    """
    places: dict[tuple[str, str], set[tuple[str, float]]] = defaultdict(set)
    found: dict[Measurement, dict[tuple[str, float], float]] = defaultdict(dict)
    for cell in measurements:
        place = (cell.device, cell.time_s)
        places[cell.task, cell.metric].add(place)
        found[replace(cell, device="all", time_s=0.0, value=0.0)][place] = cell.value
    return [
        replace(cell, value=statistics.fmean(values.values()))
        for cell, values in found.items()
        if len(values) == len(places[cell.task, cell.metric])
    ]


def holm_corrected(differences: Sequence[PairedDifference]) -> list[PairedDifference]:
    """Return differences with their p-values corrected by `holm`.

    They are the family that is read together, all differences of a task and metric; those without
    a p-value do not count.
    """
    corrected = iter(holm([d.p_value for d in differences if d.p_value is not None]).tolist())
    return [d if d.p_value is None else replace(d, p_holm=next(corrected)) for d in differences]


class Estimate(NamedTuple):
    """A mean, its interval and a p-value; see `estimate` for where they are None."""

    mean: float
    low: float | None
    high: float | None
    p_value: float | None


def estimate(values: ArrayLike) -> Estimate:
    """Return mean, 95 % interval and the p-value of a zero mean, of values or of a crossed table.

    Of n independent values: ``mean +- t(0.975, n - 1) * s / sqrt(n)``, with s the standard
    deviation of the sample. In a table the value of training i on chip j is
    ``mu + a_i + b_j + e_ij``, with independent effects of the training, of the chip and of both
    together; see `mean_error`. Equal values have no interval, and p = 1: accuracies are multiples
    of one row, so that few chips have equal ones by chance (docs/method.md, "Means and intervals").

    Args:
        values: Shape (n,), or (I, J): I trainings, J chip instances. One chip has no interval and
            no p-value.

    Raises:
        ValueError: `values` is empty.

    Example:
        >>> round(estimate([1.0, 2.0, 3.0]).high, 3)  # 2 + 4.3027 / sqrt(3)
        4.484
        >>> interval = estimate([[0.80, 0.82, 0.84], [0.81, 0.83, 0.85]])
        >>> round(interval.mean, 3), round(interval.low, 3), round(interval.high, 3)
        (0.825, 0.782, 0.868)
    """
    table = np.atleast_2d(np.asarray(values, dtype=float))
    if table.size == 0:
        raise ValueError("`values` must not be empty.")
    trainings, chips = table.shape
    numbers = table.ravel().tolist()
    mean = statistics.mean(numbers)
    if chips == 1:
        return Estimate(mean, None, None, None)
    if np.ptp(table) <= _ROUNDING * np.abs(table).max():
        return Estimate(mean, None, None, 1.0)
    error, freedom = statistics.stdev(numbers) / math.sqrt(chips), chips - 1.0
    if trainings > 1:
        error, freedom = table_error(table).tolist()
    half, p_value = float(half_widths(error, freedom)), 2 * stats.t.sf(abs(mean) / error, freedom)
    return Estimate(mean, mean - half, mean + half, float(p_value))


class MeanSquares(NamedTuple):
    """Mean squares of trainings, of chips, and of the rest, of two-way tables."""

    training: NDArray[np.float64]
    chip: NDArray[np.float64]
    rest: NDArray[np.float64]


def mean_squares(tables: NDArray[np.float64]) -> MeanSquares:
    """Return the mean squares of tables of I trainings and J chips, of shape (..., I, J)."""
    trainings, chips = tables.shape[-2:]
    by_training, by_chip = tables.mean(-1), tables.mean(-2)
    mean = tables.mean((-1, -2))[..., None, None]
    rest = tables - by_training[..., :, None] - by_chip[..., None, :] + mean
    return MeanSquares(
        chips * by_training.var(-1, ddof=1),
        trainings * by_chip.var(-1, ddof=1),
        (rest**2).sum((-1, -2)) / ((trainings - 1) * (chips - 1)),
    )


def mean_error(squares: MeanSquares, trainings: int, chips: int) -> NDArray[np.float64]:
    """Return the standard error of the mean of crossed tables, and its degrees of freedom.

    ``(MS_A + MS_B - MS_E) / (I J)`` is the unbiased estimate of the variance of the mean, where A
    are the I trainings, B the J chips and E the rest; its degrees of freedom are Satterthwaite's.
    Where trainings and chips have little effect, it can be close to zero or negative by chance.
    The estimate is therefore at least that of I J independent values, which then has I J - 1
    degrees of freedom.

    For normally distributed effects of any ratio the intervals contain the true mean with a
    probability of 93.2 to 97.4 % with 3 trainings and 5 chips, of 94.4 to 97.4 % with 5 of each,
    and of 89.4 to 97.4 % with 2 trainings and 5 chips (simulated; see docs/method.md).

    Args:
        squares: From `mean_squares`, of shape (...).
        trainings, chips: I and J.

    Returns:
        Shape (2, ...).

    Source:
        Searle, Casella and McCulloch, Variance Components (Wiley, 1992), chapter 4; Satterthwaite,
        Biometrics Bulletin 2, 110 (1946).
    """
    count = trainings * chips
    freedoms = (trainings - 1, chips - 1, (trainings - 1) * (chips - 1))
    pairs = tuple(zip(squares, freedoms, strict=True))
    independent = sum(square * freedom for square, freedom in pairs) / (count - 1)
    variance = squares.training + squares.chip - squares.rest
    parts = np.maximum(sum(square**2 / freedom for square, freedom in pairs), np.finfo(float).tiny)
    satterthwaite = np.maximum(variance**2 / parts, min(freedoms))
    freedom = np.where(variance > independent, satterthwaite, count - 1)
    return np.stack([np.sqrt(np.maximum(variance, independent) / count), freedom])


def table_error(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the standard error of the mean of a crossed table, and its degrees of freedom.

    See `mean_error`.
    """
    # The power of two of the largest value: the fourth power of a perplexity may overflow.
    exponent = np.frexp(np.abs(table).max())[1]
    error, freedom = mean_error(mean_squares(np.ldexp(table, -exponent)), *table.shape)
    return np.stack([np.ldexp(error, exponent), freedom])


def half_widths(error: ArrayLike, freedom: ArrayLike) -> NDArray[np.float64]:
    """Return the half widths of the 95 % intervals of means with these standard errors."""
    return stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * error


def complete_table(values: Mapping[Repetition, float]) -> NDArray[np.float64]:
    """Return the largest complete table of trainings and chips, of shape (I, J).

    It has the first I trainings, and the chips on which all of these were measured; a run that is
    interrupted while it grows has further values, which are ignored until they are complete.

    Args:
        values: By training and chip, at least one.

    Example:
        >>> complete_table({(0, (0, 7)): 0.8, (0, (1, 8)): 0.9, (1, (0, 7)): 0.7}).tolist()
        [[0.8, 0.9]]
    """
    by_training: dict[int, dict[tuple[int, int], float]] = {}
    for (training, chip), value in sorted(values.items()):
        by_training.setdefault(training, {})[chip] = value
    rows = list(by_training.values())
    tables = []
    for count in range(1, len(rows) + 1):
        chips = [chip for chip in rows[0] if all(chip in row for row in rows[:count])]
        tables.append([[row[chip] for chip in chips] for row in rows[:count]])
    return np.array(max(tables, key=lambda table: len(table) * len(table[0])))


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
