"""The formulas of a card's sections at one drift time, and the kernel parameters made of them."""

import functools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.curve import Curve, StdCurve
from analog_grasp.devices.schema import (
    LogarithmicRead,
    PowerLawDrift,
    Read,
    RelativeRead,
    RelaxationDrift,
    TabulatedDrift,
)
from analog_grasp.kernels.parameters import (
    FIRST_COEFFICIENT,
    FORMS,
    MAX_COEFFICIENTS,
    DeviceParameters,
)

CurveSum = tuple[tuple[float, Curve], ...]
"""A weighted sum of curves."""


class StateCurves(NamedTuple):
    """The distribution of conductances before power-law drift or relaxation.

    Attributes:
        stds: Standard deviation, a function of the mean g + shift(g).
        shifts: Shift of the mean, a function of the target g.
    """

    stds: CurveSum
    shifts: CurveSum


def state_curves(card: DeviceCard, time: float) -> StateCurves:
    """Return the curves of the programmed state, or of the table's state at a time.

    Args:
        card: The device.
        time: Time since programming, s.
    """
    table = card.drift.table if isinstance(card.drift, TabulatedDrift) else ()
    if not table or time <= table[0].time:
        state = card.programming
        if state is None:
            return StateCurves((), ())
        return StateCurves(((1.0, state),), () if state.shift is None else ((1.0, state.shift),))
    after = next((i for i, row in enumerate(table) if time <= row.time), len(table) - 1)
    rows = [(1.0, table[after])]
    held = time >= table[after].time and card.drift.beyond == "hold"  # type: ignore[union-attr]
    if not held and time != table[after].time:
        before = table[after - 1]
        fraction = math.log(time / before.time) / math.log(table[after].time / before.time)
        rows = [(1.0 - fraction, before), (fraction, table[after])]
    stds: CurveSum = tuple(rows)
    if card.programming is None:
        # Without programming noise a device relaxes by the growth of the standard deviation.
        stds += ((-1.0, table[0]),)
    return StateCurves(
        stds, tuple((weight, row.shift) for weight, row in rows if row.shift is not None)
    )


def drift_growth(drift: PowerLawDrift, time: float) -> float:
    """Return ln((t + t0) / t0), the factor of the drift exponent nu."""
    return math.log(time + drift.t0) - math.log(drift.t0)


def relaxation(drift: RelaxationDrift, time: float) -> tuple[float, float]:
    """Return mean and standard deviation of the relaxation, µS; both 0 at t = 0."""
    if time == 0:
        return 0.0, 0.0
    mean, std = (a + b * math.log(time) for a, b in (drift.mean, drift.std))
    return mean, max(std, 0.0)


def read_factor(read: Read | None, time: float) -> float:
    """Return the time-dependent factor of the accumulated read noise, k included."""
    if read is None:
        return 0.0
    age = time + read.t0 if isinstance(read, RelativeRead) else time
    # A difference of logarithms stays finite where the ratio of the times would overflow.
    logarithm = math.log(age + read.t_read) - math.log(2 * read.t_read)
    k = read.k if isinstance(read, LogarithmicRead) else 1.0
    return k * math.sqrt(max(logarithm, 0.0))


@functools.lru_cache(maxsize=256)
def device_parameters(card: DeviceCard, time: float) -> DeviceParameters:
    """Return a card at a drift time as parameters of the compiled kernel.

    Args:
        card: The device.
        time: Time since programming, s.
    """
    drift, read, conductance = card.drift, card.read, card.conductance
    power_law = isinstance(drift, PowerLawDrift) and time > 0
    relaxes = isinstance(drift, RelaxationDrift) and time > 0
    factor = read_factor(read, time)
    lowest = -math.inf if conductance.mapping == "signed" else 0.0
    mean, std = relaxation(drift, time) if isinstance(drift, RelaxationDrift) else (0.0, 0.0)
    curves, points, starts = _encoded_curves(card, time)
    return DeviceParameters(
        curves,
        points,
        starts,
        np.array([starts[1] < starts[2], power_law or relaxes, factor > 0]),
        conductance.mapping == "pair",
        power_law,
        isinstance(read, LogarithmicRead),
        growth=np.float32(drift_growth(drift, time) if isinstance(drift, PowerLawDrift) else 0.0),
        relaxed_mean=np.float32(mean),
        relaxed_std=np.float32(std),
        read_factor=np.float32(factor),
        programmed_min=np.float32(lowest),
        read_min=np.float32(conductance.g_min if relaxes else lowest),
        read_max=np.float32(conductance.g_max if relaxes else math.inf),
        g_min=np.float32(conductance.g_min),
        g_max=np.float32(conductance.g_max),
        stuck_off=np.float32(card.stuck.off if card.stuck else 0.0),
        stuck_on=np.float32(card.stuck.on if card.stuck else 0.0),
    )


def _encoded_curves(
    card: DeviceCard, time: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Return `curves`, `points` and `starts` of `DeviceParameters`."""
    drift, read, state = card.drift, card.read, state_curves(card, time)
    sums: list[tuple[CurveSum, float]] = [(state.shifts, -math.inf), (state.stds, 0.0)]
    for curve, lowest in (
        (drift.nu_mean if isinstance(drift, PowerLawDrift) else None, -math.inf),
        (drift.nu_std if isinstance(drift, PowerLawDrift) else None, -math.inf),
        (read.q if isinstance(read, RelativeRead) else None, 0.0),
        (card.short_term, 0.0),
    ):
        sums.append((() if curve is None else ((1.0, curve),), lowest))
    points: list[tuple[float, float]] = []
    rows: list[list[float]] = []
    starts = [0]
    for curve_sum, lowest in sums:
        for weight, curve in curve_sum:
            rows += _rows(weight, curve, card.conductance.g_max, lowest, points)
        starts.append(len(rows))
    return (
        np.array(rows, np.float64).reshape(-1, FIRST_COEFFICIENT + MAX_COEFFICIENTS),
        np.array(points, np.float64).reshape(-1, 2),
        np.array(starts, np.int64),
    )


def _rows(
    weight: float, curve: Curve, g_max: float, lowest: float, points: list[tuple[float, float]]
) -> list[list[float]]:
    """Return the rows of one curve of a sum, and append its points to `points`."""
    if isinstance(curve, StdCurve):
        weight *= 1.0 if curve.reference_g_max is None else g_max / curve.reference_g_max
    rows = []
    for piece in reversed(curve.pieces):
        coefficients = piece.coefficients
        if piece.form == "points":
            coefficients = (len(points), len(points) + len(piece.points))
            points += piece.points
        rows.append(
            [
                weight,
                g_max if curve.variable == "u" else 0.0,
                lowest,
                FORMS.index(piece.form),
                math.inf if piece.below is None else piece.below,
                -math.inf if piece.min is None else piece.min,
                math.inf if piece.max is None else piece.max,
                len(coefficients),
                *coefficients,
                *[0.0] * (MAX_COEFFICIENTS - len(coefficients)),
            ]
        )
    return rows
