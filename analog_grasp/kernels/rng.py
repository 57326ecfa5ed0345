"""Counter-based random numbers, a function of a key and a position.

They do not depend on the number of threads or on the order of calls, and are equal on every
processor up to rounding.
"""

import functools
import importlib.util
import math
import os
import shutil

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analog_grasp.kernels.compiled import Floats, as_bits, parallel_kernel, polynomial

Words = NDArray[np.uint32]

# Normal deviates come in pairs, by the method of Box and Muller (Ann. Math. Stat. 29, 610 (1958)):
# the radius sqrt(-2 ln u) times the sine and cosine of a random angle; the positions of a pair are
# half a block apart. Logarithm, sine and cosine are polynomials, with errors of about 1e-6.
_HALF = 64
BLOCK = 2 * _HALF

# -2 ln of a mantissa 1 + m; cos(pi t) and sin(pi t) / t of s = t^2, for t in [-1/2, 1/2].
_L0, _L1, _L2, _L3, _L4, _L5, _L6, _L7 = polynomial(lambda m: -2 * np.log1p(m), 0.0, 1.0, 7)
_C0, _C1, _C2, _C3, _C4 = polynomial(lambda s: np.cos(np.pi * np.sqrt(s)), 0.0, 0.25, 4)
_S0, _S1, _S2, _S3, _S4 = polynomial(lambda s: np.pi * np.sinc(np.sqrt(s)), 0.0, 0.25, 4)
_TWO_LN2 = np.float32(2 * np.log(2))
# The float32 exponent of 2^31, which represents u = 1.
TOP = 127 + 31
_MANTISSA = 0x7FFFFF


@numba.njit(inline="always")
def row_key(counter: np.uint64) -> np.uint64:
    """Return 64 random bits of a counter: splitmix64 (Steele et al., OOPSLA 2014)."""
    z = counter * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@numba.njit(inline="always")
