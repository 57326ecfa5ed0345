"""Reading a tile in one pass: programming, drift, read noise and back to weights, by rows."""

import numba
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from analog_grasp.devices.arithmetic import exp, log
from analog_grasp.devices.curve import LONGEST_SINGLE, SMALLEST
from analog_grasp.devices.random import (
    NORMAL_TABLE,
    Floats,
    fill_bits,
    fill_normal,
    parallel_kernel,
    row_key,
)
from analog_grasp.devices.reading import COEFFICIENTS, FORMS, Reading
from analog_grasp.devices.sections import ConductanceRange

F = np.float32
# The sums of curves in `Reading.starts`, and the purposes of the random numbers among the keys.
_SPREAD, _SHIFT, _NU_MEAN, _NU_STD, _Q, _SHORT_TERM = range(6)
_PROGRAMMING, _DRIFT, _READ, _STUCK = range(4)
_LOGARITHM, _POWER, _SATURATION = (
    FORMS.index(form) for form in ("logarithm", "power", "saturation")
)
_BLOCK = 16
"""Rows that share their scratch memory."""


@numba.njit(fastmath={"contract"})
def _piece(row: NDArray[np.float64], x: Floats, y: Floats) -> None:
    """One piece of a curve at every x; see `Piece`."""
    form, count = int(row[3]), int(row[7])
    c0, c1 = F(row[COEFFICIENTS]), F(row[COEFFICIENTS + 1])
    if form == _LOGARITHM:
        for o in range(x.size):
            y[o] = c1 * log(max(x[o], F(SMALLEST))) + c0
    elif form == _POWER:
        for o in range(x.size):
            y[o] = c0 * exp(c1 * log(max(x[o], F(SMALLEST))))
    elif form == _SATURATION:
        for o in range(x.size):
            y[o] = c0 - c0 * exp(-x[o] / c1)
    elif count > LONGEST_SINGLE:
        for o in range(x.size):
            wide, sum_ = np.float64(x[o]), 0.0
            for i in range(count - 1, -1, -1):
                sum_ = sum_ * wide + row[COEFFICIENTS + i]
            y[o] = F(sum_)
    else:
        y[:] = F(row[COEFFICIENTS + count - 1])
        for i in range(count - 2, -1, -1):
            c = F(row[COEFFICIENTS + i])
            for o in range(x.size):
                y[o] = y[o] * x[o] + c
    low, high = F(row[5]), F(row[6])
    for o in range(x.size):
        y[o] = min(max(y[o], low), high)


@numba.njit
def _sum(curves: NDArray[np.float64], g: Floats, scratch: Floats, out: Floats) -> None:
    """A weighted sum of curves at conductances `g`; see `Reading.curves`."""
    x, y, p = scratch[0, : g.size], scratch[1, : g.size], scratch[2, : g.size]
    out[:] = F(0.0)
    for r in range(curves.shape[0]):
        row = curves[r]
        if row[4] == np.inf:
            g_max = F(row[1])
            for o in range(g.size):
                x[o] = abs(g[o]) / g_max if g_max > 0 else g[o]
            _piece(row, x, y)
        else:
            below = F(row[4])
            _piece(row, x, p)
            for o in range(g.size):
                # Both loaded beforehand: a load that hangs on a condition becomes a branch.
                here, before = p[o], y[o]
                y[o] = here if x[o] < below else before
        if r + 1 == curves.shape[0] or curves[r + 1, 4] == np.inf:
            part, floor = F(row[0]), F(row[2])
            for o in range(g.size):
                out[o] += part * max(y[o], floor)


@numba.njit
def _normal(key: np.uint64, row: int, table: Floats, z: Floats) -> None:
    fill_normal(row_key(key + np.uint64(row)), table, z)


