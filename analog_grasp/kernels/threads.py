"""Kernels compiled by numba, run on the threads that torch computes with."""

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
from platformdirs import user_cache_path

# Waking the threads takes as long as processing about this many elements.
_WORTH_WAKING = 20_000
# Several pieces per thread, so that a delayed thread does not delay the others.
_PIECES_PER_THREAD = 4

_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def parallel_kernel(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a kernel over rows, cached on disk, that runs on torch's number of threads.

    Args:
        function: Takes the first row, the row to stop before, and further arguments. The result of
            a row must not depend on the results of other rows.

    Returns:
        The kernel for all rows: it takes their number, and the function's further arguments.
    """
    compiled = _compiled(function)

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


@functools.cache
def _sources_digest() -> str:
    """Return a hash of this folder's sources, which kernels inline."""
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return hashlib.blake2b(sources, digest_size=8).hexdigest()


def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a kernel and cache it on disk, by the state of this folder's sources.

    numba's own cache checks only the file that defines a kernel, not the files it inlines.
    """
    before = numba.config.CACHE_DIR
    folder = Path(before or user_cache_path("analog-grasp") / "kernels")
    numba.config.CACHE_DIR = str(folder / _sources_digest())
    try:
        # nogil, so that several threads can run it.
        return numba.njit(nogil=True, cache=True)(function)
    finally:
        numba.config.CACHE_DIR = before
