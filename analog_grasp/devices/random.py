"""Random numbers that are a function of a key and a place: the same on any number of threads."""

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri

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


NORMAL_TABLE = _quantiles()


@numba.njit(inline="always")
def row_key(counter: np.uint64) -> np.uint64:
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
def fill_normal(key: np.uint64, table: Floats, out: Floats) -> None:
    """Standard normal numbers, a function of key and place, by the inverse of the distribution.

    In loops of their own, each of which the compiler turns into vector instructions.

    Args:
        key: 64 bits, from `row_key`.
        table: `NORMAL_TABLE`.
        out: One row, filled.
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


def use_torch_threads() -> None:
    """Give numba as many threads as torch has; to be called before a parallel kernel."""
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
