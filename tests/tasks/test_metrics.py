import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from analog_grasp.tasks.metrics import (
    accuracy,
    f1,
    macro_f1,
    matthews,
    mse,
    pearson,
    spearman,
)


def logits_of(predicted):
    return np.eye(2)[predicted]


# Five examples: 2 true positives, 1 false positive, 1 false negative, 1 true negative.
LABELS = np.array([1, 1, 0, 1, 0])
PREDICTED = logits_of([1, 1, 1, 0, 0])


def test_classification_metrics_by_hand():
    assert accuracy(PREDICTED, LABELS) == pytest.approx(3 / 5)
    assert f1(PREDICTED, LABELS) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    # (TP TN - FP FN) / sqrt((TP+FP)(TP+FN)(TN+FP)(TN+FN)) = (2 - 1) / sqrt(3 * 3 * 2 * 2)
    assert matthews(PREDICTED, LABELS) == pytest.approx(1 / 6)


def test_macro_f1_by_hand():
    # F1 of class 0: 1 true positive, 1 false positive, 1 false negative; of class 1 as above.
    assert macro_f1(PREDICTED, LABELS) == pytest.approx((2 / 4 + 4 / 6) / 2)
    # A third class that is neither present nor predicted counts 0.
    wider = np.column_stack([PREDICTED, np.full(5, -1.0)])
    assert macro_f1(wider, LABELS) == pytest.approx((2 / 4 + 4 / 6) / 3)


def test_metrics_of_several_labels_by_hand():
    logits = np.array([[1.0, -1.0, 2.0], [-1.0, 0.5, -2.0]])
    labels = np.array([[1, 0, 0], [0, 1, 0]])
    # Two true positives, one false positive; per label F1 1, 1 and 0; one set of two is right.
    assert f1(logits, labels) == pytest.approx(2 * 2 / (2 * 2 + 1))
    assert macro_f1(logits, labels) == pytest.approx(2 / 3)
    assert accuracy(logits, labels) == 0.5


def test_mean_squared_error_by_hand():
    assert mse(np.array([[1.0], [2.0], [0.0]]), np.array([1.0, 4.0, 3.0])) == pytest.approx(13 / 3)


def test_correlations_by_hand():
    logits, labels = np.array([[1.0], [2.0], [3.0], [4.0]]), np.array([1.0, 3.0, 2.0, 5.0])
    # Centred: (-1.5, -.5, .5, 1.5) and (-1.75, .25, -.75, 2.25); sums 5.5, 5 and 8.75.
    assert pearson(logits, labels) == pytest.approx(5.5 / np.sqrt(5 * 8.75))
    # Ranks 1 3 2 4: 1 - 6 * 2 / (4 * 15).
    assert spearman(logits, labels) == pytest.approx(0.8)


def test_a_constant_prediction_scores_zero():
    constant = logits_of([0] * 5)
    assert matthews(constant, LABELS) == 0
    assert f1(constant, LABELS) == 0


@pytest.mark.parametrize("metric", [pearson, spearman])
def test_correlation_with_a_constant_is_zero(metric):
    varied = np.array([1.0, 2.0, 3.0])
    assert metric(np.full((3, 1), 0.7, np.float32), varied) == 0
    assert metric(varied[:, None], np.full(3, 2.0)) == 0
    assert metric(np.array([[1.0]]), np.array([2.0])) == 0


@given(
    hnp.arrays(np.float32, (20, 2), elements=st.floats(-5, 5, width=32)),
    hnp.arrays(np.int64, 20, elements=st.integers(0, 1)),
)
def test_metrics_are_within_their_range(logits, labels):
    assert 0 <= accuracy(logits, labels) <= 1
    assert 0 <= f1(logits, labels) <= 1
    assert -1 <= matthews(logits, labels) <= 1


@pytest.mark.parametrize("metric", [pearson, spearman])
@given(hnp.arrays(np.float64, 12, elements=st.integers(-9, 9)), st.integers(1, 5))
def test_a_monotone_prediction_has_correlation_one(metric, labels, factor):
    expected = 0 if np.ptp(labels) == 0 else 1
    assert metric(factor * labels[:, None] + 1, labels) == pytest.approx(expected)
