"""Conductances of a card at a drift time: formulas, kernel parameters and moments.

The formulas take NumPy's arrays and torch's tensors. The moments serve tables that are shown before
torch is imported: in place of the random streams of `analog_grasp.devices.noise_model` there is one
fixed set of 2,039 deviates, with which standard deviations agree with those of large samples to
about 1 %.
"""

import functools
import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.fields import Curve, StdCurve, namespace
from analog_grasp.devices.schema import (
    LogarithmicRead,
    PowerLawDrift,
    Read,
    RelativeRead,
    RelaxationDrift,
    TabulatedDrift,
)
from analog_grasp.kernels import FIRST_COEFFICIENT, FORMS, MAX_COEFFICIENTS, DeviceParameters

type Floats = NDArray[np.float64]

CurveSum = tuple[tuple[float, Curve], ...]
"""A weighted sum of curves."""

# A prime, and a multiplier whose lattice (1, a, a^2) fills the unit cube evenly.
_POINTS = 2039
_MULTIPLIER = 889


class StateCurves(NamedTuple):
    """The distribution of conductances before power-law drift or relaxation.

    Attributes:
        stds: Standard deviation, a function of the mean g + shift(g).
        shifts: Shift of the mean, a function of the target g.
    """

    stds: CurveSum
    shifts: CurveSum


def state_curves(card: DeviceCard, time: float) -> StateCurves:
    """Return the curves of the programmed state, or of the table's state at a time, s."""
    drift, rows = card.drift, [(1.0, card.programming)]
    removed: CurveSum = ()
    if isinstance(drift, TabulatedDrift) and time > drift.table[0].time:
        table = drift.table
        after = next((i for i, row in enumerate(table) if time <= row.time), len(table) - 1)
        rows = [(1.0, table[after])]
        held = time >= table[after].time and drift.beyond == "hold"
        if not held and time != table[after].time:
            before = table[after - 1]
            fraction = math.log(time / before.time) / math.log(table[after].time / before.time)
            rows = [(1.0 - fraction, before), (fraction, table[after])]
        if card.programming is None:
            # Without programming noise a device relaxes by the growth of the standard deviation.
            removed = ((-1.0, table[0]),)
    known = [(weight, row) for weight, row in rows if row is not None]
    shifts = tuple((weight, row.shift) for weight, row in known if row.shift is not None)
    return StateCurves((*known, *removed), shifts)


def only(curve: Curve | None) -> CurveSum:
    """Return a curve as a sum, which is empty for None."""
    return () if curve is None else ((1.0, curve),)


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


def summed(card: DeviceCard, curves: CurveSum, g: Any) -> Any:
    """Return a weighted sum of curves at conductances `g`, µS."""
    total, xp = namespace(g).zeros_like(g), namespace(g)
    for weight, curve in curves:
        values = curve.at(g, card.conductance.g_max)
        # torch rounds the product and the sum at once.
        total = total + weight * values if xp is np else xp.add(total, values, alpha=weight)
    return total


def state_moments(card: DeviceCard, g: Any, time: float) -> tuple[Any, Any]:
    """Return mean and standard deviation, µS, of targets `g` before power law or relaxation.

    A standard deviation that falls with time ends at 0.
    """
    state = state_curves(card, time)
    mean = g + summed(card, state.shifts, g)
    return mean, namespace(g).clip(summed(card, state.stds, mean), 0.0, None)


def clipped(card: DeviceCard, g: Any) -> Any:
    """Return conductances of at least 0, except under the mapping "signed"."""
    return g if card.conductance.mapping == "signed" else namespace(g).clip(g, 0.0, None)


def exponents(drift: PowerLawDrift, g: Any, g_max: float, z: Any) -> Any:
    """Return the drift exponents nu of devices with targets `g`, µS, from deviates."""
    return abs(z * drift.nu_std.at(g, g_max) + drift.nu_mean.at(g, g_max))


def drifted(card: DeviceCard, g: Any, coefficients: Any, time: float) -> Any:
    """Return programmed conductances after power-law drift or relaxation, by its coefficients."""
    drift = card.drift
    if isinstance(drift, PowerLawDrift):
        return namespace(g).exp(coefficients * -drift_growth(drift, time)) * g
    if isinstance(drift, RelaxationDrift):
        mean, std = relaxation(drift, time)
        return coefficients * std + mean + g
    return g


def with_read_noise(card: DeviceCard, g: Any, programmed: Any, z: Any, time: float) -> Any:
    """Return conductances read at a time, with accumulated 1/f noise of the deviates `z`."""
    read, noise, xp = card.read, z * read_factor(card.read, time), namespace(g)
    if read is not None:
        if isinstance(read, LogarithmicRead):
            g = g + noise * xp.log10(xp.clip(g, 1.0, None))
        else:
            # Read noise of a tabulated card depends on the present state.
            base = g if isinstance(card.drift, TabulatedDrift) else programmed
            g = g * (noise * xp.clip(read.q.at(base, card.conductance.g_max), 0.0, None) + 1.0)
    g = clipped(card, g)
    if isinstance(card.drift, RelaxationDrift) and time > 0:
        g = xp.clip(g, card.conductance.g_min, card.conductance.g_max)
    return g


