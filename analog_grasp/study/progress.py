"""Progress of a run: shown by a callback, kept as plain lines in a log, and warnings as notes."""

import inspect
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol


class Advance(Protocol):
    """Callback after each step of a stage."""

    def __call__(self, latest: str = "") -> None:
        """Count a step; ``latest`` is the figure that it brought, as text for the reader."""


Progress = Callable[[str, int], Advance]
"""Begins a stage with a description and a number of steps; returns the callback for each step."""


def silent(_description: str, _total: int) -> Advance:
    """Return the progress that shows nothing."""
    return lambda latest="": None


def logged(progress: Progress, path: Path) -> Progress:
    """Return a progress that also appends lines to a file: each stage, each figure, the time left.

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
                log_line(
                    path, f"{done} of {total}, {timedelta(seconds=round(left))} left: {latest}"
                )

        return advance

    return begin


def log_line(path: Path, text: str) -> None:
    """Append a line with the time to a log.

    Raises:
        OSError: The disk is full or the file cannot be written.
    """
    # Opened for each line: several processes may share a run.
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}\n")


@contextmanager
def own_warnings(note: Callable[[str], None]) -> Iterator[None]:
    """Pass the text of each warning raised by this package to `note`, once; drop all others.

    Example:
        >>> found = []
        >>> with own_warnings(found.append):
        ...     warnings.warn("raised outside of the package", stacklevel=1)
        >>> found
        []
    """
    seen: set[str] = set()

    def receive(message: Warning | str, *_: Any, **__: Any) -> None:
        text = str(message)
        if text not in seen and _raised_by_this_package():
            seen.add(text)
            note(text)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = receive
        yield


def _raised_by_this_package() -> bool:
    """Return whether the warning that is being shown was raised in this package.

    The stack decides: the file of a warning is that of the caller for whom it is meant.
    """
    frame = inspect.currentframe()
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module not in (__name__, "warnings", "_py_warnings"):
            return module.startswith("analog_grasp.")
        frame = frame.f_back
    return False
