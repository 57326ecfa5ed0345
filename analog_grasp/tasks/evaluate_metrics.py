"""Metrics of Hugging Face evaluate, by name or by a local script, as metrics of a task."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from analog_grasp.tasks.base import Task
from analog_grasp.tasks.classification import SentenceTask
from analog_grasp.tasks.generation import TEXT_METRICS, GenerationTask


@dataclass(frozen=True)
class EvaluateMetric:
    """A metric of evaluate as a function of `(outputs, references)`; higher counts as better.

    The metric receives the predicted class of each example, the predicted number of a regression,
    0 or 1 per label where an example can have several labels, or the generated texts, together with
    the labels or the references. It is loaded once per process.

    A metric is Python code, which runs: that of the script, or that of the metric's page on the
    Hub.

    Args:
        source: A script such as ``"metrics/mine.py"``, or a name on the Hub such as ``"rouge"``.
        key: The value to take if the metric returns several, such as ``"rougeL"``.

    Raises:
        FileNotFoundError: There is no such script, or the Hub cannot be reached.
        ValueError: The package evaluate is not installed, or the metric cannot be loaded.

    Example:
        ``SentenceTask("mine", rows, rows, names, metrics=(EvaluateMetric("metrics/mine.py"),))``
    """

    source: str
    key: str | None = None

    def __post_init__(self) -> None:
        _load(self.source)
        name = Path(self.source).stem if self.source.endswith(".py") else Path(self.source).name
        parts = (name, self.key) if self.key else (name,)
        object.__setattr__(self, "__name__", "_".join(parts).replace("-", "_"))

    def __call__(self, outputs: Any, references: Any) -> float:
        """Return the value of the metric.

        Args:
            outputs: Logits, ``(n, C)`` or ``(n, 1)``, or n texts.
            references: Labels, ``(n,)`` or ``(n, C)``, or a list of texts for each output.

        Raises:
            ValueError: The metric returns several values and no key is given, or no finite number.
        """
        found = _load(self.source).compute(
            predictions=_predictions(outputs, references), references=list(references)
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
        >>> from analog_grasp.tasks import load_task
        >>> with_metric(load_task("reviews"), "f1").metrics
        ('f1', 'accuracy')
    """
    known: list[str] = list(task.metrics)
    if isinstance(task, SentenceTask):
        known += task._known_metrics()
    elif isinstance(task, GenerationTask):
        known += TEXT_METRICS
    chosen: str | EvaluateMetric = metric
    if metric not in known and isinstance(task, SentenceTask | GenerationTask):
        source, _, key = metric.partition(":")
        chosen = EvaluateMetric(source, key or None)
    others = [name for name in task.metrics if name != metric]
    changes: dict[str, Any] = {"metrics": (chosen, *others)}
    return replace(task, **changes)


def _predictions(outputs: Any, references: Any) -> list[Any]:
    if not isinstance(outputs, np.ndarray):
        return list(outputs)
    if np.ndim(references) == 2:
        return (outputs > 0).astype(np.int64).tolist()
    if outputs.shape[1] == 1:
        return outputs[:, 0].tolist()
    return outputs.argmax(axis=1).tolist()


@lru_cache
def _load(source: str) -> Any:
    if find_spec("evaluate") is None:
        raise ValueError(
            f"The metric {source} needs the package evaluate, which is not installed: run pip "
            "install evaluate."
        )
    if source.endswith(".py") and not Path(source).is_file():
        raise FileNotFoundError(f"The metric script {source} does not exist; give its path.")
    import evaluate

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
