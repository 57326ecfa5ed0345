"""Shared code of the benchmarks: timing, ratios, peak memory, the machine, resumed settings."""

import argparse
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from analog_grasp.study.provenance import check_same


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    repeats: int,
    warm: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Return the seconds of each call of several functions, called in turn.

    Changes of the machine's speed then affect all functions alike, and the calls at one position
    form a pair. Every second round is in reverse order.

    Args:
        functions: The functions by name.
        repeats: Timed calls per function.
        warm: Call each function once before, untimed, for compilation and caches.
        clock: Returns the time; `time.process_time` on a machine that does other work too.

    Example:
        >>> seconds = interleaved({"ours": lambda: 1, "theirs": lambda: 2}, repeats=3)
        >>> {name: len(calls) for name, calls in seconds.items()}
        {'ours': 3, 'theirs': 3}
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values() if warm else ():
        function()
    for turn in range(repeats):
        for name in list(functions) if turn % 2 == 0 else reversed(functions):
            begin = clock()
            functions[name]()
            seconds[name].append(clock() - begin)
    return seconds


def ratio_table(title: str, seconds: Mapping[str, Sequence[float]], reference: str) -> str:
    """Return a Markdown table of median seconds and their ratio to the reference.

    With quartiles; those of a ratio are over pairs of calls.

    Args:
        title: Title of the table.
        seconds: Result of `interleaved`.
        reference: The name of the peer with ratio 1.
    """
    rows = []
    ones = np.asarray(seconds[reference])
    for name, calls in seconds.items():
        taken = np.asarray(calls)
        ratio = np.median(taken) / np.median(ones)
        rows.append(
            (name, f"{np.median(taken):.4g}", _quartiles(taken), f"{ratio:.3g}")
            + (("1",) if name == reference else (_quartiles(taken / ones),))
        )
    header = ("", "median, s", "quartiles, s", f"× {reference}", "quartiles by pairs")
    return f"**{title}**\n\n{markdown(header, rows)}"


def same_settings(path: Path, asked: argparse.Namespace, *free: str) -> None:
    """Write the arguments of a script beside its results; exit if those there have others.

    Those in `free` may differ, as the results are kept apart by them; so may ``--out`` and
    ``--data-dir``, the place of the same files.
    """
    free = ("out", "data_dir", *free)
    given = {name: str(value) for name, value in vars(asked).items() if name not in free}
    there = json.loads(path.read_text()) if path.is_file() else given
    try:
        check_same(str(path.parent), "set of results", there, given)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(given))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, the first column aligned left and the others right."""
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _quartiles(values: np.ndarray) -> str:
    low, high = np.quantile(values, (0.25, 0.75))
    return f"{low:.3g} to {high:.3g}"


class Memory(NamedTuple):
    """Resident memory of a process, bytes.

    Attributes:
        before: With all modules loaded, before the work.
        peak: The maximum.
    """

    before: int
    peak: int

    @property
    def added(self) -> int:
        """Return the peak in excess of the loaded modules."""
        return self.peak - self.before


def apart[T](function: Callable[..., T], *arguments: object) -> T:
    """Return the result of a call in a new process.

    Args:
        function: A function at the top level of its module, which the process imports first.
        arguments: Arguments of the call, pickled.

    Raises:
        RuntimeError: The call failed; its message is on standard error.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(there, function, arguments))
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        raise RuntimeError(f"{function.__name__} failed in its own process.") from None
    finally:
        process.join()


def peak_memory(function: Callable[..., object], *arguments: object) -> Memory:
    """Return the memory of a call in a new process; arguments as for `apart`."""
    return apart(_watched, function, arguments)


def _answer(pipe: Connection, function: Callable[..., object], arguments: tuple[object, ...]):
    pipe.send(function(*arguments))


def _watched(function: Callable[..., object], arguments: tuple[object, ...]) -> Memory:
    # Not getrusage, whose maximum is inherited from the parent process.
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    function(*arguments)
    return Memory(before, status("VmHWM"))


def status(field: str) -> int:
    """Return a size of this process in bytes, such as VmRSS, by its name in /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) * 1024


def machine() -> str:
    """Return one line with processor, cores, threads and versions."""
    # Imported here, so that a new process loads only the modules of its function.
    import torch

    packages = ("torch", "transformers", "aihwkit", "numba")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return (
        f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}; Python {platform.python_version()}, {versions}"
    )


def _processor() -> str:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return names[0] if names else platform.machine()
