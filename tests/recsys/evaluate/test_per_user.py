import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score, roc_auc_score

from recsys.evaluate.per_user import group_auc, ndcg


@st.composite
def events(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, scores that are often level, and users in any order."""
    rows = draw(st.integers(0, 60))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = (generator.random(rows) < draw(st.floats(0, 1))).astype(np.float32)
    return labels, generator.integers(-4, 5, rows) / 2, generator.integers(-3, 4, rows) * 10**12


@settings(max_examples=200, deadline=None)
@given(events())
def test_gauc_is_the_weighted_mean_of_each_users_auc(data: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    labels, scores, users = data
    values, weights = [], []
    for user in np.unique(users):
        mine = users == user
        if len(np.unique(labels[mine])) == 2:
            values.append(roc_auc_score(labels[mine], scores[mine]))
            weights.append(mine.sum())
    expected = np.average(values, weights=weights) if values else math.nan
    assert group_auc(labels, scores, users) == pytest.approx(expected, nan_ok=True)


@settings(max_examples=200, deadline=None)
@given(events(), st.integers(1, 8))
def test_ndcg_is_the_mean_of_scikit_learns(data: tuple[np.ndarray, np.ndarray, np.ndarray], k: int) -> None:
    labels, scores, users = data
    values = []
    for user in np.unique(users):
        mine = users == user
        if labels[mine].any():  # a list of one is no ranking to scikit-learn
            values.append(ndcg_score(labels[None, mine], scores[None, mine], k=k) if mine.sum() > 1 else 1.0)
    expected = np.mean(values) if values else math.nan
    assert ndcg(labels, scores, users, k) == pytest.approx(expected, nan_ok=True)