@functools.lru_cache(maxsize=32)
def device_parameters(card: DeviceCard, time: float) -> DeviceParameters:
    """Return a card at a time, s since programming, as parameters of the compiled kernel."""
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
    nu = (drift.nu_mean, drift.nu_std) if isinstance(drift, PowerLawDrift) else (None, None)
    q = read.q if isinstance(read, RelativeRead) else None
    sums = [(state.shifts, -math.inf), (state.stds, 0.0), (only(nu[0]), -math.inf)]
    sums += [(only(nu[1]), -math.inf), (only(q), 0.0), (only(card.short_term), 0.0)]
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


def conductance_moments(
    card: DeviceCard, fractions: Sequence[float], time: float
) -> tuple[Floats, Floats]:
    """Return mean and standard deviation, µS, of single devices as read at a time.

    Args:
        card: The device; drift compensation is not applied.
        fractions: Targets, as fractions of the range from g_min to g_max, ``(n,)``.
        time: Time since programming, s.

    Returns:
        Mean and standard deviation, each ``(n,)``.

    Example:
        >>> mean, std = conductance_moments(DeviceCard.load("gaussian"), [0.5], 0.0)
        >>> mean.round(3).tolist(), std.round(3).tolist()
        ([12.5], [1.25])
    """
    low, high = card.conductance.g_min, card.conductance.g_max
    mean, variance, _ = _moments(card, low + np.asarray(fractions) * (high - low), time)
    return mean, np.sqrt(variance)


def weight_std(card: DeviceCard, values: Sequence[float], time: float) -> Floats:
    """Return the standard deviation of stored values as read back at a time.

    This is the `std` of `analog_grasp.devices.profile.profile`, for a few values.

    Args:
        card: The device.
        values: Stored values relative to the largest, in [-1, 1], ``(n,)``, as is the result.
        time: Time since programming, s.

    Example:
        >>> weight_std(DeviceCard.load("gaussian:0.1"), [-1.0, 0.5], 0.0).round(3).tolist()
        [0.1, 0.1]
    """
    section, v = card.conductance, np.asarray(values, np.float64)
    span = section.g_max - section.g_min
    if section.mapping == "pair":
        sides = [section.g_min + span * np.maximum(side * v, 0.0) for side in (1, -1)]
    elif section.mapping == "single":
        sides = [section.g_min + span * (v + 1.0) / 2.0]
        span /= 2.0
    else:
        sides = [span * v]
    variances = [sum(_moments(card, side, time)[1:]) for side in sides]
    return np.sqrt(sum(variances)) / span


def _moments(card: DeviceCard, targets: Floats, time: float) -> tuple[Floats, Floats, Floats]:
    """Return mean and variance of conductances, and their mean variance from read to read."""
    g = _read(card, targets[:, None], time)
    short_term = summed(card, only(card.short_term), g)
    mean, square, each_read = g.mean(1), (g**2).mean(1), (short_term**2).mean(1)
    if card.stuck is not None:
        ends = np.array([card.conductance.g_min, card.conductance.g_max])
        parts = np.array([card.stuck.off, card.stuck.on])
        healthy = 1.0 - parts.sum()
        mean = healthy * mean + parts @ ends
        square = healthy * square + parts @ ends**2
        if card.short_term is not None:
            at_ends = card.short_term.at(ends, card.conductance.g_max)
            each_read = healthy * each_read + parts @ at_ends**2
    return mean, np.maximum(square - mean**2, 0.0), each_read


def _read(card: DeviceCard, targets: Floats, time: float) -> Floats:
    """Return conductances as read, ``(n, 2039)``, of targets ``(n, 1)``."""
    z_programming, z_drift, z_read = _deviates()
    mean, std = state_moments(card, targets, time)
    programmed = clipped(card, std * z_programming + mean)
    if isinstance(card.drift, PowerLawDrift):
        z_drift = exponents(card.drift, targets, card.conductance.g_max, z_drift)
    g = drifted(card, programmed, z_drift, time)
    read: Floats = with_read_noise(card, g, programmed, z_read, time)
    return read


@functools.cache
def _deviates() -> Floats:
    """Return deviates of programming, drift and read noise, ``(3, 2039)``, exactly uncorrelated."""
    normal = NormalDist()
    quantiles = np.array([normal.inv_cdf((i + 0.5) / _POINTS) for i in range(_POINTS)])
    index = np.arange(_POINTS)
    lattice = np.stack([index, index * _MULTIPLIER, index * _MULTIPLIER**2]) % _POINTS
    z = quantiles[lattice]
    z -= z.mean(1, keepdims=True)
    return np.linalg.solve(np.linalg.cholesky(z @ z.T / _POINTS), z)
