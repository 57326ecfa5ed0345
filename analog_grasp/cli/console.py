"""What a user sees: results on stdout; progress, notes and errors on stderr."""

import inspect
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    # Not to be waited for where nothing runs.
    from analog_grasp.study.progress import Advance

# In a pipe there is no screen to fit into, and a broken table helps nobody.
_PIPE_WIDTH = 200
# One measurement of a large model takes minutes; the speed is a mean over this time, in seconds.
_SPEED_PERIOD = 1800.0


def show(thing: str | Table) -> None:
    """Print a sentence or a table; sentences are left unbroken, for whoever reads a pipe."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    console.print(thing, markup=False, soft_wrap=isinstance(thing, str))


def tell(kind: str, text: str) -> None:
    """Print one line beside the results: an error, a note or an interruption.

    What a terminal would obey, in a name of unknown origin, is shown as it is written in Python.
    """
    line = " ".join(text.split())
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    print(f"{kind}: {shown}", file=sys.stderr)


class Stages:
    """Shows the stages of a run, the latest figure and the time left; in a pipe, a line a stage.

    A `Progress` of `analog_grasp.study`, to be used within a `with`.

    Args:
        quiet: Show nothing.
        verbose: Show each figure in a line of its own.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._verbose = verbose
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[latest]}", markup=False),
            console=self._console,
            transient=True,
            speed_estimate_period=_SPEED_PERIOD,
            disable=not self._console.is_interactive,
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def __call__(self, description: str, total: int) -> "Advance":
        """Begin a stage of so many steps; the result is called after each."""
        if not self._console.is_interactive:
            self._line(description)
        bar = self._bars.add_task(description, total=total, latest="")

        def advance(latest: str = "") -> None:
            self._bars.update(bar, advance=1, latest=latest)
            if self._verbose and latest:
                self._line(latest)

        return advance

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the chatter of the packages below; warnings of our own become notes, each once."""
    _show_progress_bars(False)
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with noting(partial(tell, "note")):
            yield
    finally:
        logging.disable(disabled)
        _show_progress_bars(True)


@contextmanager
def loading(command: str) -> Iterator[None]:
    """What is imported for a command, without its chatter, and told of where it fails.

    Raises:
        RuntimeError: Something cannot be imported.
    """
    try:
        yield
    except Exception as error:
        raise RuntimeError(
            f"The command {command} cannot be loaded ({error}): `analog-grasp doctor` tells what "
            "is wrong with this installation."
        ) from error
    _show_progress_bars(False)


@contextmanager
def noting(note: Callable[[str], None]) -> Iterator[None]:
    """Hand on warnings of our own, each once, and drop those of other packages."""
    told: set[str] = set()

    def hear(message: Warning | str, *_: Any, **__: Any) -> None:
        text = str(message)
        if text not in told and _comes_from_us():
            told.add(text)
            note(text)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = hear
        yield


def _show_progress_bars(on: bool) -> None:
    """Switch the bars of the packages that are loaded, and load none for it."""
    if transformers := sys.modules.get("transformers"):
        bars = transformers.utils.logging
        (bars.enable_progress_bar if on else bars.disable_progress_bar)()
    if datasets := sys.modules.get("datasets"):
        (datasets.enable_progress_bars if on else datasets.disable_progress_bars)()


def _comes_from_us() -> bool:
    """Whether the warning being shown was raised in this package.

    The stack tells: the file that a warning carries is that of whoever it is meant for.
    """
    frame = inspect.currentframe()
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module not in (__name__, "warnings", "_py_warnings"):
            return module.startswith("analog_grasp.")
        frame = frame.f_back
    return False
