import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from analog_grasp.tasks.metrics import accuracy, f1, matthews, pearson, score, spearman


def logits_of(predicted):
    return np.eye(2)[predicted]


# Five examples: 2 true positives, 1 false positive, 1 false negative, 1 true negative.
LABELS = np.array([1, 1, 0, 1, 0])
PREDICTED = logits_of([1, 1, 1, 0, 0])


def test_classification_by_hand():
    assert accuracy(PREDICTED, LABELS) == pytest.approx(3 / 5)
    assert f1(PREDICTED, LABELS) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    # (TP TN - FP FN) / sqrt((TP+FP)(TP+FN)(TN+FP)(TN+FN)) = (2 - 1) / sqrt(3 * 3 * 2 * 2)
    assert matthews(PREDICTED, LABELS) == pytest.approx(1 / 6)


def test_correlations_by_hand():
    logits, labels = np.array([[1.0], [2.0], [3.0], [4.0]]), np.array([1.0, 3.0, 2.0, 5.0])
    # Centred: (-1.5, -.5, .5, 1.5) and (-1.75, .25, -.75, 2.25); sums 5.5, 5 and 8.75.
    assert pearson(logits, labels) == pytest.approx(5.5 / np.sqrt(5 * 8.75))
    # Ranks 1 3 2 4: 1 - 6 * 2 / (4 * 15).
    assert spearman(logits, labels) == pytest.approx(0.8)


def test_one_predicted_label_is_worth_nothing():
    constant = logits_of([0] * 5)
    assert matthews(constant, LABELS) == 0
    assert f1(constant, LABELS) == 0


@pytest.mark.parametrize("metric", [pearson, spearman])
def test_correlation_with_a_constant_is_zero(metric):
    varied = np.array([1.0, 2.0, 3.0])
    assert metric(np.full((3, 1), 0.7, np.float32), varied) == 0
    assert metric(varied[:, None], np.full(3, 2.0)) == 0
    assert metric(np.array([[1.0]]), np.array([2.0])) == 0


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_failed_measurement_is_not_scored(broken):
    with pytest.raises(ValueError, match="NaN or infinite logits for 1 of 2 examples"):
        score(["accuracy"], np.array([[0.0, broken], [0.0, 1.0]]), np.array([1, 1]))


@given(
    hnp.arrays(np.float32, (20, 2), elements=st.floats(-5, 5, width=32)),
    hnp.arrays(np.int64, 20, elements=st.integers(0, 1)),
)
def test_metrics_stay_in_their_range(logits, labels):
    found = score(["accuracy", "f1", "matthews"], logits, labels)
    assert 0 <= found["accuracy"] <= 1
    assert 0 <= found["f1"] <= 1
    assert -1 <= found["matthews"] <= 1


@given(hnp.arrays(np.float64, 12, elements=st.integers(-9, 9)), st.integers(1, 5))
def test_a_rising_prediction_ranks_perfectly(labels, factor):
    found = score(["pearson", "spearman"], factor * labels[:, None] + 1, labels)
    expected = 0 if np.ptp(labels) == 0 else 1
    assert found == pytest.approx({"pearson": expected, "spearman": expected})
