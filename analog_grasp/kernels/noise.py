"""Programming noise, drift and read noise of a tile's devices, compiled for CPUs, row by row.

One pass per row from target weights to weights as read; conductances exist in scratch memory only.
The same in plain torch: `analog_grasp.devices.noise_model`.
"""

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analog_grasp.kernels import (
    FIRST_COEFFICIENT,
    FORMS,
    LONGEST_SINGLE,
    SMALLEST,
    DeviceParameters,
    TileParameters,
)
from analog_grasp.kernels.compiled import Floats, as_bits, as_float, parallel_kernel, polynomial
from analog_grasp.kernels.rng import fill_bits, fill_normal, row_key

F = np.float32
# The sums of curves in `DeviceParameters.starts`, and the purposes in `TileParameters.keys`.
_SHIFT, _STD, _NU_MEAN, _NU_STD, _Q, _SHORT_TERM = range(6)
_PROGRAMMING, _DRIFT, _READ, _STUCK = range(4)
# The rows of the scratch memory; `_sum` uses the first three.
_TARGETS, _SUMS, _Z, _G, _H, _VALUE, _TOTAL, _ROWS = 3, 4, 8, 11, 12, 13, 14, 15
_LOGARITHM, _POWER, _SATURATION, _RECIPROCAL, _POINTS = (
    FORMS.index(form) for form in ("logarithm", "power", "saturation", "reciprocal", "points")
)


def fits_kernel(tensor: Tensor) -> bool:
    """Return whether `read_tile` accepts a tensor: a contiguous float32 matrix on a CPU."""
    return (
        tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and tensor.dim() == 2
        and tensor.is_contiguous()
    )


def read_tile(
    targets: Tensor,
    device: DeviceParameters,
    tile: TileParameters,
    out: Tensor,
    variance: Tensor | None,
) -> None:
    """Program a tile and read it.

    Args:
        targets: Target weights, ``(rows, columns)``, float32, contiguous, on a CPU.
        device: The card at the drift time.
        tile: Scale and keys of the tile.
        out: Filled with the weights as read, ``(rows, columns)``; may be ``targets``.
        variance: Filled with the variance of each weight from read to read, ``(rows, columns)``.
    """
    empty = np.empty((targets.shape[0], 0), np.float32)
    each_read = empty if variance is None else variance.numpy()
    _read_rows(len(targets), targets.numpy(), device, tile, out.numpy(), each_read)


# Logarithm and exponential in arithmetic that the compiler turns into vector instructions.


# ln(1 + m) / m for m from sqrt(1/2) - 1 to sqrt(2) - 1.
_LOG = polynomial(lambda m: np.log1p(m) / m, 0.5**0.5 - 1, 2**0.5 - 1, 8)[::-1]
# (e^r - 1 - r) / r^2 for r from -ln(2) / 2 to ln(2) / 2.
_EXP = polynomial(lambda r: (np.expm1(r) - r) / r**2, -np.log(2) / 2, np.log(2) / 2, 5)[::-1]
_ROOT_HALF = int(F(0.5**0.5).view(np.int32))
_LN2 = F(np.log(2))
# ln 2 in two parts; the product of the first with an exponent is exact.
_LN2_FIRST = F(0.693359375)
_LN2_REST = F(np.log(2) - 0.693359375)


@numba.njit(inline="always")
def _log(x: np.float32) -> np.float32:
    """Return ln x of a normal float32 above 0."""
    bits = as_bits(x)
    # numba widens integer results to 64 bits; 32-bit integers fill a vector with twice as many.
    exponent = np.int32(np.int32(bits - np.int32(_ROOT_HALF)) >> np.int32(23))
    m = as_float(np.int32(bits - np.int32(exponent << np.int32(23)))) - F(1.0)
    y = F(0.0)
    for c in _LOG:
        y = y * m + c
    return y * m + F(exponent) * _LN2


@numba.njit(inline="always")
def _exp(x: np.float32) -> np.float32:
    """Return e^x of a float32; x is clipped to the range with normal results."""
    x = min(max(x, F(-87.0)), F(88.0))
    n = np.rint(x * (F(1.0) / _LN2))
    r = x - n * _LN2_FIRST - n * _LN2_REST
    y = F(0.0)
    for c in _EXP:
        y = y * r + c
    y = y * r * r + r + F(1.0)
    return y * as_float(np.int32(np.int32(np.int32(n) + np.int32(127)) << np.int32(23)))


