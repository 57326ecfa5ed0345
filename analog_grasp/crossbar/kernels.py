"""The arithmetic around an analog product, fused: DAC before it; noise, ADC and scales after it."""

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

# Of numba's own threads: those of OpenMP would be a second pool beside torch's, and each pool spins
# for work on the cores that the other needs.
numba.config.THREADING_LAYER = "workqueue"

Floats = NDArray[np.float32]

# The half-normal quantile of the upper-tail probability u / 2^31, tabulated by the bits of the
# float32 u: its exponent and the leading bits of its mantissa. So the steps shrink with the tail.
_MANTISSA_BITS = 7
_SHIFT = 23 - _MANTISSA_BITS
_FIRST = 127 << _MANTISSA_BITS
_MASK = (1 << _SHIFT) - 1


def _quantiles() -> Floats:
    """Quantiles at the table's nodes for u from 1 to 2^31, one node more than there are steps."""
    nodes = np.arange((31 << _MANTISSA_BITS) + 2, dtype=np.int64)
    u = ((nodes + _FIRST) << _SHIFT).astype(np.int32).view(np.float32).astype(np.float64)
    return -ndtri(np.minimum(u / 2.0**31, 1.0) / 2).astype(np.float32)


_TABLE = _quantiles()


@numba.njit(inline="always")
def _row_key(counter: np.uint64) -> np.uint64:
    """64 random bits of a counter: the finaliser of splitmix64 (Steele et al., OOPSLA 2014)."""
    z = counter * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@numba.njit(inline="always")
def _mixed(h: np.uint32) -> np.uint32:
    """A bijection of 32 bits with little bias (the `lowbias32` constants of C. Wellons, 2018)."""
    h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D))
    h = np.uint32((h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(h ^ (h >> np.uint32(16)))


@numba.njit(inline="always")
def _fill_normal(key: np.uint64, table: Floats, out: Floats) -> None:
    """Standard normal numbers, a function of key and place, by the inverse of the distribution.

    In loops of their own, each of which the compiler turns into vector instructions.
    """
    first, second = np.uint32(key & np.uint64(0xFFFFFFFF)), np.uint32(key >> np.uint64(32))
    bits = np.empty(out.shape[0], np.uint32)
    for o in range(out.shape[0]):
        bits[o] = _mixed(np.uint32(_mixed(np.uint32(np.uint32(o) + first)) ^ second))
    for o in range(out.shape[0]):
        out[o] = np.float32(np.int32(bits[o] & np.uint32(0x7FFFFFFF))) + np.float32(1.0)
    pattern = out.view(np.int32)
    for o in range(out.shape[0]):
        node = (pattern[o] >> _SHIFT) - _FIRST
        fraction = np.float32(pattern[o] & _MASK) * np.float32(1.0 / (_MASK + 1))
        size = table[node] + fraction * (table[node + 1] - table[node])
        # By arithmetic: a branch on a random bit is mispredicted every other time.
        sign = np.float32(1.0) - np.float32(2.0) * np.float32(np.int32(bits[o] >> np.uint32(31)))
        out[o] = sign * size


@numba.njit(parallel=True, cache=True)
def _convert_inputs(
    x: Floats, first: int, step: np.float32, by_maximum: bool, out: Floats, gain: Floats
) -> None:
    for n in numba.prange(out.shape[0]):
        largest = np.float32(0.0)
        if by_maximum:
            for d in range(out.shape[1]):
                largest = max(largest, abs(x[n, first + d]))
        gain[n] = np.float32(1.0) / largest if largest > 0 else np.float32(1.0)
        for d in range(out.shape[1]):
            v = x[n, first + d] * gain[n]
            if step > 0:
                v = np.rint(v / step) * step
            out[n, d] = min(max(v, np.float32(-1.0)), np.float32(1.0))


@numba.njit(parallel=True, cache=True)
def _convert_outputs(
    product: Floats,
    gain: Floats,
    scale: Floats,
    correction: Floats,
    noise: np.float32,
    step: np.float32,
    bound: np.float32,
    key: np.uint64,
    table: Floats,
    y: Floats,
) -> int:
    rows, columns = product.shape
    clipped = 0
    for n in numba.prange(rows):
        factor = np.float32(1.0) / gain[n]
        row = np.empty(columns, np.float32)
        if noise > 0:
            _fill_normal(_row_key(key + np.uint64(n)), table, row)
            for o in range(columns):
                row[o] = product[n, o] + noise * row[o]
        else:
            row[:] = product[n]
        over = 0
        for o in range(columns):
            v = row[o]
            if step > 0:
                v = np.rint(v / step) * step
            over += abs(v) > bound
            v = min(max(v, -bound), bound)
            y[n, o] += v * factor * scale[o] * correction[o]
        clipped += over
    return clipped


def convert_inputs(
    x: Tensor, first: int, width: int, step: float, by_maximum: bool
) -> tuple[Tensor, Tensor]:
    """DAC: scale each input vector to the full range, round to the DAC's steps, clip to [-1, 1].

    Args:
        x: Inputs, ``(N, D)``, float32, contiguous.
        first: The tile's first input.
        width: The tile's number of inputs.
        step: The DAC's step, in units of the full scale; 0 for no rounding.
        by_maximum: Whether a vector is scaled by its largest magnitude.

    Returns:
        What the rows of the tile see, ``(N, width)``, and the gain of each vector, ``(N,)``.
    """
    out, gain = x.new_empty(x.shape[0], width), x.new_empty(x.shape[0])
    _use_torch_threads()
    _convert_inputs(x.numpy(), first, np.float32(step), by_maximum, out.numpy(), gain.numpy())
    return out, gain


def convert_outputs(
    product: Tensor,
    gain: Tensor,
    scale: Tensor,
    correction: Tensor,
    *,
    noise: float,
    step: float,
    bound: float,
    key: int,
    y: Tensor,
) -> int:
    """Output noise, ADC, and the digital scales; adds the result to ``y``.

    The noise of an element is a function of ``key`` and its place alone, whatever the threads.

    Args:
        product: Analog products, ``(N, D_out)``, float32.
        gain: The gain of each input vector, ``(N,)``; divided out again.
        scale: The scale of each column, ``(D_out,)``.
        correction: The drift compensation of each column, ``(D_out,)``.
        noise: Standard deviation of the output noise.
        step: The ADC's step; 0 for no rounding.
        bound: The ADC's largest output; infinity for none.
        key: Names the noise, 64 bits.
        y: The layer's outputs, ``(N, D_out)``, added to in place.

    Returns:
        How many outputs were clipped.
    """
    _use_torch_threads()
    return _convert_outputs(
        product.numpy(),
        gain.numpy(),
        scale.numpy(),
        correction.numpy(),
        np.float32(noise),
        np.float32(step),
        np.float32(bound),
        np.uint64(key),
        _TABLE,
        y.numpy(),
    )


def _use_torch_threads() -> None:
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
