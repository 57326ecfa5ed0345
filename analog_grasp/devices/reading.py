"""What a card says of one moment: the terms that both ways of reading a tile compute with."""

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.curve import Curve, SpreadCurve
from analog_grasp.devices.sections import (
    LogarithmicRead,
    PowerLawDrift,
    Read,
    RelativeRead,
    RelaxationDrift,
)
from analog_grasp.devices.sections import TabulatedDrift as Table

FORMS = ("polynomial", "logarithm", "power", "saturation")
COEFFICIENTS = 8
"""Where a piece's coefficients begin in its row of `Reading.curves`."""

Weighted = tuple[tuple[float, Curve], ...]


@dataclass(frozen=True)
class Level:
    """Weighted sums of curves: the mean shift and the spread of conductances about g + shift."""

    spreads: Weighted
    shifts: Weighted


def level(card: DeviceCard, time: float) -> Level:
    """The level of conductance before power-law drift or relaxation, which go on top."""
    table = card.drift.table if isinstance(card.drift, Table) else ()
    if not table or time <= table[0].time:
        return Level(() if card.programming is None else ((1.0, card.programming),), ())
    after = next((i for i, row in enumerate(table) if time <= row.time), len(table) - 1)
    rows = [(1.0, table[after])]
    if time < table[after].time:
        before = table[after - 1]
        fraction = math.log(time / before.time) / math.log(table[after].time / before.time)
        rows = [(1.0 - fraction, before), (fraction, table[after])]
    spreads: Weighted = tuple(rows)
    if card.programming is None:
        # Programmed exactly, a device still relaxes by what the spread has grown since.
        spreads += ((-1.0, table[0]),)
    return Level(spreads, tuple((part, row.shift) for part, row in rows if row.shift is not None))


def growth(drift: PowerLawDrift, time: float) -> float:
    """ln((t + t0) / t0), which an exponent nu multiplies."""
    return math.log(time + drift.t0) - math.log(drift.t0)


def relaxation(drift: RelaxationDrift, time: float) -> tuple[float, float]:
    """Mean and spread of the relaxation, µS; none at t = 0."""
    if time == 0:
        return 0.0, 0.0
    mean, std = (a + b * math.log(time) for a, b in (drift.mean, drift.std))
    return mean, max(std, 0.0)


def read_strength(read: Read, time: float) -> float:
    """The time's factor of the accumulated read noise; k is part of it."""
    age = time + read.t0 if isinstance(read, RelativeRead) else time
    # The difference of logarithms stays finite where the ratio of the times would not.
    logarithm = math.log(age + read.t_read) - math.log(2 * read.t_read)
    k = read.k if isinstance(read, LogarithmicRead) else 1.0
    return k * math.sqrt(max(logarithm, 0.0))


@dataclass(frozen=True, eq=False)
class Reading:
    """A card at one time in numbers, for the fused kernel.

    Attributes:
        curves: a row a piece, of shape (pieces, 24): the weight of its curve, g_max where the
            variable is u and else 0, the curve's lowest value, the form's index, `below`, `min`,
            `max`, the number of coefficients, and these. A curve begins with its last piece.
        starts: where each sum of curves begins and the last one ends, of shape (7,): spread,
            shift, mean and spread of nu, Q, short-term spread.
        numbers: growth, mean and spread of relaxation, strength of the read noise, the least
            conductance programmed, and the least and the largest read, of shape (7,).
        power_law: whether there are exponents nu.
        logarithmic: whether the read noise is that of `LogarithmicRead`.
    """

    curves: NDArray[np.float64]
    starts: NDArray[np.int64]
    numbers: NDArray[np.float32]
    power_law: bool
    logarithmic: bool


@functools.lru_cache(maxsize=256)
def encode(card: DeviceCard, time: float) -> Reading:
    """A card at one time in numbers."""
    drift, read, g_max = card.drift, card.read, card.conductance.g_max
    now = level(card, time)
    sums: list[Weighted] = [now.spreads, now.shifts, (), (), (), ()]
    lowest = -math.inf if card.conductance.mapping == "signed" else 0.0
    numbers = [0.0, 0.0, 0.0, 0.0, lowest, lowest, math.inf]
    if isinstance(drift, PowerLawDrift) and time > 0:
        sums[2:4] = [((1.0, drift.nu_mean),), ((1.0, drift.nu_std),)]
        numbers[0] = growth(drift, time)
    if isinstance(drift, RelaxationDrift) and time > 0:
        numbers[1:3] = relaxation(drift, time)
        numbers[5:7] = [card.conductance.g_min, g_max]
    if read is not None:
        numbers[3] = read_strength(read, time)
    if isinstance(read, RelativeRead):
        sums[4] = ((1.0, read.q),)
    if card.short_term is not None:
        sums[5] = ((1.0, card.short_term),)
    floors = (0.0, -math.inf, -math.inf, -math.inf, 0.0, 0.0)
    rows = [
        [row for part, curve in one for row in _rows(part, curve, g_max, floor)]
        for one, floor in zip(sums, floors, strict=True)
    ]
    return Reading(
        curves=np.array([row for one in rows for row in one], np.float64).reshape(-1, 24),
        starts=np.cumsum([0, *map(len, rows)], dtype=np.int64),
        numbers=np.array(numbers, np.float32),
        power_law=bool(sums[2]),
        logarithmic=isinstance(read, LogarithmicRead),
    )


def _rows(part: float, curve: Curve, g_max: float, floor: float) -> list[list[float]]:
    """The rows of one curve of a weighted sum."""
    if isinstance(curve, SpreadCurve):
        part *= 1.0 if curve.reference_g_max is None else g_max / curve.reference_g_max
    return [
        [
            part,
            g_max if curve.variable == "u" else 0.0,
            floor,
            FORMS.index(piece.form),
            math.inf if piece.below is None else piece.below,
            -math.inf if piece.min is None else piece.min,
            math.inf if piece.max is None else piece.max,
            len(piece.coefficients),
            *piece.coefficients,
            *[0.0] * (16 - len(piece.coefficients)),
        ]
        for piece in reversed(curve.pieces)
    ]