@numba.njit
def _stick(key: np.uint64, row: int, off: float, on: float, ends: Floats, g: Floats) -> None:
    """Put the stuck devices where they are stuck."""
    bits = np.empty(g.size, np.uint32)
    fill_bits(row_key(key + np.uint64(row)), bits)
    for o in range(g.size):
        u = F(bits[o] >> np.uint32(8)) * F(2.0**-24)
        g[o] = ends[0] if u < F(off) else (ends[1] if u >= F(1.0 - on) else g[o])


@numba.njit
def _targets(w: Floats, pair: bool, scale: F, offset: F, g_zero: F, a: Floats) -> None:
    """The conductances aimed at, of the device that holds the weight; last, that of an idle one."""
    for o in range(w.size):
        a[o] = (abs(w[o]) if pair else w[o] - offset) * scale + g_zero
    a[w.size] = g_zero


@numba.njit(fastmath={"contract"})
def _level(
    w: Floats, side: F, level: Floats, spread: Floats, z: Floats, lowest: F, g: Floats
) -> None:
    """The conductances programmed. An idle device is one whose side the weight is not on."""
    idle_level, idle_spread = level[w.size], spread[w.size]
    for o in range(w.size):
        idle, mean, std = w[o] * side < 0, level[o], spread[o]
        mean, std = (idle_level if idle else mean), (idle_spread if idle else std)
        g[o] = max(mean + std * z[o], lowest)


@numba.njit(fastmath={"contract"})
def _power_law(
    w: Floats, side: F, mean: Floats, std: Floats, z: Floats, growth: F, g: Floats, h: Floats
) -> None:
    idle_mean, idle_std = mean[w.size], std[w.size]
    for o in range(w.size):
        idle, nu_mean, nu_std = w[o] * side < 0, mean[o], std[o]
        nu_mean, nu_std = (idle_mean if idle else nu_mean), (idle_std if idle else nu_std)
        h[o] = g[o] * exp(-growth * abs(nu_mean + nu_std * z[o]))


@numba.njit(fastmath={"contract"})
def _logarithmic_read(strength: F, z: Floats, h: Floats) -> None:
    for o in range(h.size):
        h[o] += strength * z[o] * log(max(h[o], F(1.0))) * F(1.0 / np.log(10.0))


@numba.njit
def _read_row(
    row: int,
    w: Floats,
    pair: bool,
    scale: F,
    offset: F,
    ends: Floats,
    g_zero: F,
    curves: NDArray[np.float64],
    starts: NDArray[np.int64],
    numbers: Floats,
    power_law: bool,
    logarithmic: bool,
    keys: NDArray[np.uint64],
    stuck: Floats,
    table: Floats,
    scratch: Floats,
    out: Floats,
    variance: Floats,
) -> None:
    """One row of a tile; its devices' conductances live only in `scratch`."""
    growth, shift, relaxed, strength, lowest, low, high = numbers
    columns = w.size
    a, level, spread, nu_mean, nu_std = scratch[3], scratch[4], scratch[5], scratch[6], scratch[7]
    z, g, h = scratch[8, :columns], scratch[9, :columns], scratch[10, :columns]
    q, total = scratch[11, :columns], scratch[12, :columns]
    _targets(w, pair, scale, offset, g_zero, a)
    _sum(curves[starts[_SHIFT] : starts[_SHIFT + 1]], a, scratch, level)
    for o in range(columns + 1):
        level[o] += a[o]
    _sum(curves[starts[_SPREAD] : starts[_SPREAD + 1]], level, scratch, spread)
    if power_law:
        _sum(curves[starts[_NU_MEAN] : starts[_NU_MEAN + 1]], a, scratch, nu_mean)
        _sum(curves[starts[_NU_STD] : starts[_NU_STD + 1]], a, scratch, nu_std)
    for device in range(2 if pair else 1):
        side = F(0.0) if not pair else (F(1.0) if device == 0 else F(-1.0))
        if starts[_SPREAD] < starts[_SPREAD + 1]:
            _normal(keys[_PROGRAMMING, device], row, table, z)
        else:
            z[:] = F(0.0)
        _level(w, side, level, spread, z, lowest, g)
        if power_law:
            _normal(keys[_DRIFT, device], row, table, z)
            _power_law(w, side, nu_mean, nu_std, z, growth, g, h)
        elif relaxed > 0 or shift != 0:
            _normal(keys[_DRIFT, device], row, table, z)
            for o in range(columns):
                h[o] = g[o] + (shift + relaxed * z[o])
        else:
            h[:] = g
        if strength > 0:
            _normal(keys[_READ, device], row, table, z)
            if logarithmic:
                _logarithmic_read(strength, z, h)
            else:
                _sum(curves[starts[_Q] : starts[_Q + 1]], g, scratch, q)
                for o in range(columns):
                    h[o] *= F(1.0) + strength * z[o] * q[o]
        for o in range(columns):
            h[o] = min(max(h[o], low), high)
        if stuck[0] + stuck[1] > 0:
            _stick(keys[_STUCK, device], row, stuck[0], stuck[1], ends, h)
        _collect(device, h, total)
        if variance.size:
            _sum(curves[starts[_SHORT_TERM] : starts[_SHORT_TERM + 1]], h, scratch, q)
            for o in range(columns):
                variance[o] = q[o] * q[o] + (variance[o] if device else F(0.0))
    for o in range(columns):
        out[o] = (total[o] - (F(0.0) if pair else g_zero)) / scale + offset
    for o in range(variance.size):
        variance[o] /= scale * scale


