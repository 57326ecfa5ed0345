"""Intervals of a mean over trainings and chips, and p-values corrected for their number."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

CONFIDENCE = 0.95

type Repetition = tuple[int, tuple[int, int]]
"""Training, and the repeat and the seed of a chip instance."""


class Estimate(NamedTuple):
    """A mean, its interval and a p-value; None but for the mean where there is a single value."""

    mean: float
    low: float | None
    high: float | None
    p_value: float | None


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
    return _student(mean, statistics.stdev(values) / math.sqrt(len(values)), len(values) - 1)


def crossed_estimate(table: ArrayLike) -> Estimate:
    """Return mean, 95 % interval and the p-value of a zero mean, over trainings and chips.

    The value of training i on chip j is ``mu + a_i + b_j + e_ij``, with independent effects of the
    training, of the chip and of both together. See `mean_error` for the standard error of the mean
    and its degrees of freedom.

    Args:
        table: Shape (I, J): I trainings, J chip instances.

    Raises:
        ValueError: There are fewer than two trainings or fewer than two chips.

    Example:
        >>> interval = crossed_estimate([[0.80, 0.82, 0.84], [0.81, 0.83, 0.85]])
        >>> round(interval.mean, 3), round(interval.low, 3), round(interval.high, 3)
        (0.825, 0.782, 0.868)
    """
    values = np.asarray(table, dtype=float)
    if values.ndim != 2 or min(values.shape) < 2:
        raise ValueError(
            f"An interval over trainings and chips requires at least 2 of each; the values have "
            f"the shape {values.shape}."
        )
    # Exact, so that equal values have no deviation.
    mean = float(statistics.mean(values.ravel().tolist()))
    if np.ptp(values) == 0:
        return _student(mean, 0.0, 1.0)
    return _student(mean, *mean_error(mean_squares(values), *values.shape).tolist())


class MeanSquares(NamedTuple):
    """Mean squares of trainings, of chips, and of the rest, of two-way tables."""

    training: NDArray[np.float64]
    chip: NDArray[np.float64]
    rest: NDArray[np.float64]


def mean_squares(tables: NDArray[np.float64]) -> MeanSquares:
    """Return the mean squares of tables of I trainings and J chips.

    Args:
        tables: Shape (..., I, J).
    """
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


def half_widths(error: ArrayLike, freedom: ArrayLike) -> NDArray[np.float64]:
    """Return the half widths of the 95 % intervals of means with these standard errors."""
    return stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * error


def _student(mean: float, error: float, freedom: float) -> Estimate:
    if error == 0.0:
        return Estimate(mean, mean, mean, 1.0 if mean == 0.0 else 0.0)
    half = float(half_widths(error, freedom))
    return Estimate(
        mean, mean - half, mean + half, 2 * float(stats.t.sf(abs(mean) / error, freedom))
    )


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
    for (training, chip), value in values.items():
        by_training.setdefault(training, {})[chip] = value
    rows = [by_training[training] for training in sorted(by_training)]
    tables = []
    for count in range(1, len(rows) + 1):
        chips = sorted(set.intersection(*(set(row) for row in rows[:count])))
        tables.append([[row[chip] for chip in chips] for row in rows[:count]])
    return np.array(max(tables, key=lambda table: len(table) * len(table[0])))


def table_estimate(table: NDArray[np.float64]) -> Estimate:
    """Return mean and interval over what varies: chips, or trainings and chips."""
    if len(table) == 1 or table.shape[1] == 1:
        values = table[0] if len(table) == 1 else [table.mean()]
        return estimate([float(value) for value in values])
    return crossed_estimate(table)


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