@numba.njit(fastmath={"contract"})
def _piece(row: NDArray[np.float64], points: NDArray[np.float64], x: Floats, y: Floats) -> None:
    """Evaluate one piece of a curve at every x; see `devices.fields.Piece`."""
    form, count = int(row[3]), int(row[7])
    c0, c1 = F(row[FIRST_COEFFICIENT]), F(row[FIRST_COEFFICIENT + 1])
    if form == _LOGARITHM:
        for o in range(x.size):
            y[o] = c1 * _log(max(x[o], F(SMALLEST))) + c0
    elif form == _POWER:
        for o in range(x.size):
            y[o] = c0 * _exp(c1 * _log(max(x[o], F(SMALLEST))))
    elif form == _SATURATION:
        for o in range(x.size):
            y[o] = c0 - c0 * _exp(-x[o] / c1)
    elif form == _RECIPROCAL:
        for o in range(x.size):
            y[o] = F(1.0) / (c1 * x[o] + c0)
    elif form == _POINTS:
        first, end = int(row[FIRST_COEFFICIENT]), int(row[FIRST_COEFFICIENT + 1])
        _interpolate(points[first:end], x, y)
    elif count > LONGEST_SINGLE:
        for o in range(x.size):
            wide, sum_ = np.float64(x[o]), 0.0
            for i in range(count - 1, -1, -1):
                sum_ = sum_ * wide + row[FIRST_COEFFICIENT + i]
            y[o] = F(sum_)
    else:
        y[:] = F(row[FIRST_COEFFICIENT + count - 1])
        for i in range(count - 2, -1, -1):
            c = F(row[FIRST_COEFFICIENT + i])
            for o in range(x.size):
                y[o] = y[o] * x[o] + c
    low, high = F(row[5]), F(row[6])
    for o in range(x.size):
        y[o] = min(max(y[o], low), high)


@numba.njit
def _interpolate(points: NDArray[np.float64], x: Floats, y: Floats) -> None:
    """Interpolate linearly between points, with the end values outside them."""
    last = points.shape[0] - 1
    for o in range(x.size):
        at = min(max(np.float64(x[o]), points[0, 0]), points[last, 0])
        low, high = 0, last
        while high - low > 1:
            middle = (low + high) // 2
            if points[middle, 0] <= at:
                low = middle
            else:
                high = middle
        fraction = (at - points[low, 0]) / (points[high, 0] - points[low, 0])
        y[o] = F(points[low, 1] + fraction * (points[high, 1] - points[low, 1]))


@numba.njit
def _sum(device: DeviceParameters, which: int, g: Floats, scratch: Floats, out: Floats) -> None:
    """Evaluate a weighted sum of curves at conductances `g`; see `DeviceParameters.starts`."""
    curves = device.curves[device.starts[which] : device.starts[which + 1]]
    x, y, p = scratch[0, : g.size], scratch[1, : g.size], scratch[2, : g.size]
    out[:] = F(0.0)
    for r in range(curves.shape[0]):
        row = curves[r]
        if row[4] == np.inf:
            g_max = F(row[1])
            for o in range(g.size):
                x[o] = abs(g[o]) / g_max if g_max > 0 else g[o]
            _piece(row, device.points, x, y)
        else:
            below = F(row[4])
            _piece(row, device.points, x, p)
            for o in range(g.size):
                # Both are loaded first: a conditional load would become a branch.
                here, before = p[o], y[o]
                y[o] = here if x[o] < below else before
        if r + 1 == curves.shape[0] or curves[r + 1, 4] == np.inf:
            weight, floor = F(row[0]), F(row[2])
            for o in range(g.size):
                out[o] += weight * max(y[o], floor)


@numba.njit
def _stick(key: np.uint64, row: int, device: DeviceParameters, g: Floats) -> None:
    """Set the stuck devices to g_min or g_max."""
    bits = np.empty(g.size, np.uint32)
    fill_bits(row_key(key + np.uint64(row)), 0, bits)
    for o in range(g.size):
        u, healthy = F(bits[o] >> np.uint32(8)) * F(2.0**-24), g[o]
        stuck_on = device.g_max if u >= F(1.0) - device.stuck_on else healthy
        g[o] = device.g_min if u < device.stuck_off else stuck_on


@numba.njit(fastmath={"contract"})
def _program(
    w: Floats, side: F, means: Floats, stds: Floats, z: Floats, lowest: F, g: Floats
) -> None:
    """Program the devices of one sign; a device is idle if the weight has the other sign."""
    idle_mean, idle_std = means[w.size], stds[w.size]
    for o in range(w.size):
        idle, mean, std = w[o] * side < 0, means[o], stds[o]
        mean, std = (idle_mean if idle else mean), (idle_std if idle else std)
        g[o] = max(mean + std * z[o], lowest)


