"""Kernels compiled by numba, on the threads that torch computes with, and what they share."""

import ctypes
import functools
import hashlib
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.polynomial import Chebyshev, Polynomial
from numpy.typing import NDArray
from platformdirs import user_cache_path

Floats = NDArray[np.float32]

# Waking the threads takes as long as processing about this many elements.
_WORTH_WAKING = 20_000
# Several pieces per thread, so that a delayed thread does not delay the others.
_PIECES_PER_THREAD = 4
# Kernels inline functions of this folder.
_SOURCES = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
_MAGNITUDE = 0x7FFFFFFF
# The name by which `_work` calls the kernel for which it is compiled.
_kernel: Callable[..., None]


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
    # numba's cache knows a function by its name, and checks only the file in which it is written.
    sources = _SOURCES + Path(inspect.getfile(function)).read_bytes()
    digest = hashlib.blake2b(sources, digest_size=8).hexdigest()
    numba.config.CACHE_DIR = str(folder / digest)
    try:
        # nogil, so that several threads can run it.
        compiled = numba.njit(nogil=True, cache=True)(function)
        work = _compiled_for(function, _work, _kernel=compiled)
        compute = _compiled_for(function, _compute, _work=work)
    finally:
        numba.config.CACHE_DIR = before

    @functools.wraps(function)
    def run(rows: int, *args: Any) -> None:
        openmp, threads = _openmp(), torch.get_num_threads()
        largest = max(arg.size for arg in args if isinstance(arg, np.ndarray))
        if openmp is None or largest < _WORTH_WAKING:
            threads = 1
        # One thread raises the exception of a kernel that failed on a team.
        if compute(openmp or (0, 0), threads, rows, args):
            compute((0, 0), 1, rows, args)

    return run


def _compiled_for(function: Callable[..., None], template: Callable[..., Any], **names: Any) -> Any:
    """Compile a template with global names of its own, cached by the name of a function."""
    own = FunctionType(template.__code__, template.__globals__ | names)
    own.__qualname__ = f"{function.__qualname__}.{template.__name__}"
    return numba.njit(nogil=True, cache=True)(own)


def _work(thread: int, threads: int, rows: int, taken: NDArray[np.int64], args: Any) -> None:
    """Compute a thread's share of the rows by `_kernel` in pieces, then what others have left.

    As in torch, a thread has the same share in every kernel, which its cache then holds.
    """
    for i in range(threads):
        share = (thread + i) % threads
        start, end = rows * share // threads, rows * (share + 1) // threads
        size = max((end - start) // _PIECES_PER_THREAD, 1)
        first = start + _add_to(taken, share, size)
        while first < end:
            _kernel(first, min(first + size, end), *args)  # noqa: F821
            first = start + _add_to(taken, share, size)


def _compute(openmp: tuple[int, int], threads: int, rows: int, args: Any) -> bool:
    """Compute all rows, on a team if there are several threads; return whether one of it failed."""
    shared = (threads, rows, np.zeros(threads, np.int64), _uncounted(args))
    if threads == 1:
        _work(0, *shared)
        return False
    return _call_on_team(_work, openmp, shared)


@intrinsic
def _uncounted(typing: Any, args: Any) -> Any:
    """Return arguments with arrays whose references are not counted.

    Each slice would count one up and down, a fifth of the time of a kernel over short rows, and
    threads would wait for each other's counts.
    """

    def uncounted(builder: Any, kind: Any, value: Any) -> Any:
        if isinstance(kind, numba.types.Array):
            counter = builder.extract_value(value, 0)
            return builder.insert_value(value, counter.type(None), 0)
        for i, each in enumerate(kind if isinstance(kind, numba.types.BaseTuple) else ()):
            member = uncounted(builder, each, builder.extract_value(value, i))
            value = builder.insert_value(value, member, i)
        return value

    def compute(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return uncounted(builder, args, values[0])

    return args(args), compute


@intrinsic
def _add_to(typing: Any, counts: Any, place: Any, more: Any) -> Any:
    """Add to an element of an array, in one step for all threads, and return what it was."""

    def compute(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, values[0]).data
        return builder.atomic_rmw("add", builder.gep(data, [values[1]]), values[2], "monotonic")

    return numba.int64(counts, numba.int64, numba.int64), compute


@intrinsic
def _call_on_team(typing: Any, function: Any, openmp: Any, args: Any) -> Any:
    """Call a function of the thread's number and `args` on a team; return whether a call failed.

    The team calls compiled code: threads that call Python wait for its lock, 50 us each time.
    """
    number, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
    inner = numba.void(numba.int64, *args.types)

    def compute(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        run, thread_number = cgutils.unpack_tuple(builder, values[1])
        shared = cgutils.alloca_once_value(builder, values[2])
        failed = cgutils.alloca_once_value(builder, cgutils.false_bit)
        both = cgutils.pack_struct(builder, [shared, failed, thread_number])
        place = cgutils.alloca_once_value(builder, both)
        body = thread_body(context, builder.module, both.type)
        form = ir.FunctionType(ir.VoidType(), [body.type, pointer, number, number])
        workers = builder.trunc(builder.extract_value(values[2], 0), number)
        start = builder.inttoptr(run, form.as_pointer())
        builder.call(start, [body, builder.bitcast(place, pointer), workers, number(0)])
        return builder.load(failed)

    def thread_body(context: Any, module: Any, given: Any) -> ir.Function:
        body = ir.Function(module, ir.FunctionType(ir.VoidType(), [pointer]), "body_of_team")
        body.linkage = "internal"
        builder = ir.IRBuilder(body.append_basic_block())
        both = builder.load(builder.bitcast(body.args[0], given.as_pointer()))
        shared, failed, thread_number = cgutils.unpack_tuple(builder, both)
        form = ir.FunctionType(number, []).as_pointer()
        thread = builder.call(builder.inttoptr(thread_number, form), [])
        values = cgutils.unpack_tuple(builder, builder.load(shared))
        values = [builder.sext(thread, ir.IntType(64)), *values]
        compiled = function.dispatcher.get_compile_result(inner)
        context.add_linking_libs([compiled.library])
        status, _ = context.call_internal_no_propagate(builder, compiled.fndesc, inner, values)
        with builder.if_then(status.is_error):
            builder.store(cgutils.true_bit, failed)
        builder.ret_void()
        return body

    return numba.boolean(function, openmp, args), compute


@functools.cache
def _openmp() -> tuple[int, int] | None:
    """Return the addresses of two functions of torch's GNU OpenMP, or None if it has another.

    GOMP_parallel, which runs a function on a team of threads, and omp_get_thread_num. A separate
    pool would compete with torch's threads, which spin for a while after each product: conversions
    took twice as long. Without GNU OpenMP kernels run on one thread.
    """
    if sys.platform != "linux":
        return None
    for path in (Path(torch.__file__).parent / "lib").glob("libgomp*.so*"):
        try:
            library = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD)
            functions = library.GOMP_parallel, library.omp_get_thread_num
        except (OSError, AttributeError):
            continue
        run, number = (ctypes.cast(f, ctypes.c_void_p).value or 0 for f in functions)
        return run, number
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
