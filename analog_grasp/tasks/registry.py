"""The tasks by name."""

import difflib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from analog_grasp.tasks.base import Task
from analog_grasp.tasks.e2e.data import e2e, e2e_dev
from analog_grasp.tasks.glue import GLUE, glue
from analog_grasp.tasks.reviews import reviews

Loader = Callable[[Path | None], Task]


def _builtin(data_dir: Path | None) -> Task:
    if data_dir is not None:
        raise ValueError(
            f"The task 'reviews' is built in and reads no files, but a data folder was given "
            f"({data_dir}); leave it out."
        )
    return reviews()


_LOADERS: dict[str, Loader] = {
    "reviews": _builtin,
    **{f"glue/{name}": partial(glue, name) for name in GLUE},
    "e2e": e2e,
    "e2e/dev": e2e_dev,
}


def task_names() -> list[str]:
    """The names that `load_task` knows.

    Example:
        >>> "reviews" in task_names()
        True
    """
    return list(_LOADERS)


def load_task(name: str, data_dir: str | Path | None = None) -> Task:
    """A task by its name.

    Args:
        name: one of `task_names()`.
        data_dir: the folder with the task's files in their official layout; without it the task
            comes from the Hub, or is built in.

    Raises:
        ValueError: no task has the name, the task takes no data folder, or a file of it is wrong.
        FileNotFoundError: the task's files are not in the folder, or the Hub cannot be reached.

    Example:
        >>> len(load_task("reviews").validation)
        200
    """
    if name not in _LOADERS:
        close = difflib.get_close_matches(name, _LOADERS, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise ValueError(
            f"There is no task '{name}'; {hint}the tasks are {', '.join(sorted(_LOADERS))}."
        )
    return _LOADERS[name](None if data_dir is None else Path(data_dir))


def register_task(name: str, loader: Loader) -> None:
    """Make a task of your own known to `load_task`, and so to the command line.

    A task needs no name to be used: `SentenceTask(...)` or `GenerationTask(...)` from two
    data sets will do everywhere else.

    Args:
        name: the new name.
        loader: called with the data folder, or None where none was given.

    Raises:
        ValueError: the name is taken.

    Example:
        >>> register_task("few-reviews", lambda data_dir: reviews(train=8, validation=8))
        >>> len(load_task("few-reviews").train)
        8
    """
    if name in _LOADERS:
        raise ValueError(f"There is a task '{name}' already; register yours by another name.")
    _LOADERS[name] = loader
