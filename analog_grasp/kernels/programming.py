"""Reading a tile in one pass: programming, drift, read noise and back to weights, by rows."""

from typing import NamedTuple

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analog_grasp.devices.curve import LONGEST_SINGLE, SMALLEST
from analog_grasp.devices.snapshot import COEFFICIENTS, FORMS, Reading
from analog_grasp.kernels.arithmetic import exp, log
from analog_grasp.kernels.rng import (
    Floats,
    fill_bits,
    fill_normal,
    row_key,
)
from analog_grasp.kernels.threads import parallel_kernel

F = np.float32
# The sums of curves in `Reading.starts`, and the purposes of the random numbers among the keys.
_SHIFT, _SPREAD, _NU_MEAN, _NU_STD, _Q, _SHORT_TERM = range(6)
_PROGRAMMING, _DRIFT, _READ, _STUCK = range(4)
# The rows of the scratch memory; the first three are those of `_sum`.
_TARGETS, _SUMS, _Z, _G, _H, _VALUE, _TOTAL, _ROWS = 3, 4, 8, 11, 12, 13, 14, 15
_LOGARITHM, _POWER, _SATURATION = (
    FORMS.index(form) for form in ("logarithm", "power", "saturation")
)


class Tile(NamedTuple):
    """What distinguishes one tile from others of its card."""

    scale: np.float32
    """µS per unit of weight."""
    offset: np.float32
    """The weight that maps to g_min, for one device a weight; else 0."""
    keys: NDArray[np.uint64]
    """Of programming, drift, read noise and stuck devices, for each device, ``(4, 2)``."""


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
def _sum(reading: Reading, which: int, g: Floats, scratch: Floats, out: Floats) -> None:
    """A weighted sum of curves at conductances `g`; see `Reading`."""
    curves = reading.curves[reading.starts[which] : reading.starts[which + 1]]
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
def _stick(key: np.uint64, row: int, reading: Reading, g: Floats) -> None:
    """Put the stuck devices where they are stuck."""
    bits = np.empty(g.size, np.uint32)
    fill_bits(row_key(key + np.uint64(row)), 0, bits)
    for o in range(g.size):
        u, healthy = F(bits[o] >> np.uint32(8)) * F(2.0**-24), g[o]
        stuck_on = reading.g_max if u >= F(1.0) - reading.on else healthy
        g[o] = reading.g_min if u < reading.off else stuck_on


@numba.njit
def _targets(w: Floats, reading: Reading, tile: Tile, targets: Floats) -> None:
    """The conductances aimed at, of the device that holds the weight; last, of an idle one."""
    for o in range(w.size):
        size = abs(w[o]) if reading.pair else w[o] - tile.offset
        targets[o] = size * tile.scale + reading.g_min
    targets[w.size] = reading.g_min


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
def _device(
    device: int,
    row: int,
    w: Floats,
    reading: Reading,
    keys: NDArray[np.uint64],
    scratch: Floats,
) -> None:
    """Program the devices 0 or 1 of a row, and read them into `scratch[_H]`."""
    side = F(0.0) if not reading.pair else (F(1.0) if device == 0 else F(-1.0))
    g, h = scratch[_G, : w.size], scratch[_H, : w.size]
    for purpose in range(3):
        z = scratch[_Z + purpose, : w.size]
        if reading.draws[purpose]:
            fill_normal(row_key(keys[purpose, device] + np.uint64(row)), z)
        else:
            z[:] = F(0.0)
    z = scratch[_Z + _PROGRAMMING, : w.size]
    _level(w, side, scratch[_SUMS], scratch[_SUMS + _SPREAD], z, reading.lowest, g)
    z = scratch[_Z + _DRIFT, : w.size]
    if reading.power_law:
        mean, std = scratch[_SUMS + _NU_MEAN], scratch[_SUMS + _NU_STD]
        _power_law(w, side, mean, std, z, reading.growth, g, h)
    elif reading.draws[_DRIFT]:
        for o in range(w.size):
            h[o] = g[o] + (reading.relaxed_mean + reading.relaxed_std * z[o])
    else:
        h[:] = g
    if reading.draws[_READ]:
        z = scratch[_Z + _READ, : w.size]
        if reading.logarithmic:
            _logarithmic_read(reading.strength, z, h)
        else:
            q = scratch[_VALUE, : w.size]
            _sum(reading, _Q, g, scratch, q)
            for o in range(w.size):
                h[o] *= F(1.0) + reading.strength * z[o] * q[o]
    for o in range(w.size):
        h[o] = min(max(h[o], reading.low), reading.high)
    if reading.off + reading.on > 0:
        _stick(keys[_STUCK, device], row, reading, h)


@numba.njit
def _row(
    row: int,
    w: Floats,
    reading: Reading,
    tile: Tile,
    scratch: Floats,
    out: Floats,
    variance: Floats,
) -> None:
    """One row of a tile; the conductances of its devices live only in `scratch`."""
    targets, level = scratch[_TARGETS], scratch[_SUMS]
    h, total = scratch[_H, : w.size], scratch[_TOTAL, : w.size]
    _targets(w, reading, tile, targets)
    for i in range(_NU_STD + 1):
        _sum(reading, i, level if i == _SPREAD else targets, scratch, scratch[_SUMS + i])
        if i == _SHIFT:
            for o in range(targets.size):
                level[o] += targets[o]
    for device in range(2 if reading.pair else 1):
        _device(device, row, w, reading, tile.keys, scratch)
        for o in range(w.size):
            total[o] = total[o] - h[o] if device else h[o]
        if variance.size:
            spread = scratch[_VALUE, : w.size]
            _sum(reading, _SHORT_TERM, h, scratch, spread)
            for o in range(w.size):
                variance[o] = spread[o] * spread[o] + (variance[o] if device else F(0.0))
    zero = F(0.0) if reading.pair else reading.g_min
    for o in range(w.size):
        out[o] = (total[o] - zero) / tile.scale + tile.offset
    for o in range(variance.size):
        variance[o] /= tile.scale * tile.scale


@parallel_kernel
def _read(
    first: int,
    end: int,
    w: Floats,
    reading: Reading,
    tile: Tile,
    out: Floats,
    variance: Floats,
) -> None:
    scratch = np.empty((_ROWS, w.shape[1] + 1), np.float32)
    for row in range(first, end):
        _row(row, w[row], reading, tile, scratch, out[row], variance[row])


def fits_kernel(tensor: Tensor) -> bool:
    """Whether `read_tile` takes a tensor."""
    return (
        tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and tensor.dim() == 2
        and tensor.is_contiguous()
    )


def read_tile(
    targets: Tensor, reading: Reading, tile: Tile, out: Tensor, variance: Tensor | None
) -> None:
    """Program a tile and read it, in one pass that stores nothing.

    Args:
        targets: Target weights, ``(rows, columns)``, float32, contiguous, on a CPU.
        reading: The card at the time.
        tile: Scale and keys of the tile.
        out: The weights as read, ``(rows, columns)``; may be ``targets``.
        variance: Filled with the variance of each weight at a read, ``(rows, columns)``.
    """
    nothing = np.empty((targets.shape[0], 0), np.float32)
    each_read = nothing if variance is None else variance.numpy()
    _read(len(targets), targets.numpy(), reading, tile, out.numpy(), each_read)
