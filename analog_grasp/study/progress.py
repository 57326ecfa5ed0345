"""How far a run is: told to whoever watches, and kept as plain lines in a file."""

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol


class Advance(Protocol):
    """Called after each step of a stage."""

    def __call__(self, latest: str = "") -> None:
        """Count a step; ``latest`` is the figure that it brought, as a reader is shown it."""


Progress = Callable[[str, int], Advance]
"""Begins a stage of so many steps, and returns what is to be called after each."""


def silent(_description: str, _total: int) -> Advance:
    """The progress that shows nothing."""
    return lambda latest="": None


def logged(progress: Progress, path: Path) -> Progress:
    """A progress that also writes lines to a file: each stage, each figure and the time left.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     advance = logged(silent, Path(folder) / "run.log")("measuring 2 cells", 2)
        ...     advance("grasp: accuracy 0.8125")
        ...     [line[20:] for line in (Path(folder) / "run.log").read_text().splitlines()]
        ['measuring 2 cells', '1 of 2, 0:00:00 left: grasp: accuracy 0.8125']
    """

    def begin(description: str, total: int) -> Advance:
        inner, start, done = progress(description, total), time.monotonic(), 0
        log_line(path, description)

        def advance(latest: str = "") -> None:
            nonlocal done
            done += 1
            inner(latest)
            if latest:
                left = (time.monotonic() - start) / done * (total - done)
                shown = timedelta(seconds=round(left))
                log_line(path, f"{done} of {total}, {shown} left: {latest}")

        return advance

    return begin


def log_line(path: Path, text: str) -> None:
    """Add a line with the time to a log.

    Raises:
        OSError: The disk is full or the file cannot be written.
    """
    # Opened for each line: several processes may share a run.
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}\n")
