"""Metrics of the user's own: functions, and metrics of Hugging Face evaluate."""

import math
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from pathlib import Path
from typing import Any

import evaluate
import numpy as np

from analog_grasp.tasks.metrics import (
    CLASSIFICATION,
    REGRESSION,
    TEXT_METRICS,
    Metric,
    predicted_labels,
)
from analog_grasp.utils.metrics import lower_is_better

_BUILT_IN = (*CLASSIFICATION, *REGRESSION, *TEXT_METRICS)


def ordered_metrics(metrics: Any, primary: Any = None) -> tuple[Any, ...]:
    """Return metrics, or a single one, as a tuple without repetitions, the primary one first.

    Example:
        >>> ordered_metrics("accuracy"), ordered_metrics(("accuracy", "f1"), "f1")
        (('accuracy',), ('f1', 'accuracy'))
    """
    several = [metrics] if isinstance(metrics, str) or callable(metrics) else [*metrics]
    return tuple(dict.fromkeys(several if primary is None else [primary, *several]))


def named_metrics(
    task: str,
    metrics: Iterable[str | Metric],
    own: Mapping[str, Metric],
    known: Collection[str],
    examples: tuple[list[Any], list[Any]],
) -> tuple[tuple[str, ...], dict[str, Metric]]:
    """Return the names of metrics, and the functions among them together with those in `own`.

    A name that is neither `known` nor a metric of another kind of task is a metric of evaluate.

    Args:
        task: Name of the task.
        metrics: Names and functions.
        own: Functions by name.
        known: Names that the task knows.
        examples: Predictions and references on which new metrics of evaluate are tried.

    Raises:
        FileNotFoundError: A name is not known and the metric cannot be loaded; see
            `EvaluateMetric`.
        ValueError: As `EvaluateMetric`, or a function has no name, or that of another one, of a
            built-in metric or of an error.
    """
    names, functions = [], dict(own)
    for metric in metrics:
        if isinstance(metric, str) and metric not in (*known, *functions, *_BUILT_IN):
            metric = _loaded_metric(metric, known)
        if isinstance(metric, str):
            names.append(metric)
            continue
        name = getattr(metric, "__name__", "<lambda>")
        if not name.isidentifier() and not isinstance(metric, EvaluateMetric):
            raise ValueError(
                f"A metric of the task '{task}' is {metric!r}, which has no name of its own; "
                "use a function defined with def."
            )
        if functions.get(name, metric) != metric:
            raise ValueError(
                f"Two metrics of the task '{task}' have the name '{name}'; rename one of them."
            )
        if isinstance(metric, EvaluateMetric) and name not in functions:
            metric.check_key(*examples)
        functions[name] = metric
        names.append(name)
    for name, function in functions.items():
        _check_own_name(task, name, function)
    return tuple(dict.fromkeys(names)), functions


def _check_own_name(task: str, name: str, function: Metric) -> None:
    """Raise ValueError where the name of an own metric stands for another metric or direction."""
    if name in _BUILT_IN:
        raise ValueError(
            f"A metric of the task '{task}' has the name '{name}' of a built-in one, which it "
            "would replace; rename it."
        )
    if lower_is_better(name) and not isinstance(function, EvaluateMetric):
        raise ValueError(
            f"A function among the metrics of the task '{task}' has the name '{name}' of an error, "
            "but a higher value of a function counts as better; return the negative error under "
            f"another name, such as negative_{name}."
        )


def _loaded_metric(metric: str, known: Collection[str]) -> "EvaluateMetric":
    source, _, key = metric.partition(":")
    try:
        return EvaluateMetric(source, key or None)
    except FileNotFoundError as error:
        reason, names = str(error).removesuffix("."), ", ".join(dict.fromkeys(known))
        raise FileNotFoundError(f"{reason}, or choose one of {names}.") from error


