"""Plan of a study: how many trainings and chip instances to measure, given what is measured."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analog_grasp.study.config import StudyConfig
from analog_grasp.study.intervals import MeanSquares, half_widths, mean_error, mean_squares
from analog_grasp.study.records import Measurement
from analog_grasp.study.statistics import is_fraction

FIRST_CHIPS = 5
"""Chip instances per device that `until_ci` begins with: from fewer, its intervals cover less."""

# Share of a half width to which chips must be able to reduce it.
_NOTICEABLE = 0.95


class Plan(NamedTuple):
    """Number of trainings of each adapter, and of chip instances of each device."""

    trainings: int
    chips: Mapping[str, int]


class Place(NamedTuple):
    """A score that every chip instance of every device has."""

    metric: str
    adapter: str
    time_s: float


def make_plan(
    config: StudyConfig,
    devices: Sequence[str],
    places: Sequence[Place],
    measured: Iterable[Measurement],
    once: Iterable[str] = (),
) -> Plan:
    """Return how many trainings and chip instances to measure, given what is measured so far.

    These are `trainings` and `repeats`. With `until_ci`, at least `FIRST_CHIPS` chips, then more
    until the half width of every interval, of a mean or of a paired difference from the first
    adapter, is narrow enough or the limits are reached. What is drawn next is what narrows the
    widest interval of each device most, per cell that it adds: one more training, which every chip
    is measured with, or chips: as many as seem to be required, at most twice as many at once.
    Trainings are drawn where there are two or more, so that their variance can be estimated; chips
    only where they narrow the interval at all.

    The result follows from the first trainings and instances alone, so that the order of the work
    does not change it. Drawing ends at samples that happen to vary less, so that the intervals
    cover the true mean less often than 95 %: with one training as low as 90, 92 and 94 % when it
    begins with 3, 5 and 10 chips (simulated with normally distributed scores, at the half width
    where coverage is lowest).

    Args:
        config: Gives trainings, repeats, until_ci and the limits.
        devices: Names of the devices.
        places: The scores of a chip; those of the first adapter are the baseline.
        measured: The measurements.
        once: Adapters of which there is one training only, as they were saved before.

    Example:
        >>> make_plan(StudyConfig(), ["pcm"], [Place("accuracy", "grasp", 0.0)], [])
        Plan(trainings=1, chips={'pcm': 3})
    """
    run, trainings = config.run, config.training.trainings
    if run.until_ci is None:
        return Plan(trainings, dict.fromkeys(devices, run.repeats))
    limit = max(trainings, config.training.trainings_limit) if trainings > 1 else 1
    chips = dict.fromkeys(devices, max(run.repeats, min(FIRST_CHIPS, run.repeats_limit)))
    scores = _Scores(places, measured, frozenset(once))
    while True:
        tables = {device: scores.tables(device, trainings, n) for device, n in chips.items()}
        # A training concerns all devices: it is drawn when all of them are measured.
        if not all(tables.values()) and trainings < limit:
            return Plan(trainings, chips)
        widest = {d: max(found, key=_width) for d, found in tables.items() if found}
        wide = {d: _Variances.of(t) for d, t in widest.items() if _width(t) > run.until_ci}
        growing = {d: s for d, s in wide.items() if s.narrowed_by_chips(run.repeats_limit)}
        if trainings < limit and _training_gain(wide, chips) > _chip_gain(growing):
            trainings += 1
        elif growing:
            for device, variances in growing.items():
                most = min(2 * chips[device], run.repeats_limit)
                chips[device] = variances.chips_needed(run.until_ci, most)
        else:
            return Plan(trainings, chips)


class _Scores:
    """Measurements as tables of trainings and chips, in points for a fraction."""

    def __init__(
        self, places: Sequence[Place], measured: Iterable[Measurement], once: frozenset[str]
    ) -> None:
        self._places, self._once = places, once
        self._values: dict[tuple[str, Place], dict[tuple[int, int], float]] = {}
        for cell in measured:
            unit = 100.0 if is_fraction(cell.metric) else 1.0
            where = (cell.device, Place(cell.metric, cell.adapter, cell.time_s))
            self._values.setdefault(where, {})[cell.training, cell.repeat] = unit * cell.value

    def tables(self, device: str, trainings: int, chips: int) -> list[NDArray[np.float64]]:
        """Return the scores, and the differences from the first adapter; empty if incomplete."""
        scores: dict[Place, NDArray[np.float64]] = {}
        for place in self._places:
            known = self._values.get((device, place), {})
            rows = 1 if place.adapter in self._once else trainings
            wanted = [[(i, j) for j in range(chips)] for i in range(rows)]
            if not all(key in known for row in wanted for key in row):
                return []
            scores[place] = np.array([[known[key] for key in row] for row in wanted])
        first = self._places[0].adapter
        differences = []
        for place, table in scores.items():
            if place.adapter != first:
                baseline = scores[place._replace(adapter=first)]
                both = min(len(table), len(baseline))
                differences.append(table[:both] - baseline[:both])
        return [*scores.values(), *differences]


class _Variances(NamedTuple):
    """Variances by which a table's mean is expected to vary, for any number of values.

    Attributes:
        trainings, chips: Shape of the table.
        training, chip, rest: Variance of the effect of a training, of a chip, and of both
            together; with one training all of it is the chip's.
    """

    trainings: int
    chips: int
    training: float
    chip: float
    rest: float

    @classmethod
    def of(cls, table: NDArray[np.float64]) -> "_Variances":
        trainings, chips = table.shape
        if trainings == 1:
            return cls(trainings, chips, 0.0, float(table.var(ddof=1)) if chips > 1 else 0.0, 0.0)
        squares = mean_squares(table)
        return cls(
            trainings,
            chips,
            max(float(squares.training - squares.rest), 0.0) / chips,
            max(float(squares.chip - squares.rest), 0.0) / trainings,
            float(squares.rest),
        )

    def half_width(self, more_trainings: int = 0, more_chips: int = 0) -> float:
        """Return the half width that is expected of an interval over more values."""
        chips = self.chips + more_chips
        if self.trainings == 1:
            return float(half_widths(math.sqrt(self.chip / chips), chips - 1))
        trainings = self.trainings + more_trainings
        squares = (self.rest + chips * self.training, self.rest + trainings * self.chip, self.rest)
        expected = MeanSquares(*map(np.array, squares))
        return float(half_widths(*mean_error(expected, trainings, chips)))

    def narrowed_by_chips(self, most: int) -> bool:
        """Return whether so many chips are expected to narrow the interval noticeably."""
        return self.half_width(0, max(most - self.chips, 0)) < _NOTICEABLE * self.half_width()

    def chips_needed(self, half: float, most: int) -> int:
        """Return the number of chips from which the interval is expected to be narrow enough."""
        counts = range(self.chips + 1, most)
        return next((n for n in counts if self.half_width(0, n - self.chips) <= half), most)


def _width(table: NDArray[np.float64]) -> float:
    """Return the half width of the interval of a table; infinite with a single chip."""
    trainings, chips = table.shape
    if chips == 1:
        return math.inf
    if trainings > 1:
        return float(half_widths(*mean_error(mean_squares(table), *table.shape)))
    return float(half_widths(table.std(ddof=1) / math.sqrt(chips), chips - 1))


def _training_gain(wide: Mapping[str, _Variances], chips: Mapping[str, int]) -> float:
    """Return by how much a training narrows the widest intervals, per cell that it adds."""
    gain = sum(s.half_width() - s.half_width(more_trainings=1) for s in wide.values())
    return gain / sum(chips.values())


def _chip_gain(growing: Mapping[str, _Variances]) -> float:
    """Return by how much a chip of each device narrows its widest interval, per cell it adds."""
    gain = sum(s.half_width() - s.half_width(more_chips=1) for s in growing.values())
    return gain / sum(s.trainings for s in growing.values()) if growing else 0.0
