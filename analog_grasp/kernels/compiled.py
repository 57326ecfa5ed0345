"""Kernels compiled by numba, on the threads that torch computes with, and what they share."""

import ctypes
import functools
import hashlib
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba.extending import intrinsic
from numpy.polynomial import Chebyshev, Polynomial
from numpy.typing import NDArray
from platformdirs import user_cache_path

Floats = NDArray[np.float32]

# Waking the threads takes as long as processing about this many elements.
_WORTH_WAKING = 20_000
# Several pieces per thread, so that a delayed thread does not delay the others.
_PIECES_PER_THREAD = 4
# Of this folder's sources, which kernels inline: numba's cache checks only the file of a kernel.
_SOURCES = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
_DIGEST = hashlib.blake2b(_SOURCES, digest_size=8).hexdigest()
_MAGNITUDE = 0x7FFFFFFF

_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def parallel_kernel(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a kernel over rows, cached on disk, that runs on torch's number of threads.

    Args:
        function: Takes the first row, the row to stop before, and further arguments. The result of
            a row must not depend on the results of other rows.

    Returns:
        The kernel for all rows: it takes their number, and the function's further arguments.
    """
    before = numba.config.CACHE_DIR
    folder = Path(before or user_cache_path("analog-grasp") / "kernels")
    numba.config.CACHE_DIR = str(folder / _DIGEST)
    try:
        # nogil, so that several threads can run it.
        compiled = numba.njit(nogil=True, cache=True)(function)
    finally:
        numba.config.CACHE_DIR = before

    @functools.wraps(function)
    def run(rows: int, *args: Any) -> None:
        threads, team = torch.get_num_threads(), _openmp()
        largest = max(arg.size for arg in args if isinstance(arg, np.ndarray))
        if threads == 1 or largest < _WORTH_WAKING or team is None:
            compiled(0, rows, *args)
        else:
            _share(team, rows, threads, lambda first, end: compiled(first, end, *args))

    return run


def _share(
    team: Callable[..., None], rows: int, threads: int, compute: Callable[[int, int], None]
) -> None:
    """Compute all rows on a team of threads from `_openmp`, each taking piece after piece."""
    pieces = max(min(rows, threads * _PIECES_PER_THREAD), 1)
    ends = [rows * i // pieces for i in range(pieces + 1)]
    waiting = iter(list(itertools.pairwise(ends)))
    failures: list[BaseException] = []

    def work(_: object) -> None:
        try:
            for first, end in waiting:
                compute(first, end)
        # ctypes would print the exception and continue.
        except BaseException as failure:
            failures.append(failure)

    team(_Body(work), None, threads, 0)
    if failures:
        raise failures[0]


@functools.cache
def _openmp() -> Callable[..., None] | None:
    """Return the function of torch's GNU OpenMP that runs a callback on a team of threads.

    A separate pool would compete with torch's threads, which spin for a while after each product:
    conversions took twice as long. None if torch uses another library; kernels then run on one
    thread.
    """
    if sys.platform != "linux":
        return None
    for path in (Path(torch.__file__).parent / "lib").glob("libgomp*.so*"):
        try:
            run = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD).GOMP_parallel
        except (OSError, AttributeError):
            continue
        run.argtypes = [_Body, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        run.restype = None
        return run
    return None


def polynomial(
    function: Callable[[np.ndarray], np.ndarray], first: float, last: float, degree: int
) -> tuple[np.float32, ...]:
    """Return the coefficients of the polynomial through the Chebyshev nodes, lowest power first."""
    fit = Chebyshev.interpolate(function, degree, [first, last])
    return tuple(np.float32(c) for c in fit.convert(kind=Polynomial).coef)


@intrinsic
def as_bits(typing: Any, number: Any) -> Any:
    """Return the bits of a float32 as an int32."""
    return numba.int32(numba.float32), lambda context, builder, signature, values: builder.bitcast(
        values[0], ir.IntType(32)
    )


@intrinsic
def as_float(typing: Any, bits: Any) -> Any:
    """Return the float32 with the bits of an int32."""
    return numba.float32(numba.int32), lambda context, builder, signature, values: builder.bitcast(
        values[0], ir.FloatType()
    )


@numba.njit
def largest(row: Floats) -> np.int32:
    """Return the bits of the largest magnitude; NaN is larger than infinity."""
    # Magnitudes are ordered as their bits, and an integer maximum may be taken in any order.
    pattern = row.view(np.int32)
    most = np.int32(0)
    for o in range(pattern.size):
        most = max(most, np.int32(pattern[o] & _MAGNITUDE))
    return most


@numba.njit
def round_to(row: Floats, step: np.float32) -> None:
    """Round to multiples of a step; 0 for none."""
    if step > 0:
        steps = np.float32(1.0) / step
        for o in range(row.size):
            row[o] = np.rint(row[o] * steps) * step


@numba.njit
def copy(row: NDArray, out: NDArray) -> None:
    """Copy a row, converted to the type of `out`; an assignment takes several times as long."""
    for o in range(row.size):
        out[o] = row[o]


@numba.njit
def clip(row: Floats, bound: np.float32) -> None:
    """Clip to a magnitude; NaN stays."""
    for o in range(row.size):
        value = row[o]
        value = bound if value > bound else value
        row[o] = -bound if value < -bound else value
