"""Programming noise, drift and read noise of devices on a GPU, as Triton kernels.

The computation of `analog_grasp.kernels.noise`, with the same random numbers up to rounding, for
all tiles that share their inputs in one launch: on a GPU many small ones cost more than they
compute.
"""

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from analog_grasp.kernels import (
    FIRST_COEFFICIENT,
    FORMS,
    LONGEST_SINGLE,
    MAX_COEFFICIENTS,
    SMALLEST,
    DeviceParameters,
    ReadSettings,
)
from analog_grasp.kernels.cuda import mixed, normal_pairs, rounded, row_words
from analog_grasp.kernels.rng import BLOCK, signed

_HALF = tl.constexpr(BLOCK // 2)
_ROWS = 4
# Columns of the table of tiles: first row, end, and the keys by purpose and device of a cell.
_KEYS = tl.constexpr(2)
_TILE = tl.constexpr(10)
_PROGRAMMING, _DRIFT, _READ, _STUCK = (tl.constexpr(i) for i in range(4))
_SHIFT, _STD, _NU_MEAN, _NU_STD, _Q, _SHORT_TERM = (tl.constexpr(i) for i in range(6))
# The table of curves: the starts of the sums, then rows of this length, then points.
_SUMS = tl.constexpr(7)
_PIECE = tl.constexpr(FIRST_COEFFICIENT + MAX_COEFFICIENTS)
_FIRST = tl.constexpr(FIRST_COEFFICIENT)
_SMALLEST = tl.constexpr(SMALLEST)
_LONGEST_SINGLE = tl.constexpr(LONGEST_SINGLE)
_LOGARITHM, _POWER, _SATURATION, _RECIPROCAL, _POINTS = (
    tl.constexpr(FORMS.index(form))
    for form in ("logarithm", "power", "saturation", "reciprocal", "points")
)
_LN10 = tl.constexpr(float(np.log(10.0)))
_INFINITY = tl.constexpr(float("inf"))


@triton.jit
def _interpolated(points, first, end, x):
    """Interpolate linearly between points, with the end values outside them."""
    wide = x.to(tl.float64)
    wide = tl.maximum(wide, tl.load(points + 2 * first))
    wide = tl.minimum(wide, tl.load(points + 2 * end - 2))
    y = wide * 0.0
    for i in range(first, end - 1):
        x0, x1 = tl.load(points + 2 * i), tl.load(points + 2 * i + 2)
        y0, y1 = tl.load(points + 2 * i + 1), tl.load(points + 2 * i + 3)
        y = tl.where(wide >= x0, y0 + (wide - x0) / (x1 - x0) * (y1 - y0), y)
    return y.to(tl.float32)


@triton.jit
def _piece(row, points, x):
    """Evaluate one piece of a curve at every x; see `noise._piece`."""
    form, count = tl.load(row + 3).to(tl.int32), tl.load(row + 7).to(tl.int32)
    c0, c1 = tl.load(row + _FIRST).to(tl.float32), tl.load(row + _FIRST + 1).to(tl.float32)
    y = x * 0.0
    if form == _LOGARITHM:
        y = c1 * tl.log(tl.maximum(x, _SMALLEST)) + c0
    elif form == _POWER:
        y = c0 * tl.exp(c1 * tl.log(tl.maximum(x, _SMALLEST)))
    elif form == _SATURATION:
        y = c0 - c0 * tl.exp(-x / c1)
    elif form == _RECIPROCAL:
        y = 1.0 / (c1 * x + c0)
    elif form == _POINTS:
        y = _interpolated(points, c0.to(tl.int32), c1.to(tl.int32), x)
    elif count > _LONGEST_SINGLE:
        wide = x.to(tl.float64)
        total = wide * 0.0
        for i in range(count):
            total = total * wide + tl.load(row + _FIRST + count - 1 - i)
        y = total.to(tl.float32)
    else:
        for i in range(count):
            y = y * x + tl.load(row + _FIRST + count - 1 - i).to(tl.float32)
    y = tl.maximum(y, tl.load(row + 5).to(tl.float32))
    return tl.minimum(y, tl.load(row + 6).to(tl.float32))


@triton.jit
def _sum(table, points, which, g):
    """Evaluate a weighted sum of curves at conductances `g`; see `DeviceParameters.starts`."""
    total, y = g * 0.0, g * 0.0
    end = tl.load(table + which + 1).to(tl.int32)
    for r in range(tl.load(table + which).to(tl.int32), end):
        row = table + _SUMS + r * _PIECE
        g_max, below = tl.load(row + 1).to(tl.float32), tl.load(row + 4)
        x = g
        if g_max > 0:
            x = tl.abs(g) / g_max
        y = tl.where(x < below.to(tl.float32), _piece(row, points, x), y)
        # The last piece of a curve comes first, so that this is the end of one.
        following = tl.load(row + _PIECE + 4, mask=r + 1 < end, other=_INFINITY)
        closes = (following == _INFINITY).to(tl.float32)
        weight, floor = tl.load(row).to(tl.float32), tl.load(row + 2).to(tl.float32)
        total += closes * weight * tl.maximum(y, floor)
    return total


@triton.jit
def _deviates(keys, purpose, which, row, block, side, like, DRAWN: tl.constexpr):
    """Return the deviates of a purpose and a device for half a block, 0 if none are drawn."""
    z = like * 0.0
    if DRAWN:
        across, along = normal_pairs(tl.load(keys + purpose * 2 + which), row, block)
        z = tl.where(side == 0, across, along)
    return z


@triton.jit(do_not_specialize=["width"])
def _read_kernel(
    targets, out, variance, tiles, mapping, table, points, width,
    growth, relaxed_mean, relaxed_std, read_factor, programmed_min, read_min, read_max,
    g_min, g_max, stuck_off, stuck_on,
    PAIR: tl.constexpr, PROGRAMMED: tl.constexpr, DRIFTS: tl.constexpr, READ: tl.constexpr,
    POWER_LAW: tl.constexpr, LOGARITHMIC: tl.constexpr, STUCK: tl.constexpr, VARIES: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Read some rows and one block of columns of a tile; see `noise._read_rows`."""
    tile = tl.program_id(2)
    start, end = tl.load(tiles + tile * _TILE), tl.load(tiles + tile * _TILE + 1)
    keys = tiles + tile * _TILE + _KEYS
    scale, offset = tl.load(mapping + 2 * tile), tl.load(mapping + 2 * tile + 1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    block = tl.program_id(1)
    for side in range(2):
        column = tl.arange(0, _HALF)[None, :] + (block * 2 + side) * _HALF
        inside = (row[:, None] < end - start) & (column < width)
        place = (start + row).to(tl.int64)[:, None] * width + column
        w = tl.load(targets + place, mask=inside, other=0.0)
        total, spread = w * 0.0, w * 0.0
        for which in range(2 if PAIR else 1):
            sign = 1.0 - 2.0 * which
            size = w - offset
            if PAIR:
                # A device of the other sign is idle, at g_min.
                size = tl.where(w * sign < 0, 0.0, tl.abs(w))
            target = size * scale + g_min
            mean = target + _sum(table, points, _SHIFT, target)
            std = tl.maximum(_sum(table, points, _STD, mean), 0.0)
            z = _deviates(keys, _PROGRAMMING, which, row, block, side, w, PROGRAMMED)
            g = tl.maximum(mean + std * z, programmed_min)
            z = _deviates(keys, _DRIFT, which, row, block, side, w, DRIFTS)
            h = g
            if POWER_LAW:
                nu = _sum(table, points, _NU_MEAN, target)
                nu += _sum(table, points, _NU_STD, target) * z
                h = g * tl.exp(-growth * tl.abs(nu))
            elif DRIFTS:
                h = g + (relaxed_mean + relaxed_std * z)
            if READ:
                z = _deviates(keys, _READ, which, row, block, side, w, READ)
                if LOGARITHMIC:
                    h += read_factor * z * tl.log(tl.maximum(h, 1.0)) / _LN10
                else:
                    h *= 1.0 + read_factor * z * _sum(table, points, _Q, g)
            h = tl.minimum(tl.maximum(h, read_min), read_max)
            if STUCK:
                low, high = row_words(tl.load(keys + _STUCK * 2 + which), row)
                bits = mixed(low + column.to(tl.uint32), high)
                u = (bits >> 8).to(tl.float32) * 5.9604644775390625e-08
                on = tl.where(u >= 1.0 - stuck_on, g_max, h)
                h = tl.where(u < stuck_off, g_min, on)
            if VARIES:
                each = _sum(table, points, _SHORT_TERM, h)
                spread += each * each
            total += sign * h
        zero = 0.0 if PAIR else g_min
        tl.store(out + place, (total - zero) / scale + offset, mask=inside)
        if VARIES:
            tl.store(variance + place, spread / (scale * scale), mask=inside)


@triton.jit(do_not_specialize=["width"])
def _readout_kernel(
    weights, variance, out, tiles, width, noise, constant, step, bound,
    NOISY: tl.constexpr, MATRIX: tl.constexpr, ROUNDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Compute the read-out of some columns of a tile; see `reference.column_readout`."""
    tile = tl.program_id(1)
    start, end = tl.load(tiles + tile * _TILE), tl.load(tiles + tile * _TILE + 1)
    key = tl.load(tiles + tile * _TILE + _KEYS)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros((ROWS,), tl.float32)
    for block in range((width + 2 * _HALF - 1) // (2 * _HALF)):
        for side in range(2):
            column = tl.arange(0, _HALF)[None, :] + (block * 2 + side) * _HALF
            inside = (row[:, None] < end - start) & (column < width)
            place = (start + row).to(tl.int64)[:, None] * width + column
            value = tl.load(weights + place, mask=inside, other=0.0).to(tl.float32)
            if NOISY:
                across, along = normal_pairs(key, row, block)
                each = value * 0.0 + constant
                if MATRIX:
                    each = tl.load(variance + place, mask=inside, other=0.0).to(tl.float32)
                value += tl.sqrt(each + noise * noise) * tl.where(side == 0, across, along)
            if ROUNDED:
                value = rounded(value, step)
            size = tl.minimum(tl.abs(value), bound)
            total += tl.sum(tl.where(inside, size, 0.0), 1)
    tl.store(out + start + row, total / width, mask=row < end - start)


def read_tiles(
    targets: Tensor,
    device: DeviceParameters,
    mapping: Tensor,
    tiles: Sequence[slice],
    keys: Sequence[np.ndarray],
    out: Tensor,
    variance: Tensor | None,
) -> None:
    """Program tiles and read them.

    Args:
        targets: Target weights of all tiles, ``(rows, width)``, float32, contiguous.
        device: The card at the drift time.
        mapping: Scale and offset of each tile, as in `TileParameters`, ``(tiles, 2)``, float32.
        tiles: The rows of each tile.
        keys: The keys of each, as in `TileParameters`.
        out: Filled with the weights as read, ``(rows, width)``, of any floating type.
        variance: Filled with the variance of each weight from read to read.
    """
    where = targets.device
    table = np.concatenate([device.starts, device.curves.ravel(), device.points.ravel(), [0.0] * 2])
    curves = torch.from_numpy(table).to(where)
    stuck = float(device.stuck_off + device.stuck_on) > 0
    programmed, drifts, read = map(bool, device.draws)
    largest = max(part.stop - part.start for part in tiles)
    grid = (triton.cdiv(largest, _ROWS), triton.cdiv(targets.shape[1], BLOCK), len(tiles))
    _read_kernel[grid](
        targets, out, out if variance is None else variance,
        _table_of(tiles, [each.ravel().tolist() for each in keys], where), mapping,
        curves, curves[_SUMS.value + device.curves.size :], targets.shape[1],
        *map(float, (
            device.growth, device.relaxed_mean, device.relaxed_std, device.read_factor,
            device.programmed_min, device.read_min, device.read_max, device.g_min, device.g_max,
            device.stuck_off, device.stuck_on,
        )),
        PAIR=device.pair, PROGRAMMED=programmed, DRIFTS=drifts, READ=read,
        POWER_LAW=device.power_law, LOGARITHMIC=device.logarithmic_read, STUCK=stuck,
        VARIES=variance is not None, ROWS=_ROWS,
    )  # fmt: skip


def column_readouts(
    weights: Tensor,
    variance: Tensor | float | None,
    settings: ReadSettings,
    tiles: Sequence[tuple[slice, int]],
) -> Tensor:
    """Return `reference.column_readout` of the weights of several tiles, ``(rows,)``, float32.

    Args:
        weights: Weights of all tiles, ``(rows, width)``, contiguous.
        variance: Their variance from read to read.
        settings: The converters.
        tiles: The rows of each tile, and the key of its noise.
    """
    rows, width = weights.shape
    out = torch.empty(rows, device=weights.device)
    matrix = isinstance(variance, Tensor)
    constant = 0.0 if variance is None or matrix else variance
    parts = [part for part, _ in tiles]
    grid = (triton.cdiv(max(part.stop - part.start for part in parts), _ROWS), len(tiles))
    _readout_kernel[grid](
        weights, variance if matrix else weights, out,
        _table_of(parts, [[key] for _, key in tiles], weights.device), width,
        settings.output_noise, constant, settings.adc_step or 1.0, settings.output_bound,
        NOISY=bool(settings.output_noise or constant or matrix), MATRIX=matrix,
        ROUNDED=settings.adc_step > 0, ROWS=_ROWS,
    )  # fmt: skip
    return out


def _table_of(tiles: Sequence[slice], keys: Sequence[list[int]], where: torch.device) -> Tensor:
    """Return the first row, the end and the keys of each tile, int64, ``(tiles, 10)``."""
    rows = [
        [part.start, part.stop, *map(signed, own), *[0] * (_TILE.value - _KEYS.value - len(own))]
        for part, own in zip(tiles, keys, strict=True)
    ]
    return torch.tensor(rows, device=where)
