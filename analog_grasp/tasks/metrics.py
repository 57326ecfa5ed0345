"""Metrics of the classification tasks, from logits and labels, and those of Hugging Face evaluate.

Symbols: `n` examples, `C` classes. `logits` has shape (n, C), or (n, 1) for a regression. `labels`
has shape (n,), or (n, C) with entries 0 and 1 where an example can have several labels. Fractions
unless stated, computed by scikit-learn and scipy.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

# Of logits and labels; for generated texts, of outputs and references.
Metric = Callable[[Any, Any], float]


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the fraction of examples whose prediction is right.

    With several labels per example, all of them must be right.

    Example:
        >>> accuracy(np.array([[2.0, 1.0], [0.0, 3.0]]), np.array([0, 0]))
        0.5
    """
    return float(accuracy_score(labels, _predicted(logits, labels)))


def f1(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return F1 of class 1 of two classes; 0 if class 1 is neither present nor predicted.

    With several labels per example, the micro-average over all labels.

    Example:
        >>> f1(np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]), np.array([1, 0, 0]))
        0.6666666666666666
    """
    average = "micro" if labels.ndim == 2 else "binary"
    predicted = _predicted(logits, labels)
    return float(f1_score(labels, predicted, average=average, zero_division=0.0))


def macro_f1(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean of F1 over all C classes; 0 for a class neither present nor predicted.

    Example:
        >>> round(macro_f1(np.eye(3)[[0, 1, 1]], np.array([0, 1, 2])), 4)
        0.5556
    """
    classes, predicted = range(logits.shape[1]), _predicted(logits, labels)
    return float(f1_score(labels, predicted, labels=classes, average="macro", zero_division=0.0))


def matthews(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return Matthews' correlation coefficient, -1 to 1; 0 if a single class is predicted.

    Source:
        B. W. Matthews, Biochim. Biophys. Acta 405, 442 (1975).

    Example:
        >>> matthews(np.array([[2.0, 1.0], [0.0, 3.0]]), np.array([0, 1]))
        1.0
    """
    return float(matthews_corrcoef(labels, logits.argmax(axis=1)))


def pearson(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return Pearson's linear correlation, -1 to 1.

    The correlation with a constant is undefined (0/0) and counts as 0 here: a constant prediction
    carries no information about the labels.

    Example:
        >>> round(pearson(np.array([[1.0], [2.0], [3.0]]), np.array([2.0, 4.0, 6.0])), 6)
        1.0
    """
    return _correlation(stats.pearsonr, logits, labels)


def spearman(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return Spearman's rank correlation, -1 to 1; 0 for a constant, as in `pearson`.

    Example:
        >>> round(spearman(np.array([[1.0], [2.0], [9.0]]), np.array([3.0, 4.0, 5.0])), 6)
        1.0
    """
    return _correlation(stats.spearmanr, logits, labels)


def mse(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean squared error, in the squared unit of the labels; lower is better.

    Example:
        >>> mse(np.array([[1.0], [2.0]]), np.array([1.0, 4.0]))
        2.0
    """
    return float(np.mean((logits[:, 0].astype(np.float64) - labels) ** 2))


def _predicted(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the class of the largest logit, or for several labels each one above 0."""
    return (logits > 0).astype(np.int64) if labels.ndim == 2 else logits.argmax(axis=1)


def _correlation(
    statistic: Callable[..., tuple[float, float]], logits: np.ndarray, labels: np.ndarray
) -> float:
    predictions = logits[:, 0].astype(np.float64)
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    return float(statistic(predictions, labels.astype(np.float64))[0])


CLASSIFICATION: dict[str, Metric] = {
    "accuracy": accuracy, "f1": f1, "macro_f1": macro_f1, "matthews": matthews,
}  # fmt: skip
MULTI_LABEL: dict[str, Metric] = {"accuracy": accuracy, "f1": f1, "macro_f1": macro_f1}
REGRESSION: dict[str, Metric] = {"pearson": pearson, "spearman": spearman, "mse": mse}


def score(
    names: Sequence[str],
    logits: np.ndarray,
    labels: np.ndarray,
    own: Mapping[str, Metric] | None = None,
) -> dict[str, float]:
    """Return the named metrics of one set of predictions.

    Args:
        names: Keys of `CLASSIFICATION`, `MULTI_LABEL`, `REGRESSION` or `own`.
        logits: Shape (n, C), or (n, 1) for a regression.
        labels: Shape (n,), or (n, C) for several labels per example.
        own: Further metrics by name.

    Raises:
        ValueError: A logit is NaN or infinite, which is a failed measurement and not a score.

    Example:
        >>> score(["accuracy"], np.array([[0.0, 1.0]]), np.array([1]))
        {'accuracy': 1.0}
    """
    broken = int((~np.isfinite(logits)).any(axis=1).sum())
    if broken:
        raise ValueError(
            f"The model gave NaN or infinite logits for {broken} of {len(logits)} examples, where "
            "all should be finite; this measurement failed and is not scored."
        )
    metrics = CLASSIFICATION | REGRESSION | dict(own or {})
    return {name: float(metrics[name](logits, labels)) for name in names}


def named_metrics(
    task: str, metrics: Iterable[str | Metric], own: Mapping[str, Metric]
) -> tuple[tuple[str, ...], dict[str, Metric]]:
    """Return the names of metrics, and the functions among them together with those in `own`.

    Raises:
        ValueError: A function has no name, or that of a metric that exists.

    Example:
        >>> named_metrics("mine", ["accuracy", len], {})
        (('accuracy', 'len'), {'len': <built-in function len>})
    """
    names, functions = [], dict(own)
    for metric in metrics:
        name = metric if isinstance(metric, str) else getattr(metric, "__name__", "<lambda>")
        if not isinstance(metric, str):
            if not name.isidentifier() or functions.get(name, metric) is not metric:
                raise ValueError(
                    f"A metric of the task '{task}' is {metric!r}, which has no name of its own; "
                    "use a function defined with def."
                )
            functions[name] = metric
        names.append(name)
    return tuple(names), functions


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


def _predictions(outputs: Any, references: Any) -> list[Any]:
    if not isinstance(outputs, np.ndarray):
        return list(outputs)
    if outputs.shape[1] == 1 and np.ndim(references) == 1:
        return outputs[:, 0].tolist()
    return _predicted(outputs, np.asarray(references)).tolist()


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