@numba.njit
def _collect(device: int, h: Floats, total: Floats) -> None:
    """The conductance of the first device less that of the second."""
    for o in range(h.size):
        total[o] = total[o] - h[o] if device else h[o]


@parallel_kernel
def _read(
    w: Floats,
    pair: bool,
    scale: F,
    offset: F,
    ends: Floats,
    g_zero: F,
    curves: NDArray[np.float64],
    starts: NDArray[np.int64],
    numbers: Floats,
    power_law: bool,
    logarithmic: bool,
    keys: NDArray[np.uint64],
    stuck: Floats,
    table: Floats,
    out: Floats,
    variance: Floats,
) -> None:
    rows, columns = w.shape
    for block in numba.prange((rows + _BLOCK - 1) // _BLOCK):
        scratch = np.empty((13, columns + 1), np.float32)
        for row in range(block * _BLOCK, min((block + 1) * _BLOCK, rows)):
            _read_row(
                row,
                w[row],
                pair,
                scale,
                offset,
                ends,
                g_zero,
                curves,
                starts,
                numbers,
                power_law,
                logarithmic,
                keys,
                stuck,
                table,
                scratch,
                out[row],
                variance[row],
            )


def read_tile(
    targets: Tensor,
    reading: Reading,
    conductance: ConductanceRange,
    scale: float,
    offset: float,
    keys: NDArray[np.uint64],
    stuck: tuple[float, float],
    out: Tensor,
    variance: Tensor | None,
) -> None:
    """Program a tile and read it, in one pass that stores nothing.

    Args:
        targets: Target weights, ``(rows, columns)``, float32, contiguous, on a CPU.
        reading: The card at the time.
        conductance: The card's range and mapping.
        scale: µS per unit of weight.
        offset: The weight that maps to g_min, for one device a weight.
        keys: Of programming, drift, read noise and stuck devices, for each device, ``(4, 2)``.
        stuck: Fractions stuck at g_min and at g_max.
        out: The weights as read, ``(rows, columns)``.
        variance: Filled with the variance of each weight at a read, ``(rows, columns)``.
    """
    nothing = np.empty((targets.shape[0], 0), np.float32)
    _read(
        targets.numpy(),
        conductance.mapping == "pair",
        F(scale),
        F(offset),
        np.array([conductance.g_min, conductance.g_max], np.float32),
        F(conductance.g_min),
        reading.curves,
        reading.starts,
        reading.numbers,
        reading.power_law,
        reading.logarithmic,
        keys,
        np.array(stuck, np.float32),
        NORMAL_TABLE,
        out.numpy(),
        nothing if variance is None else variance.numpy(),
    )
