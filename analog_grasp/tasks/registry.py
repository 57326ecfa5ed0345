"""Tasks by name, and metrics of the package evaluate for them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import evaluate
import numpy as np

from analog_grasp.tasks.base import Task
from analog_grasp.tasks.classification import SentenceTask
from analog_grasp.tasks.e2e import GenerationTask, e2e, e2e_dev
from analog_grasp.tasks.glue import GLUE, glue
from analog_grasp.tasks.harness import harness_task
from analog_grasp.tasks.language_modeling import language_modeling
from analog_grasp.tasks.metrics import predicted_labels
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
    chosen: str | EvaluateMetric = metric
    has_others = isinstance(task, SentenceTask | GenerationTask)
    if has_others and metric not in (*task.metrics, *task.known_metrics):
        source, _, key = metric.partition(":")
        chosen = EvaluateMetric(source, key or None)
    others = [name for name in task.metrics if name != metric]
    changes: dict[str, Any] = {"metrics": (chosen, *others)}
    return replace(task, **changes)


@dataclass(frozen=True)
class EvaluateMetric:
    """A metric of evaluate as a function of `(outputs, references)`; higher counts as better.

    The metric receives the predicted class of each example, the predicted number of a regression,
    0 or 1 per label where an example can have several labels, or the generated texts, together with
    the labels or the references. It is loaded once per process.

    Args:
        source: A script such as ``"metrics/mine.py"``, or a name on the Hub such as ``"rouge"``.
            Its code runs.
        key: The value to take if the metric returns several, such as ``"rougeL"``.

    Raises:
        FileNotFoundError: There is no such script, or the Hub cannot be reached.
        ValueError: The metric cannot be loaded.

    Example:
        ``SentenceTask("mine", rows, rows, names, metrics=(EvaluateMetric("metrics/mine.py"),))``
    """

    source: str
    key: str | None = None

    def __post_init__(self) -> None:
        _load_metric(self.source)
        name = Path(self.source).stem if self.source.endswith(".py") else Path(self.source).name
        parts = (name, self.key) if self.key else (name,)
        object.__setattr__(self, "__name__", "_".join(parts).replace("-", "_"))

    def __call__(self, outputs: Any, references: Any) -> float:
        """Return the value of the metric of logits and labels, or of texts and their references.

        Raises:
            ValueError: The metric returns several values and no key is given, or no finite number.
        """
        predictions = outputs
        if isinstance(outputs, np.ndarray):
            single = outputs.shape[1] == 1 and np.ndim(references) == 1
            labels = np.asarray(references)
            predictions = outputs[:, 0] if single else predicted_labels(outputs, labels)
            predictions = predictions.tolist()
        found = _load_metric(self.source).compute(
            predictions=predictions, references=list(references)
        )
        name = Path(self.source).stem
        key = self.key or (name if name in found else next(iter(found), None))
        if key not in found or (self.key is None and key != name and len(found) > 1):
            raise ValueError(
                f"The metric {self.source} returns {', '.join(found) or 'nothing'}; name one of "
                f"them after a colon, such as {self.source}:{next(iter(found), 'KEY')}."
            )
        value = found[key]
        if not np.isscalar(value) or not math.isfinite(float(value)):  # type: ignore[arg-type]
            raise ValueError(
                f"The metric {self.source} returns {str(value)[:60]} as {key}; it should be a "
                "finite number."
            )
        return float(value)  # type: ignore[arg-type]


@lru_cache
def _load_metric(source: str) -> Any:
    if source.endswith(".py") and not Path(source).is_file():
        raise FileNotFoundError(f"The metric script {source} does not exist; give its path.")
    try:
        return evaluate.load(source, keep_in_memory=True)
    except OSError as error:
        raise FileNotFoundError(
            f"The metric {source} could not be loaded from the Hub, which cannot be reached or has "
            "no such metric; give the path of a local script of evaluate instead."
        ) from error
    except Exception as error:
        reason = str(error).partition("\n")[0][:200].rstrip(".")
        raise ValueError(f"The metric {source} cannot be loaded: {reason}.") from error
