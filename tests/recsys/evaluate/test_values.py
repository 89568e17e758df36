import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mean_poisson_deviance, roc_auc_score

from recsys.evaluate.metrics import roc_auc
from recsys.evaluate.values import concordance, fit_level, normalized_deviance, row_deviances, value_calibration

VALUES = st.lists(st.integers(0, 4000).map(lambda x: x / 8) | st.sampled_from([0.0, 1.0, 2.5]), max_size=30)


def drawn(values: list[float], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The values and logs that are somewhat like them, with ties."""
    rng = np.random.default_rng(seed)
    y = np.array(values, np.float64)
    return y, np.round(np.log1p(y) + rng.normal(size=len(y)), int(rng.integers(0, 3)))


@settings(max_examples=100, deadline=None)
@given(values=VALUES, seed=st.integers(0, 99))
def test_concordance_is_the_loop_over_all_pairs(values: list[float], seed: int) -> None:
    y, z = drawn(values, seed)
    pairs = [(a, b) for a in range(len(y)) for b in range(len(y)) if y[a] > y[b]]
    won = sum(1.0 if z[a] > z[b] else 0.5 if z[a] == z[b] else 0.0 for a, b in pairs)
    assert concordance(y, z) == pytest.approx(won / len(pairs) if pairs else math.nan, nan_ok=True, abs=1e-9)


@given(rows=st.integers(2, 60), seed=st.integers(0, 99))
def test_concordance_of_0_and_1_is_roc_auc(rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, scores = np.arange(rows) % 2, rng.integers(0, 5, rows)
    assert concordance(labels, scores) == pytest.approx(roc_auc_score(labels, scores))
    assert concordance(labels, scores) == pytest.approx(roc_auc(labels, scores))


@given(values=VALUES.filter(lambda values: len(set(values)) > 1 and sum(values) > 0), seed=st.integers(0, 99))
def test_deviance_is_scikit_learns(values: list[float], seed: int) -> None:
    y, z = drawn(values, seed)
    constant = np.full(len(y), y.mean())
    wanted = mean_poisson_deviance(y, np.exp(z)) / mean_poisson_deviance(y, constant)
    assert normalized_deviance(y, z) == pytest.approx(wanted, rel=1e-6)
    assert normalized_deviance(y, np.log(constant)) == pytest.approx(1)
    assert normalized_deviance(3 * y, z + math.log(3)) == pytest.approx(wanted, rel=1e-6)
    assert float(row_deviances(y, z).mean()) == pytest.approx(mean_poisson_deviance(y, np.exp(z)), rel=1e-6, abs=1e-9)


@given(values=VALUES.filter(lambda values: sum(values) > 0), seed=st.integers(0, 99), wrong=st.floats(-300, 300))
def test_the_level_makes_the_sums_equal(values: list[float], seed: int, wrong: float) -> None:
    y, z = drawn(values, seed)
    fitted = fit_level(y, z + wrong)
    assert fitted.scale == 1
    assert value_calibration(y, fitted(z + wrong)) == pytest.approx(1)
    best = row_deviances(y, fitted(z + wrong)).sum()
    assert all(best < row_deviances(y, fitted(z + wrong) + other).sum() for other in (-0.1, 0.1))


def test_what_is_not_defined_is_nan() -> None:
    nothing, same = np.zeros(0), np.full(3, 2.0)
    for metric in (concordance, normalized_deviance):
        assert math.isnan(metric(nothing, nothing))
        assert math.isnan(metric(same, np.arange(3.0)))
    assert math.isnan(value_calibration(np.zeros(3), np.zeros(3)))
    assert concordance(np.arange(3), same) == 0.5
    assert fit_level(np.zeros(3), same)(same) == pytest.approx(same)