@numba.njit(fastmath={"contract"})
def _power_law(
    w: Floats, side: F, mean: Floats, std: Floats, z: Floats, growth: F, g: Floats, h: Floats
) -> None:
    """Let the devices of one sign drift by (t / t0)^-|nu|."""
    idle_mean, idle_std = mean[w.size], std[w.size]
    for o in range(w.size):
        idle, nu_mean, nu_std = w[o] * side < 0, mean[o], std[o]
        nu_mean, nu_std = (idle_mean if idle else nu_mean), (idle_std if idle else nu_std)
        h[o] = g[o] * _exp(-growth * abs(nu_mean + nu_std * z[o]))


@numba.njit(fastmath={"contract"})
def _logarithmic_read(factor: F, z: Floats, h: Floats) -> None:
    for o in range(h.size):
        h[o] += factor * z[o] * _log(max(h[o], F(1.0))) * F(1.0 / np.log(10.0))


@numba.njit
def _read_devices(
    which: int,
    row: int,
    w: Floats,
    device: DeviceParameters,
    keys: NDArray[np.uint64],
    scratch: Floats,
) -> None:
    """Program device 0 or 1 of each cell of a row, and read it into `scratch[_H]`."""
    side = F(0.0) if not device.pair else (F(1.0) if which == 0 else F(-1.0))
    g, h = scratch[_G, : w.size], scratch[_H, : w.size]
    for purpose in range(3):
        z = scratch[_Z + purpose, : w.size]
        if device.draws[purpose]:
            fill_normal(row_key(keys[purpose, which] + np.uint64(row)), z)
        else:
            z[:] = F(0.0)
    z = scratch[_Z + _PROGRAMMING, : w.size]
    _program(w, side, scratch[_SUMS], scratch[_SUMS + _STD], z, device.programmed_min, g)
    z = scratch[_Z + _DRIFT, : w.size]
    if device.power_law:
        mean, std = scratch[_SUMS + _NU_MEAN], scratch[_SUMS + _NU_STD]
        _power_law(w, side, mean, std, z, device.growth, g, h)
    elif device.draws[_DRIFT]:
        for o in range(w.size):
            h[o] = g[o] + (device.relaxed_mean + device.relaxed_std * z[o])
    else:
        h[:] = g
    if device.draws[_READ]:
        z = scratch[_Z + _READ, : w.size]
        if device.logarithmic_read:
            _logarithmic_read(device.read_factor, z, h)
        else:
            q = scratch[_VALUE, : w.size]
            _sum(device, _Q, g, scratch, q)
            for o in range(w.size):
                h[o] *= F(1.0) + device.read_factor * z[o] * q[o]
    for o in range(w.size):
        h[o] = min(max(h[o], device.read_min), device.read_max)
    if device.stuck_off + device.stuck_on > 0:
        _stick(keys[_STUCK, which], row, device, h)


@parallel_kernel
def _read_rows(
    first: int,
    end: int,
    weights: Floats,
    device: DeviceParameters,
    tile: TileParameters,
    outputs: Floats,
    variances: Floats,
) -> None:
    """Read rows of a tile."""
    scratch = np.empty((_ROWS, weights.shape[1] + 1), np.float32)
    targets, means = scratch[_TARGETS], scratch[_SUMS]
    h, total = scratch[_H, : weights.shape[1]], scratch[_TOTAL, : weights.shape[1]]
    for row in range(first, end):
        w, out, variance = weights[row], outputs[row], variances[row]
        # Of the device that holds the weight, and last of an idle device.
        for o in range(w.size):
            size = abs(w[o]) if device.pair else w[o] - tile.offset
            targets[o] = size * tile.scale + device.g_min
        targets[w.size] = device.g_min
        for i in range(_NU_STD + 1):
            _sum(device, i, means if i == _STD else targets, scratch, scratch[_SUMS + i])
            if i == _SHIFT:
                for o in range(targets.size):
                    means[o] += targets[o]
            elif i == _STD:
                # Extrapolated in time, it may fall below 0.
                for o in range(targets.size):
                    scratch[_SUMS + _STD, o] = max(scratch[_SUMS + _STD, o], F(0.0))
        for which in range(2 if device.pair else 1):
            _read_devices(which, row, w, device, tile.keys, scratch)
            for o in range(w.size):
                total[o] = total[o] - h[o] if which else h[o]
            if variance.size:
                std = scratch[_VALUE, : w.size]
                _sum(device, _SHORT_TERM, h, scratch, std)
                for o in range(w.size):
                    variance[o] = std[o] * std[o] + (variance[o] if which else F(0.0))
        zero = F(0.0) if device.pair else device.g_min
        for o in range(w.size):
            out[o] = (total[o] - zero) / tile.scale + tile.offset
        for o in range(variance.size):
            variance[o] /= tile.scale * tile.scale