@dataclass(frozen=True)
class EvaluateMetric:
    """A metric of evaluate as a function of `(outputs, references)`.

    A higher value counts as better, unless the name is that of an error, such as "mae".

    The metric receives the predicted class of each example, the predicted number of a regression,
    0 or 1 per label where an example can have several labels, or the generated texts, together with
    the labels or the references. It is loaded once per process.

    A string among the metrics of a task, such as ``"metrics/mine.py"`` or ``"rouge:rougeL"``,
    stands for this class.

    Args:
        source: A script such as ``"metrics/mine.py"``, or a name on the Hub such as ``"rouge"``.
            Its code runs.
        key: The value to take if the metric returns several, such as ``"rougeL"``.

    Raises:
        FileNotFoundError: There is no such script, or the Hub cannot be reached.
        ValueError: The source is empty, or the metric cannot be loaded.

    Example:
        ``SentenceTask("mine", rows, rows, names, metrics=(EvaluateMetric("metrics/mine.py"),))``
    """

    source: str
    key: str | None = None

    def __post_init__(self) -> None:
        if not self.source.strip():
            raise ValueError(
                f"The name of a metric is {self.source!r}, which is empty; give a name such as f1, "
                "or the path of a script."
            )
        _load_metric(self.source)
        parts = (self._name, self.key) if self.key else (self._name,)
        object.__setattr__(self, "__name__", re.sub(r"\W", "_", "_".join(parts)))

    @property
    def _name(self) -> str:
        path = Path(self.source)
        return path.stem if path.suffix == ".py" else path.name

    def __call__(self, outputs: Any, references: Any) -> float:
        """Return the value of the metric of logits and labels, or of texts and their references.

        Raises:
            ValueError: The metric raises an error, returns several values and no key is given, or
                returns no finite number.
        """
        predictions = outputs
        if isinstance(outputs, np.ndarray):
            single = outputs.shape[1] == 1 and np.ndim(references) == 1
            labels = np.asarray(references)
            predictions = outputs[:, 0] if single else predicted_labels(outputs, labels)
            predictions = predictions.tolist()
        found = self._compute(predictions, list(references))
        key = self._key_of(found)
        value = found[key]
        if not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(
                f"The metric {self.source} returns {str(value)[:60]} as {key}; it should be a "
                "finite number."
            )
        return float(value)

    def check_key(self, predictions: list[Any], references: list[Any]) -> None:
        """Raise ValueError if the metric of a few examples returns no single value or no `key`."""
        try:
            with warnings.catch_warnings(action="ignore"):
                found = self._compute(predictions, references)
        except ValueError:
            # A metric may require more or other examples, so that only a measurement raises.
            return
        self._key_of(found)

    def _compute(self, predictions: list[Any], references: list[Any]) -> Any:
        metric = _load_metric(self.source)
        try:
            return metric.compute(predictions=predictions, references=references)
        except Exception as error:
            # The metric may keep the rows of a failed call.
            _load_metric.cache_clear()
            raise ValueError(
                f"The metric {self.source} raised {type(error).__name__} ({first_line(error)}); "
                "it should return a number for the predictions and references of the task."
            ) from error

    def _key_of(self, found: Any) -> str:
        """Return the key of the value to take."""
        if not isinstance(found, Mapping):
            raise ValueError(
                f"The metric {self.source} returns {str(found)[:60]}; it should return a "
                "dictionary of numbers."
            )
        name = self._name
        key = self.key or (name if name in found else next(iter(found), ""))
        if key not in found or (self.key is None and key != name and len(found) > 1):
            raise ValueError(
                f"The metric {self.source} returns {', '.join(found) or 'nothing'}"
                + (f" and no {self.key}" if self.key else "")
                + f"; name one of them after a colon, such as {self.source}:"
                f"{next(iter(found), 'KEY')}."
            )
        return key


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
        raise ValueError(f"The metric {source} cannot be loaded: {first_line(error)}.") from error


def first_line(error: Exception) -> str:
    """Return the first line of an error's message without a full stop."""
    return str(error).partition("\n")[0][:200].rstrip(".") or "no message"
