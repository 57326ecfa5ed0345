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

# Waking the threads takes as long as reading about so many numbers.
_WORTH_WAKING = 20_000
# So that a thread that is held up does not hold up the others.
_PIECES_A_THREAD = 4

_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def parallel_kernel(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a kernel of rows and keep it on disk; it runs on as many threads as torch has.

    Args:
        function: Takes the first row and the end of the rows that it is to compute, and arguments
            of its own. What it writes for a row depends on nothing that it writes for others.

    Returns:
        The kernel for all rows: it takes their number, and the function's own arguments.
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
    """Compute all rows, the threads of a team from `_openmp` taking one piece after the other."""
    pieces = max(min(rows, threads * _PIECES_A_THREAD), 1)
    ends = [rows * i // pieces for i in range(pieces + 1)]
    waiting = iter(list(itertools.pairwise(ends)))
    failures: list[BaseException] = []

    def work(_: object) -> None:
        try:
            for first, end in waiting:
                compute(first, end)
        # ctypes would print it and go on.
        except BaseException as failure:
            failures.append(failure)

    team(_Body(work), None, threads, 0)
    if failures:
        raise failures[0]


@functools.cache
def _openmp() -> Callable[..., None] | None:
    """What runs a function on a team of threads, in the GNU OpenMP that torch has loaded.

    A pool of our own would compete with torch's threads, which spin for a while after each product:
    conversions took twice as long. None where torch computes with another library; kernels run on
    one thread there.
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
    """A hash of what kernels inline from this folder."""
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return hashlib.blake2b(sources, digest_size=8).hexdigest()


def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    """On disk, numba watches only the file that a kernel stands in: what it takes from the files of
    this folder is inlined, so results are kept apart for each state of these.
    """
    before = numba.config.CACHE_DIR
    folder = Path(before or user_cache_path("analog-grasp") / "kernels")
    numba.config.CACHE_DIR = str(folder / _sources_digest())
    try:
        # Without Python's lock, so that several threads can run it.
        return numba.njit(nogil=True, cache=True)(function)
    finally:
        numba.config.CACHE_DIR = before
