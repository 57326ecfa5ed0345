"""Random numbers that are a function of a key and a place: the same on any number of threads."""

import functools
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from platformdirs import user_cache_path
from scipy.special import ndtri
from torch import Tensor

# Of numba's own threads: those of OpenMP would be a second pool beside torch's, and each pool spins
# for work on the cores that the other needs.
numba.config.THREADING_LAYER = "workqueue"

Floats = NDArray[np.float32]
Words = NDArray[np.uint32]

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


def parallel_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a kernel whose rows run on as many threads as torch has, and keep it on disk.

    On one thread it is compiled without numba's pool, which takes longer to wake than a small tile
    to read. On disk, numba watches only the file that a kernel stands in: what it takes from the
    files of this folder is inlined, so results are kept apart for each state of these.
    """
    serial, parallel = (_compiled(function, pool) for pool in (False, True))

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        if torch.get_num_threads() == 1:
            return serial(*args)
        use_torch_threads()
        return parallel(*args)

    return run


@functools.cache
def _sources_digest() -> str:
    """A hash of what kernels inline from this folder."""
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return hashlib.blake2b(sources, digest_size=8).hexdigest()


def _compiled(function: Callable[..., Any], pool: bool) -> Callable[..., Any]:
    before = numba.config.CACHE_DIR
    folder = Path(before or user_cache_path("analog-grasp") / "kernels")
    # numba's own names do not tell a kernel with a pool from the same without.
    numba.config.CACHE_DIR = str(folder / f"{_sources_digest()}-{'pool' if pool else 'one'}")
    try:
        return numba.njit(parallel=pool, cache=True)(function)
    finally:
        numba.config.CACHE_DIR = before


@numba.njit(inline="always")
def row_key(counter: np.uint64) -> np.uint64:
    """64 random bits of a counter: the finaliser of splitmix64 (Steele et al., OOPSLA 2014)."""
    z = counter * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@numba.njit(inline="always")
def _mixed(h: np.uint32, key: np.uint32) -> np.uint32:
    """A bijection of 32 bits with little bias (the `lowbias32` constants of C. Wellons, 2018).

    Half-way, `key` makes of it one of 2^32 bijections.
    """
    h = np.uint32(np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D)) ^ key)
    h = np.uint32((h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(h ^ (h >> np.uint32(16)))


@numba.njit(inline="always")
def fill_bits(key: np.uint64, out: Words) -> None:
    """32 random bits a place.

    Args:
        key: 64 bits, from `row_key`.
        out: One row, filled.
    """
    first, second = np.uint32(key & np.uint64(0xFFFFFFFF)), np.uint32(key >> np.uint64(32))
    for o in range(out.shape[0]):
        out[o] = _mixed(np.uint32(np.uint32(o) + first), second)


@numba.njit(inline="always")
def fill_normal(key: np.uint64, table: Floats, out: Floats) -> None:
    """Standard normal numbers, a function of key and place, by the inverse of the distribution.

    In loops of their own, each of which the compiler turns into vector instructions.

    Args:
        key: 64 bits, from `row_key`.
        table: `NORMAL_TABLE`.
        out: One row, filled.
    """
    bits = np.empty(out.shape[0], np.uint32)
    fill_bits(key, bits)
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


@parallel_kernel
def _normal_rows(key: np.uint64, table: Floats, out: Floats) -> None:
    for row in numba.prange(out.shape[0]):
        fill_normal(row_key(key + np.uint64(row)), table, out[row])


def normal(
    key: int, shape: tuple[int, ...], *, device: torch.device | str, dtype: torch.dtype
) -> Tensor:
    """Standard normal numbers, the same on every processor.

    A number is a function of the key and its place: its column, and its row when all dimensions
    but the last are flattened. It has the resolution of float32 in every type, and lies within
    6.3 of 0.

    Args:
        key: Names the numbers; its lowest 64 bits count.
        shape: The shape wanted.
        device: The processor.
        dtype: A floating type.

    Example:
        >>> few = normal(7, (2, 3), device="cpu", dtype=torch.float32)
        >>> many = normal(7, (4, 3), device="cpu", dtype=torch.float32)
        >>> torch.equal(few, many[:2])
        True
    """
    columns = shape[-1] if shape else 1
    rows = math.prod(shape[:-1])
    if torch.device(device).type != "cpu":
        return _normal_torch(key, rows, columns, torch.device(device)).view(shape).to(dtype)
    out = torch.empty(rows, columns)
    _normal_rows(np.uint64(key & _WORD), NORMAL_TABLE, out.numpy())
    return out.view(shape).to(dtype)


def uniform(key: int, shape: tuple[int, ...], *, device: torch.device | str) -> Tensor:
    """Uniform float32 numbers in [0, 1), multiples of 2^-24; places are counted as in `normal`.

    Example:
        >>> bool(uniform(7, (100, 100), device="cpu").mean().sub(0.5).abs() < 0.02)
        True
    """
    columns = shape[-1] if shape else 1
    bits = _bits_torch(key, math.prod(shape[:-1]), columns, torch.device(device))
    return (bits >> 8).float().mul_(2.0**-24).view(shape)


# The same integer arithmetic in torch, whose integers have a sign: products wrap around alike, and
# a shift to the right is masked.
_WORD = (1 << 64) - 1


def _signed(word: int) -> int:
    """The 64-bit integer with a sign that has the bits of `word`."""
    return ((word & _WORD) ^ (1 << 63)) - (1 << 63)


def _shifted(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mixed_torch(h: Tensor, key: Tensor) -> Tensor:
    h = (((h ^ (h >> 16)) * 0x7FEB352D) & 0xFFFFFFFF) ^ key
    h = ((h ^ (h >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return h ^ (h >> 16)


def _bits_torch(key: int, rows: int, columns: int, device: torch.device) -> Tensor:
    """`fill_bits` of the rows from `row_key(key)` on, in int64, of shape (rows, columns)."""
    z = (torch.arange(rows, device=device) + _signed(key)) * _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    z = (z ^ _shifted(z, 31)).unsqueeze(1)
    place = torch.arange(columns, device=device)
    return _mixed_torch((place + (z & 0xFFFFFFFF)) & 0xFFFFFFFF, _shifted(z, 32))


def _normal_torch(key: int, rows: int, columns: int, device: torch.device) -> Tensor:
    """`fill_normal` of the rows from `row_key(key)` on, of shape (rows, columns)."""
    bits = _bits_torch(key, rows, columns, device)
    pattern = ((bits & 0x7FFFFFFF).float() + 1.0).view(torch.int32)
    node = ((pattern >> _SHIFT) - _FIRST).long()
    table = torch.from_numpy(NORMAL_TABLE).to(device)
    fraction = (pattern & _MASK).float() / (_MASK + 1)
    size = (table[node + 1] - table[node]).mul_(fraction).add_(table[node])
    return torch.where(bits >> 31 == 1, -size, size)


def use_torch_threads() -> None:
    """Give numba as many threads as torch has; to be called before a parallel kernel."""
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
