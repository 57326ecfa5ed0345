"""What the benchmarks share: peers timed side by side, their ratios, their memory, the machine."""

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


def interleaved(
    functions: Mapping[str, Callable[[], object]], repeats: int, warm: bool = True
) -> dict[str, list[float]]:
    """The seconds that each function takes, called in turn with the others.

    A machine whose pace changes treats all of them alike that way, and the seconds at one position
    belong together. Every second round goes backwards, so that none always follows another.

    Args:
        functions: What is timed, by name.
        repeats: Timed calls of each.
        warm: Whether each is called once before, untimed: compilation, caches.

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
            begin = time.perf_counter()
            functions[name]()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratio_table(title: str, seconds: Mapping[str, Sequence[float]], reference: str) -> str:
    """A Markdown table: median seconds, and their ratio to those of the reference.

    Spreads are the quartiles; those of a ratio are of the calls taken pair by pair.

    Args:
        title: Stands above the table.
        seconds: As `interleaved` gives them.
        reference: The name whose seconds are 1.
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


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left and the others to the right."""
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _quartiles(values: np.ndarray) -> str:
    low, high = np.quantile(values, (0.25, 0.75))
    return f"{low:.3g} to {high:.3g}"


class Memory(NamedTuple):
    """Resident memory of a process, bytes.

    Attributes:
        before: With all modules loaded and nothing done.
        peak: The most at any time.
    """

    before: int
    peak: int

    @property
    def added(self) -> int:
        """What the work took beyond the loaded modules."""
        return self.peak - self.before


def apart[T](function: Callable[..., T], *arguments: object) -> T:
    """What a call returns, made in a fresh process of its own.

    Args:
        function: At the top level of its module, which that process loads first.
        arguments: Those of the call; they are pickled, hence small.

    Raises:
        RuntimeError: The call failed; its own message is on standard error.
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
    """What a call takes at most, in a fresh process of its own; arguments as for `apart`."""
    return apart(_watched, function, arguments)


def _answer(pipe: Connection, function: Callable[..., object], arguments: tuple[object, ...]):
    pipe.send(function(*arguments))


def _watched(function: Callable[..., object], arguments: tuple[object, ...]) -> Memory:
    # Not getrusage, whose maximum is inherited from the process that started this one.
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    function(*arguments)
    return Memory(before, _status("VmHWM"))


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) * 1024


def machine() -> str:
    """One line: processor, cores, threads and the versions that matter."""
    # Here, so that a process of its own loads nothing that its function does not ask for.
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
