import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from recsys.evaluate.metrics import calibration, normalized_entropy, roc_auc
from recsys.evaluate.recalibration import LEAST_SCALE, Recalibration, fit_recalibration


def events(seed: int, rows: int, scale: float, bias: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and logits that are right once they are scaled and shifted so."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=rows)
    return (rng.random(rows) < expit(scale * logits + bias)).astype(np.int64), logits


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 99),
    rows=st.integers(2, 3000),
    scale=st.sampled_from([-2.0, 0.0, 0.1, 1.0, 4.0]),
    bias=st.sampled_from([-5.0, -1.0, 0.0, 3.0]),
)
def test_the_mean_prediction_becomes_the_mean_label(seed: int, rows: int, scale: float, bias: float) -> None:
    """Whatever the model, however rare a positive is; and the order of the rows stays."""
    labels, logits = events(seed, rows, scale, bias)
    found = fit_recalibration(labels, logits)
    if len(set(labels.tolist())) < 2:
        assert found == Recalibration()
        return
    after = found(logits)
    assert found.scale >= LEAST_SCALE
    assert calibration(labels, after) == pytest.approx(1, abs=1e-6)
    assert roc_auc(labels, after) == roc_auc(labels, logits)
    if rows > 100:
        assert normalized_entropy(labels, after) <= normalized_entropy(labels, logits) + 1e-3


def test_what_was_planted_is_found() -> None:
    labels, logits = events(0, 200_000, 0.5, -1.0)
    found = fit_recalibration(labels, logits)
    assert (found.scale, found.bias) == pytest.approx((0.5, -1.0), abs=0.03)
    noise = fit_recalibration(*events(1, 200_000, 0.0, -1.0))
    assert noise.scale < 0.03, "a model that knows nothing is told to say so"


def test_classes_that_can_be_told_apart_have_an_optimum_too() -> None:
    labels, logits = np.array([0, 0, 1, 1]), np.array([-3.0, -1.0, 1.0, 3.0])
    found = fit_recalibration(labels, 1000 * logits)
    assert np.isfinite([found.scale, found.bias]).all()
    assert calibration(labels, found(1000 * logits)) == pytest.approx(1)
