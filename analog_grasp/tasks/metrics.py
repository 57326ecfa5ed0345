"""The metrics of the tasks, from logits and labels, as fractions.

Every metric takes `logits` of shape (n, num_labels), for a regression (n, 1), and `labels` of
shape (n,). scikit-learn and scipy do the arithmetic.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

Metric = Callable[[np.ndarray, np.ndarray], float]


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """The share of examples whose largest logit is the label's, 0 to 1.

    Example:
        >>> accuracy(np.array([[2.0, 1.0], [0.0, 3.0]]), np.array([0, 0]))
        0.5
    """
    return float(accuracy_score(labels, logits.argmax(axis=1)))


def f1(logits: np.ndarray, labels: np.ndarray) -> float:
    """F1 of label 1 among two labels, 0 to 1; 0 where label 1 is neither present nor predicted.

    Example:
        >>> f1(np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]), np.array([1, 0, 0]))
        0.6666666666666666
    """
    return float(f1_score(labels, logits.argmax(axis=1), zero_division=0.0))


def matthews(logits: np.ndarray, labels: np.ndarray) -> float:
    """Matthews' correlation coefficient, -1 to 1; 0 where one label only is predicted.

    Source: B. W. Matthews, Biochim. Biophys. Acta 405, 442 (1975).

    Example:
        >>> matthews(np.array([[2.0, 1.0], [0.0, 3.0]]), np.array([0, 1]))
        1.0
    """
    return float(matthews_corrcoef(labels, logits.argmax(axis=1)))


def pearson(logits: np.ndarray, labels: np.ndarray) -> float:
    """Pearson's linear correlation, -1 to 1.

    The correlation with a constant is undefined (0/0). It counts as 0 here: a model that gives
    every example the same value tells nothing of the labels.

    Example:
        >>> round(pearson(np.array([[1.0], [2.0], [3.0]]), np.array([2.0, 4.0, 6.0])), 6)
        1.0
    """
    return _correlation(stats.pearsonr, logits, labels)


def spearman(logits: np.ndarray, labels: np.ndarray) -> float:
    """Spearman's rank correlation, -1 to 1; 0 against a constant, as in `pearson`.

    Example:
        >>> round(spearman(np.array([[1.0], [2.0], [9.0]]), np.array([3.0, 4.0, 5.0])), 6)
        1.0
    """
    return _correlation(stats.spearmanr, logits, labels)


def _correlation(
    statistic: Callable[..., tuple[float, float]], logits: np.ndarray, labels: np.ndarray
) -> float:
    predictions = logits[:, 0].astype(np.float64)
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    return float(statistic(predictions, labels.astype(np.float64))[0])


CLASSIFICATION: dict[str, Metric] = {"accuracy": accuracy, "f1": f1, "matthews": matthews}
REGRESSION: dict[str, Metric] = {"pearson": pearson, "spearman": spearman}


def score(names: Sequence[str], logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The named metrics of one prediction.

    Args:
        names: keys of `CLASSIFICATION` or `REGRESSION`.
        logits: shape (n, num_labels), or (n, 1) for a regression.
        labels: shape (n,).

    Raises:
        ValueError: a logit is NaN or infinite. That is a failed measurement, and no score.

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
    metrics = CLASSIFICATION | REGRESSION
    return {name: metrics[name](logits, labels) for name in names}