def _mixed(h: np.uint32, key: np.uint32) -> np.uint32:
    """Return a low-bias bijection of 32 bits, one per key (`lowbias32` of C. Wellons, 2018)."""
    h = np.uint32(np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D)) ^ key)
    h = np.uint32((h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(h ^ (h >> np.uint32(16)))


@numba.njit(inline="always")
def fill_bits(key: np.uint64, start: int, out: Words) -> None:
    """Fill `out` with 32 random bits per position, from `start` on; `key` is from `row_key`."""
    first, second = np.uint32(key & np.uint64(0xFFFFFFFF)), np.uint32(key >> np.uint64(32))
    first = np.uint32(first + np.uint32(start))
    for o in range(out.shape[0]):
        out[o] = _mixed(np.uint32(np.uint32(o) + first), second)


@numba.njit(fastmath={"contract"})
def fill_normal(key: np.uint64, out: Floats) -> None:
    """Fill a row with standard normal deviates, a function of position and key (of `row_key`)."""
    whole = out.size - out.size % BLOCK
    for start in range(0, whole, BLOCK):
        _fill_block(key, start, out[start : start + _HALF], out[start + _HALF : start + BLOCK])
    if whole < out.size:
        rest = np.empty(BLOCK, np.float32)
        _fill_block(key, whole, rest[:_HALF], rest[_HALF:])
        out[whole:] = rest[: out.size - whole]


@numba.njit(inline="always")
def _fill_block(key: np.uint64, start: int, across: Floats, along: Floats) -> None:
    """Fill the halves of a block: the radius times cosine and sine of half a turn."""
    low, high = np.uint32(key & np.uint64(0xFFFFFFFF)), np.uint32(key >> np.uint64(32))
    low = np.uint32(low + np.uint32(start))
    for j in range(_HALF):
        first = _mixed(np.uint32(np.uint32(j) + low), high)
        second = _mixed(np.uint32(np.uint32(j + _HALF) + low), high)
        # sqrt(-2 ln u) of the upper 31 bits; the lowest bit selects the half of the circle.
        pattern = as_bits(np.float32(np.int32(first >> np.uint32(1))) + np.float32(0.5))
        # numba widens integer results to 64 bits; 32-bit integers fill a vector with twice as many.
        exponent = np.float32(np.int32(np.int32(pattern >> np.int32(23)) - np.int32(TOP)))
        m = np.float32(np.int32(pattern & np.int32(_MANTISSA))) * np.float32(2.0**-23)
        log = ((((((_L7 * m + _L6) * m + _L5) * m + _L4) * m + _L3) * m + _L2) * m + _L1) * m + _L0
        # Where u rounds to 1 the difference may be -1e-7.
        radius = np.sqrt(abs(log - _TWO_LN2 * exponent))
        sign = np.float32(1.0) - np.float32(2.0) * np.float32(np.int32(first & np.uint32(1)))
        t = np.float32(np.int32(second)) * np.float32(2.0**-32)
        s = t * t
        across[j] = radius * sign * ((((_C4 * s + _C3) * s + _C2) * s + _C1) * s + _C0)
        along[j] = t * (((((_S4 * s + _S3) * s + _S2) * s + _S1) * s + _S0) * radius)


@parallel_kernel
def _normal_rows(first: int, end: int, key: np.uint64, out: Floats) -> None:
    for row in range(first, end):
        fill_normal(row_key(key + np.uint64(row)), out[row])


def normal(
    key: int, shape: tuple[int, ...], *, device: torch.device | str, dtype: torch.dtype
) -> Tensor:
    """Return standard normal deviates, equal on every processor up to rounding.

    A deviate is a function of the key and its position: its column, and its row with all
    dimensions but the last flattened. Its resolution is that of float32 in every type, and its
    magnitude is at most 6.7.

    Args:
        key: Key of the stream; its lowest 64 bits count.
        shape: Shape of the result.
        device: Processor of the result.
        dtype: Floating type of the result.

    Example:
        >>> few = normal(7, (2, 3), device="cpu", dtype=torch.float32)
        >>> many = normal(7, (4, 3), device="cpu", dtype=torch.float32)
        >>> torch.equal(few, many[:2])
        True
    """
    columns = shape[-1] if shape else 1
    rows = math.prod(shape[:-1])
    where = torch.device(device)
    if where.type == "cuda" and has_triton():
        from analog_grasp.kernels import cuda

        return cuda.normal(key, rows, columns, device=where, dtype=dtype).view(shape)
    if where.type != "cpu":
        return _normal_torch(key, rows, columns, where).view(shape).to(dtype)
    out = torch.empty(rows, columns)
    _normal_rows(rows, np.uint64(key & _WORD), out.numpy())
    return out.view(shape).to(dtype)


def uniform(key: int, shape: tuple[int, ...], *, device: torch.device | str) -> Tensor:
    """Return uniform float32 deviates in [0, 1), multiples of 2^-24; arguments as for `normal`.

    Example:
        >>> bool(uniform(7, (100, 100), device="cpu").mean().sub(0.5).abs() < 0.02)
        True
    """
    columns = shape[-1] if shape else 1
    bits = _bits_torch(key, math.prod(shape[:-1]), columns, torch.device(device))
    return (bits >> 8).float().mul_(2.0**-24).view(shape)


@functools.cache
def has_triton() -> bool:
    """Return whether the kernels for GPUs can be compiled: by Triton, which needs a C compiler."""
    compilers = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    return importlib.util.find_spec("triton") is not None and any(map(shutil.which, compilers))


# The polynomials for a GPU, highest power first.
LOG = tuple(float(c) for c in (_L7, _L6, _L5, _L4, _L3, _L2, _L1, _L0))
COSINE = tuple(float(c) for c in (_C4, _C3, _C2, _C1, _C0))
SINE = tuple(float(c) for c in (_S4, _S3, _S2, _S1, _S0))
TWO_LN2 = float(_TWO_LN2)

# The same integer arithmetic with torch's signed integers: products wrap around alike, and right
# shifts are masked.
_WORD = (1 << 64) - 1


def signed(word: int) -> int:
    """Return the signed 64-bit integer with the bits of `word`."""
    return ((word & _WORD) ^ (1 << 63)) - (1 << 63)


def _shifted(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mixed_torch(h: Tensor, key: Tensor) -> Tensor:
    h = (((h ^ (h >> 16)) * 0x7FEB352D) & 0xFFFFFFFF) ^ key
    h = ((h ^ (h >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return h ^ (h >> 16)


def _bits_torch(key: int, rows: int, columns: int, device: torch.device) -> Tensor:
    """Return `fill_bits` of rows whose first key is `row_key(key)`, int64, ``(rows, columns)``."""
    z = (torch.arange(rows, device=device) + signed(key)) * signed(0x9E3779B97F4A7C15)
    z = (z ^ _shifted(z, 30)) * signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * signed(0x94D049BB133111EB)
    z = (z ^ _shifted(z, 31)).unsqueeze(1)
    place = torch.arange(columns, device=device)
    return _mixed_torch((place + (z & 0xFFFFFFFF)) & 0xFFFFFFFF, _shifted(z, 32))


def _normal_torch(key: int, rows: int, columns: int, device: torch.device) -> Tensor:
    """Return `fill_normal` of rows whose first key is `row_key(key)`, ``(rows, columns)``."""
    blocks = -(-columns // BLOCK)
    bits = _bits_torch(key, rows, blocks * BLOCK, device).view(rows, blocks, 2, _HALF)
    first, second = bits.unbind(2)
    u = (first >> 1).float() + 0.5
    pattern = u.view(torch.int32)
    m = (pattern & _MANTISSA).float() * 2.0**-23
    low = _horner(m, LOG)
    exponent = ((pattern >> 23) - TOP).float()
    radius = (low - exponent * TWO_LN2).abs().sqrt()
    t = ((second ^ (1 << 31)) - (1 << 31)).float() * 2.0**-32
    s = t * t
    across = radius * (1 - 2 * (first & 1)) * _horner(s, COSINE)
    along = t * (_horner(s, SINE) * radius)
    return torch.stack([across, along], 2).view(rows, blocks * BLOCK)[:, :columns]


def _horner(x: Tensor, terms: tuple[float, ...]) -> Tensor:
    """Evaluate a polynomial by Horner's scheme, as the kernel does."""
    y = torch.full_like(x, terms[0])
    for term in terms[1:]:
        y = y * x + term
    return y
