"""Mean and standard deviation of a card's devices, computed with NumPy alone.

For tables that are shown before torch is imported. The formulas are those of the noise model
(`analog_grasp.devices.noise_model`). In place of its random streams there is one fixed set of 2,039
deviates; the standard deviations agree with those of large samples to about 1 %.
"""

import functools
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.card_at_time import (
    CurveSum,
    drift_growth,
    read_factor,
    relaxation,
    state_curves,
)
from analog_grasp.devices.schema import (
    LogarithmicRead,
    PowerLawDrift,
    RelaxationDrift,
    TabulatedDrift,
)

type Floats = NDArray[np.float64]

# A prime, and a multiplier whose lattice (1, a, a^2) fills the unit cube evenly.
_POINTS = 2039
_MULTIPLIER = 889


def conductance_moments(
    card: DeviceCard, fractions: Sequence[float], time: float
) -> tuple[Floats, Floats]:
    """Return mean and standard deviation, µS, of single devices as read at a time.

    Drift compensation is not applied.

    Args:
        card: The device.
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
        values: Stored values relative to the largest, in [-1, 1], ``(n,)``.
        time: Time since programming, s.

    Returns:
        Standard deviations relative to the largest stored value, ``(n,)``.

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
    short_term = _sum(card, () if card.short_term is None else ((1.0, card.short_term),), g)
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
    """Return conductances as read, ``(n, 2039)``, of targets ``(n, 1)``; see `CardNoiseModel`."""
    drift, read, g_max = card.drift, card.read, card.conductance.g_max
    lowest = -np.inf if card.conductance.mapping == "signed" else 0.0
    z_programming, z_drift, z_read = _deviates()
    state = state_curves(card, time)
    means = targets + _sum(card, state.shifts, targets)
    g = np.maximum(means + _sum(card, state.stds, means) * z_programming, lowest)
    programmed = g
    if isinstance(drift, PowerLawDrift) and time > 0:
        nu = np.abs(drift.nu_mean.at(targets, g_max) + drift.nu_std.at(targets, g_max) * z_drift)
        g = g * np.exp(-drift_growth(drift, time) * nu)
    elif isinstance(drift, RelaxationDrift):
        mean, std = relaxation(drift, time)
        g = g + mean + std * z_drift
    noise = read_factor(read, time) * z_read
    if isinstance(read, LogarithmicRead):
        g = g + noise * np.log10(np.maximum(g, 1.0))
    elif read is not None:
        base = g if isinstance(drift, TabulatedDrift) else programmed
        g = g * (1.0 + noise * np.maximum(read.q.at(base, g_max), 0.0))
    g = np.maximum(g, lowest)
    if isinstance(drift, RelaxationDrift) and time > 0:
        g = np.clip(g, card.conductance.g_min, g_max)
    return g


def _sum(card: DeviceCard, curves: CurveSum, g: Floats) -> Floats:
    """Return a weighted sum of curves at conductances `g`."""
    total = np.zeros_like(g)
    for weight, curve in curves:
        total += weight * curve.at(g, card.conductance.g_max)
    return total


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
