import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from recsys.evaluate.metrics import calibration, normalized_entropy, pr_auc, reliability, roc_auc


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def test_values_worked_by_hand():
    labels, scores = np.array([1, 0, 1, 0]), np.array([2.0, 1.0, 1.0, 0.0])
    assert roc_auc(labels, scores) == pytest.approx(3.5 / 4)  # one pair of four is level
    assert pr_auc(labels, scores) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


@given(
    st.lists(st.tuples(st.integers(0, 1), st.one_of(st.integers(-3, 3), st.floats(-50, 50))), min_size=2, max_size=60)
)
def test_roc_auc_is_scikit_learns(rows: list[tuple[int, float]]):
    labels, scores = np.array([row[0] for row in rows], np.float32), np.array([row[1] for row in rows], np.float32)
    if labels.min() == labels.max():
        assert math.isnan(roc_auc(labels, scores))
    else:
        assert roc_auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_normalized_entropy_of_the_base_rate_is_one_and_matches_log_loss():
    rng = np.random.default_rng(0)
    labels = (rng.random(500) < 0.2).astype(np.float32)
    rate = labels.mean()
    constant = np.full(500, np.log(rate / (1 - rate)))
    assert normalized_entropy(labels, constant) == pytest.approx(1.0, abs=1e-6)
    assert calibration(labels, constant) == pytest.approx(1.0, abs=1e-6)

    logits = rng.normal(size=500) + labels
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    assert normalized_entropy(labels, logits) == pytest.approx(log_loss(labels, sigmoid(logits)) / entropy, rel=1e-6)


def test_confident_logits_keep_their_digits():
    # a sigmoid in float32 would be exactly 1 here, its complement's log infinite
    assert normalized_entropy(np.array([1, 0]), np.array([60.0, 60.0], np.float32)) == pytest.approx(30 / math.log(2))


def test_reliability_is_of_rows_of_similar_predictions():
    labels, logits = np.array([1, 0, 0, 1, 1]), np.array([2.0, -3.0, -2.0, 0.0, 3.0])
    low, high = reliability(labels, logits, bins=2)
    assert (low["rows"], high["rows"]) == (3, 2)
    assert low["observed"] == pytest.approx(1 / 3)
    assert low["predicted"] == pytest.approx(np.mean(1 / (1 + np.exp([3.0, 2.0, 0.0]))))
    assert high["observed"] == 1
    assert len(reliability(labels, logits)) == 5
    assert reliability(labels[:0], logits[:0]) == []


def test_calibration_says_how_many_times_too_many():
    assert calibration(np.array([1, 0, 0, 0]), np.zeros(4)) == pytest.approx(2.0)
    assert calibration(np.ones(3), np.zeros(3)) == pytest.approx(0.5)  # defined although no negatives


@given(st.integers(0, 20), st.integers(0, 1))
def test_one_class_or_no_rows_is_nan(rows, label):
    labels, logits = np.full(rows, label, np.float32), np.linspace(-1, 1, rows)
    for metric in (roc_auc, pr_auc, normalized_entropy):
        assert math.isnan(metric(labels, logits))
    assert math.isnan(calibration(labels, logits)) == (rows == 0 or label == 0)
