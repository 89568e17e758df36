"""The figures of `recsys.evaluate.measures` of predictions that lie on several ranks: each keeps its own rows.

Sums are added up; ranks of scores are counted in equal shares of all scores, each rank those of one range, of which as
many rows as there are different scores travel. So no process holds everybody's predictions, and nothing is rounded: the
figures are those of all rows in one process but for the order in which sums are added, a relative error of 1e-12. Only
the concordance of a value is of a sample, where there are more than `COMPARED` rows.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from scipy.special import expit, xlogy

from recsys.data.ranks import Ints, Ranks, cut
from recsys.evaluate.entropy import relative_to_rate
from recsys.evaluate.recalibration import Recalibration, fit_recalibration
from recsys.evaluate.values import concordance, fit_level, row_deviances

COMPARED = 2**20
"""Rows of a value that are compared with each other at most."""
_HALF = 2**31


def shared_figures(
    labels: np.ndarray,  # [n]
    logits: np.ndarray,  # float32 [n]
    by: Recalibration,
    *,
    is_value: bool,
    ranks: Ranks,
) -> dict[str, float]:
    """Name -> figure of the rows of all ranks, `rows` and `positives` (of a value: above 0) too. A collective.

    Args:
        labels: of this rank's rows.
        logits: of the same.
        by: what they are recalibrated by.
        is_value: whether the label is a value; then the concordance is of `COMPARED` rows at most.
        ranks: who have rows.
    """
    y, z = np.asarray(labels, np.float64), by(logits)
    rows, positives = ranks.sum(np.array([len(y), (y > 0).sum()])).tolist()
    if is_value:
        loss, calibration = _of_values(y, z, rows, ranks)
        figures = {"deviance": loss, "concordance": _concordance(y, z, rows, ranks)}
    else:
        loss, calibration = _of_labels(y, z, rows, positives, ranks)
        figures = {"ne": loss, "auc": shared_auc(labels, logits, ranks)}  # recalibration keeps the order
    return figures | {"calibration": calibration, "rows": rows, "positives": positives}


def shared_loss(
    labels: np.ndarray,  # [n]
    logits: np.ndarray,  # float32 [n]
    by: Recalibration,
    *,
    is_value: bool,
    ranks: Ranks,
) -> float:
    """The first one of `shared_figures`, `ne` or `deviance`, alone. A collective."""
    y, z = np.asarray(labels, np.float64), by(logits)
    rows, positives = ranks.sum(np.array([len(y), (y > 0).sum()])).tolist()
    return (_of_values(y, z, rows, ranks) if is_value else _of_labels(y, z, rows, positives, ranks))[0]


def shared_recalibration(
    labels: np.ndarray,  # [n]
    logits: np.ndarray,  # [n]
    *,
    is_value: bool,
    ranks: Ranks,
) -> Recalibration:
    """What `Measures.recalibrate` fits on the rows of all ranks. A collective."""
    total = partial(added, ranks=ranks)
    if not is_value:
        return fit_recalibration(labels, logits, total)
    (most,) = ranks.max(np.array([np.max(logits, initial=-np.inf)], np.float32)).tolist()
    return fit_level(labels, logits, total, near=most)


def shared_auc(
    labels: np.ndarray,  # [n], 0 or 1
    scores: np.ndarray,  # float32 [n]
    ranks: Ranks,
) -> float:
    """ROC-AUC of the rows of all ranks, ties counted half; NaN unless both classes are present. A collective."""
    keys, level = np.unique(_ascending(scores), return_inverse=True)
    positive = np.bincount(level, labels == 1, minlength=len(keys)).astype(np.int64)
    negative = np.bincount(level, minlength=len(keys)) - positive
    to = np.searchsorted(cut(keys, ranks), keys, side="right")
    keys, positive, negative = ranks.exchange((keys, positive, negative), to)
    _, level = np.unique(keys, return_inverse=True)
    positives, negatives = (np.bincount(level, x).astype(np.float64) for x in (positive, negative))
    (before,) = ranks.gather([np.array([int(negative.sum())])])
    below = before[: ranks.rank].sum() + np.cumsum(negatives) - negatives / 2
    won, all_positives = added(np.array([(positives * below).sum(), positives.sum()]), ranks)
    pairs = all_positives * before.sum()
    return float(won / pairs) if pairs else math.nan


def added(
    values: np.ndarray,  # float64 [k]
    ranks: Ranks,
) -> np.ndarray:  # float64 [k]
    """Sums over all ranks, added in the ranks' order, so that they are the same on every one. A collective."""
    (bits,) = ranks.gather([np.ascontiguousarray(values, np.float64).view(np.int64)])
    return bits.view(np.float64).reshape(ranks.world_size, -1).sum(0)


def _of_labels(y: np.ndarray, z: np.ndarray, rows: int, positives: int, ranks: Ranks) -> tuple[float, float]:
    """Normalized entropy and calibration."""
    loss, said = added(np.array([(np.logaddexp(0.0, z) - y * z).sum(), expit(z).sum()]), ranks).tolist()
    ne = relative_to_rate(loss / rows, positives / rows) if rows else math.nan
    return ne, said / positives if positives else math.nan


def _of_values(y: np.ndarray, z: np.ndarray, rows: int, ranks: Ranks) -> tuple[float, float]:
    """Normalized deviance and calibration."""
    parts = np.array([row_deviances(y, z).sum(), np.exp(z).sum(), y.sum(), xlogy(y, y).sum()])
    deviance, said, total, entropy = added(parts, ranks).tolist()
    least, most = ranks.max(np.array([-y.min(initial=np.inf), y.max(initial=-np.inf)], np.float32))
    constant = 2 * (entropy - total * math.log(total / rows)) if total else 0.0
    differ = -least < most and constant > 0
    return deviance / constant if differ else math.nan, said / total if total else math.nan


def _concordance(y: np.ndarray, z: np.ndarray, rows: int, ranks: Ranks) -> float:
    every = -(-rows // COMPARED) or 1
    bits = (x[::every].astype(np.float64).view(np.int64) for x in (y, z))
    return concordance(*(x.view(np.float64) for x in ranks.gather(list(bits))))


def _ascending(scores: np.ndarray) -> Ints:
    """float32 [n] -> int64 [n], 0 or more, in the same order; 0 and -0 are one."""
    bits = (np.asarray(scores, np.float32) + np.float32(0)).view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits + _HALF), bits) + _HALF
