"""Output of the commands: results on stdout; progress, notes and errors on stderr."""

import errno
import logging
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from analog_grasp.study.progress import Advance, Progress, own_warnings

if TYPE_CHECKING:
    from rich.table import Table

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
"""The option that every command has."""

# Width of tables that are written to a pipe or a file.
_PIPE_WIDTH = 200
# The time left follows the mean speed over this period, in seconds, as one measurement of a large
# model takes minutes.
_SPEED_PERIOD = 1800.0
# Lines of a stage where there is no terminal.
_PARTS = 10


class RequestError(Exception):
    """A request that cannot be fulfilled; the message is the sentence for the user."""


@contextmanager
def request() -> Iterator[None]:
    """Turn each ValueError and OSError raised within into a RequestError, but for a full disk."""
    try:
        yield
    except (ValueError, OSError) as error:
        if _disk_is_full(error):
            raise
        # Other packages raise ValueError for values that a setting of ours supplied.
        text = str(error) if isinstance(error, ValueError) else sentence(error)
        raise RequestError(text) from error


def sentence(error: Exception) -> str:
    """Return an error as one sentence."""
    if _disk_is_full(error):
        file = getattr(error, "filename", None)
        named = f" and {file} cannot be written" if file else ""
        return (
            f"The disk is full{named}: what was written before is kept; repeat the command once "
            "there is room."
        )
    if isinstance(error, OSError) and error.strerror and error.filename:
        return (
            f"The path {error.filename} cannot be used ({error.strerror}): give one that is "
            "readable, and writable where it is the output."
        )
    if isinstance(error, RequestError) or _is_ours(error):
        return str(error)
    reason = f": {error}" if str(error) else ""
    return (
        f"Unexpected {type(error).__name__}{reason.rstrip('.')}; repeat the command with --debug "
        "to see where it comes from."
    )


def _disk_is_full(error: BaseException | None) -> bool:
    """Return whether a full disk caused an error, however many packages it has passed through."""
    while error is not None:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_ours(error: Exception) -> bool:
    """Return whether this package raised an error, and so wrote its message for the user."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    raised_in = frames[-1].f_globals.get("__name__", "") if frames else ""
    return isinstance(error, ValueError | OSError | RuntimeError) and raised_in.startswith(
        "analog_grasp."
    )


def show(thing: "str | Table") -> None:
    """Print a sentence, without line breaks of our own, or a table."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    console.print(thing, markup=False, soft_wrap=isinstance(thing, str))


def print_line(kind: str, text: str) -> None:
    """Print one line on stderr: an error, a note or an interruption.

    Control characters, which may be part of a foreign name, are escaped.
    """
    line = " ".join(text.split())
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    print(f"{kind}: {shown}", file=sys.stderr)


@contextmanager
def stages(*, quiet: bool = False, verbose: bool = False) -> Iterator[Progress]:
    """Show the stages of a run as bars in a terminal, else by a line per tenth of each.

    Args:
        quiet: Show nothing.
        verbose: Show each figure in a line of its own.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True, quiet=quiet, highlight=False)
    lines = not console.is_interactive
    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[latest]}", markup=False),
        console=console,
        transient=True,
        speed_estimate_period=_SPEED_PERIOD,
        disable=lines,
    )
    line = partial(console.print, markup=False, soft_wrap=True)

    def begin(description: str, total: int) -> Advance:
        bar = bars.add_task(description, total=total, latest="")
        done, start = 0, time.monotonic()
        if lines:
            line(description)

        def advance(latest: str = "") -> None:
            nonlocal done
            done += 1
            bars.update(bar, advance=1, latest=latest)
            if verbose and latest:
                line(latest)
            elif lines and done * _PARTS // total > (done - 1) * _PARTS // total:
                left = timedelta(seconds=round((time.monotonic() - start) / done * (total - done)))
                line(f"{description}: {done} of {total}, {left} left")

        return advance

    with bars:
        yield begin


@contextmanager
def without_chatter() -> Iterator[None]:
    """Silence the packages below; warnings of our own become notes at the end, each once."""
    notes: list[str] = []
    _show_progress_bars(False)
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with own_warnings(notes.append):
            yield
    finally:
        for text in notes:
            print_line("note", text)
        logging.disable(disabled)
        _show_progress_bars(True)


@contextmanager
def loading(command: str) -> Iterator[None]:
    """Import the modules of a command within this context.

    Raises:
        RuntimeError: Something cannot be imported.
    """
    try:
        yield
    except Exception as error:
        raise RuntimeError(
            f"The command {command} cannot be loaded ({error}): run `analog-grasp doctor` to check "
            "this installation."
        ) from error
    _show_progress_bars(False)


def _show_progress_bars(on: bool) -> None:
    """Switch the progress bars of the packages that are loaded, without loading any."""
    if transformers := sys.modules.get("transformers"):
        bars = transformers.utils.logging
        (bars.enable_progress_bar if on else bars.disable_progress_bar)()
    if datasets := sys.modules.get("datasets"):
        (datasets.enable_progress_bars if on else datasets.disable_progress_bars)()
