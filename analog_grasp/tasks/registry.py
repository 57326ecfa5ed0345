"""Tasks by name."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from analog_grasp.tasks.base import Task
from analog_grasp.tasks.e2e import e2e, e2e_dev
from analog_grasp.tasks.glue import GLUE, glue
from analog_grasp.tasks.harness import harness_task
from analog_grasp.tasks.language_modeling import language_modeling
from analog_grasp.tasks.reviews import reviews
from analog_grasp.tasks.tables import table_task
from analog_grasp.utils.errors import unknown_name
from analog_grasp.utils.types import HARNESS_PREFIX

Loader = Callable[..., Task]


def _reviews(data_dir: Path | None) -> Task:
    if data_dir is not None:
        raise ValueError(
            f"The task 'reviews' is built in and reads no files, but the data folder {data_dir} is "
            "given; omit it."
        )
    return reviews()


_LOADERS: dict[str, Loader] = {
    "reviews": _reviews,
    **{f"glue/{name}": partial(glue, name) for name in GLUE},
    "e2e": e2e,
    "e2e/dev": e2e_dev,
    "csv": table_task,
    "lm": language_modeling,
}


def task_names() -> list[str]:
    """Return the names that `load_task` accepts.

    Example:
        >>> "reviews" in task_names()
        True
    """
    return list(_LOADERS)


def load_task(
    name: str,
    data_dir: str | Path | None = None,
    *,
    max_length: int | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
) -> Task:
    """Return a task by name.

    Args:
        name: One of `task_names()`, or ``"lm-eval/"`` and the names of tasks of lm-eval, separated
            by commas.
        data_dir: Folder with the files of the task in their official layout; if None, the Hub, or
            none for a built-in task. Tasks "lm" and those of lm-eval: see `language_modeling`.
        max_length: Number of tokens at which texts are cut; the task's own if None.
        text_column: Task "csv": column of the text, or two columns separated by a comma.
        label_column: Task "csv": column of the label.

    Raises:
        ValueError: The name is unknown, an argument does not apply to the task, or a file is
            invalid.
        FileNotFoundError: The files are not in the folder, or the Hub cannot be reached.

    Example:
        >>> len(load_task("reviews").validation)
        1000
    """
    if name not in _LOADERS and not name.startswith(HARNESS_PREFIX):
        raise ValueError(unknown_name("task", name, _LOADERS))
    columns: dict[str, Any] = {"text_column": text_column, "label_column": label_column}
    columns = {key: value for key, value in columns.items() if value is not None}
    if columns and name != "csv":
        key, value = next(iter(columns.items()))
        raise ValueError(
            f"The setting {key} is {value!r}, which has no effect on the task '{name}'; omit it, "
            "or use the task csv."
        )
    loader = _LOADERS.get(name)
    if loader is None:
        parts = (part.strip() for part in name.removeprefix(HARNESS_PREFIX).split(","))
        loader = partial(harness_task, [part for part in parts if part])
    task = loader(None if data_dir is None else Path(data_dir), **columns)
    return task if max_length is None else replace(task, max_length=max_length)


def register_task(name: str, loader: Loader) -> None:
    """Add a task to those that `load_task` and the command line accept.

    Registration is only needed to refer to a task by name: everything else takes a `SentenceTask`,
    `GenerationTask` or `LanguageModelingTask` itself.

    Args:
        name: The new name.
        loader: Function called with the data folder, or with None if none is given.

    Raises:
        ValueError: The name exists.

    Example:
        >>> register_task("few-reviews", lambda data_dir: reviews(train=8, validation=8))
        >>> len(load_task("few-reviews").train)
        8
    """
    if name in _LOADERS:
        raise ValueError(f"The task '{name}' exists; choose another name.")
    _LOADERS[name] = loader


def with_metric(task: Task, metric: str) -> Task:
    """Return a task with another primary metric; its other metrics follow.

    Args:
        task: The task.
        metric: A metric that the task knows, or one of evaluate: a name or a script, with the key
            of its value after a colon if it returns several.

    Raises:
        FileNotFoundError: As `EvaluateMetric`.
        ValueError: As `EvaluateMetric`, or the metric does not fit the task.

    Example:
        >>> with_metric(load_task("reviews"), "f1").metrics
        ('f1', 'accuracy')
    """
    return replace(task, metric=metric)
