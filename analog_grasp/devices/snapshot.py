"""What a card says of one moment: the terms that both ways of reading a tile compute with."""

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.curve import Curve, SpreadCurve
from analog_grasp.devices.schema import (
    LogarithmicRead,
    PowerLawDrift,
    Read,
    RelativeRead,
    RelaxationDrift,
)
from analog_grasp.devices.schema import TabulatedDrift as Table
from analog_grasp.kernels.parameters import FORMS, DeviceParameters

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
    held = time >= table[after].time and card.drift.beyond == "hold"  # type: ignore[union-attr]
    if not held and time != table[after].time:
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


@functools.lru_cache(maxsize=256)
def encode(card: DeviceCard, time: float) -> DeviceParameters:
    """A card at one time in numbers."""
    drift, read, conductance = card.drift, card.read, card.conductance
    power_law = isinstance(drift, PowerLawDrift) and time > 0
    relaxes = isinstance(drift, RelaxationDrift) and time > 0
    strength = 0.0 if read is None else read_strength(read, time)
    lowest = -math.inf if conductance.mapping == "signed" else 0.0
    mean, std = relaxation(drift, time) if isinstance(drift, RelaxationDrift) else (0.0, 0.0)
    curves, starts = _encoded_curves(card, time)
    return DeviceParameters(
        curves,
        np.empty((0, 2)),
        starts,
        np.array([starts[1] < starts[2], power_law or relaxes, strength > 0]),
        conductance.mapping == "pair",
        power_law,
        isinstance(read, LogarithmicRead),
        growth=np.float32(growth(drift, time) if isinstance(drift, PowerLawDrift) else 0.0),
        relaxed_mean=np.float32(mean),
        relaxed_std=np.float32(std),
        read_factor=np.float32(strength),
        programmed_min=np.float32(lowest),
        read_min=np.float32(conductance.g_min if relaxes else lowest),
        read_max=np.float32(conductance.g_max if relaxes else math.inf),
        g_min=np.float32(conductance.g_min),
        g_max=np.float32(conductance.g_max),
        stuck_off=np.float32(card.stuck.off if card.stuck else 0.0),
        stuck_on=np.float32(card.stuck.on if card.stuck else 0.0),
    )


def _encoded_curves(card: DeviceCard, time: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """`Reading.curves` and `Reading.starts`."""
    drift, read, now = card.drift, card.read, level(card, time)
    sums: list[tuple[Weighted, float]] = [(now.shifts, -math.inf), (now.spreads, 0.0)]
    for curve, lowest in (
        (drift.nu_mean if isinstance(drift, PowerLawDrift) else None, -math.inf),
        (drift.nu_std if isinstance(drift, PowerLawDrift) else None, -math.inf),
        (read.q if isinstance(read, RelativeRead) else None, 0.0),
        (card.short_term, 0.0),
    ):
        sums.append((() if curve is None else ((1.0, curve),), lowest))
    g_max = card.conductance.g_max
    rows = [
        [row for part, curve in one for row in _rows(part, curve, g_max, lowest)]
        for one, lowest in sums
    ]
    flat = np.array([row for one in rows for row in one], np.float64).reshape(-1, 24)
    return flat, np.cumsum([0, *map(len, rows)], dtype=np.int64)


def _rows(part: float, curve: Curve, g_max: float, lowest: float) -> list[list[float]]:
    """The rows of one curve of a weighted sum."""
    if isinstance(curve, SpreadCurve):
        part *= 1.0 if curve.reference_g_max is None else g_max / curve.reference_g_max
    return [
        [
            part,
            g_max if curve.variable == "u" else 0.0,
            lowest,
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
