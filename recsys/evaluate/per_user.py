"""How well each user's own events are ranked: GAUC and NDCG, as published figures of feeds are given.

Every function takes labels of 0 and 1, scores, and whose rows they are; NaN where no user leaves it defined.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


def group_auc(labels: np.ndarray, scores: np.ndarray, users: np.ndarray) -> float:
    """GAUC: the ROC-AUC of each user's rows, mean over users weighted by their rows (Zhu et al., KDD 2017).

    Args:
        labels: [N], 0 or 1.
        scores: [N], anything that ranks; ties count half.
        users: int [N]; those whose rows are of one class count for nothing.
    """
    ranked = _ranked(labels, scores, users)
    ranks = np.arange(len(labels)) - ranked.first[ranked.user]  # from 0, worst first
    sums, sizes = np.bincount(ranked.tie, ranks), np.bincount(ranked.tie)
    level = (sums / sizes)[ranked.tie]  # of rows that are level, their mean
    rows, positives = ranked.rows, ranked.positives
    negatives = rows - positives
    both = (positives > 0) & (negatives > 0)
    if not both.any():
        return math.nan
    won = np.bincount(ranked.user, level * ranked.labels, minlength=len(rows)) - positives * (positives - 1) / 2
    return float(np.average(won[both] / (positives * negatives)[both], weights=rows[both]))


def ndcg(labels: np.ndarray, scores: np.ndarray, users: np.ndarray, k: int = 5) -> float:
    """NDCG@k of each user's rows by score, mean over the users with a positive; rows that are level share their places.

    Args:
        labels: [N], 0 or 1.
        scores: [N], anything that ranks.
        users: int [N].
        k: places that count.
    """
    ranked = _ranked(labels, scores, users)
    place = ranked.first[ranked.user] + ranked.rows[ranked.user] - 1 - np.arange(len(labels))  # from 0, best first
    discounts = 1 / np.log2(np.arange(k) + 2)
    worth = np.where(place < k, discounts[np.minimum(place, k - 1)], 0.0)
    gains = (np.bincount(ranked.tie, ranked.labels) / np.bincount(ranked.tie))[ranked.tie]
    found = np.bincount(ranked.user, worth * gains, minlength=len(ranked.rows))
    best = np.concatenate([[0.0], np.cumsum(discounts)])[np.minimum(ranked.positives.astype(np.int64), k)]
    some = ranked.positives > 0
    return float(np.mean(found[some] / best[some])) if some.any() else math.nan


class _Ranked(NamedTuple):
    """Rows user by user, the lowest score first."""

    labels: np.ndarray  # float64 [N]
    user: np.ndarray  # int64 [N], in [0, U)
    tie: np.ndarray  # int64 [N]: rows of one user and one score have one number
    first: np.ndarray  # int64 [U], the user's first row
    rows: np.ndarray  # int64 [U]
    positives: np.ndarray  # float64 [U]


def _ranked(labels: np.ndarray, scores: np.ndarray, users: np.ndarray) -> _Ranked:
    order = np.lexsort((scores, users))
    labels, scores = np.asarray(labels, np.float64)[order], np.asarray(scores)[order]
    _, user = np.unique(users[order], return_inverse=True)
    rows = np.bincount(user)
    changes = (np.diff(user) != 0) | (np.diff(scores) != 0)
    tie = np.concatenate([np.zeros(min(1, len(user)), np.int64), np.cumsum(changes)])
    return _Ranked(labels, user, tie, np.cumsum(rows) - rows, rows, np.bincount(user, labels))
