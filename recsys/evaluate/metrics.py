"""What a ranker's logits are worth on labelled events: ROC-AUC, PR-AUC, normalized entropy, calibration.

Every function takes labels of 0 and 1 and returns a Python float; a metric that the labels leave undefined (no rows, or
one class only) is NaN, never an error.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import expit

from recsys.evaluate.entropy import relative_to_rate


def roc_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Probability that a random positive scores above a random negative, ties counted half.

    Args:
        labels: [N], 0 or 1.
        scores: [N], anything that ranks: logits or probabilities.

    Returns:
        0.5 for random scores, 1.0 for perfect ones, NaN unless both classes are present.
    """
    if not _both_classes(labels):
        return math.nan
    # Not scikit-learn's: a second to import is what the cycle of a quiet day takes.
    _, level = np.unique(scores, return_inverse=True)
    positive, rows = (np.bincount(level, weights).astype(np.float64) for weights in (labels, None))
    negative = rows - positive
    below = np.cumsum(negative) - negative / 2  # a level negative counts half
    return float(positive @ below / (positive.sum() * negative.sum()))


def pr_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the precision-recall curve as average precision, without interpolation.

    Args:
        labels: [N], 0 or 1.
        scores: [N], anything that ranks: logits or probabilities.

    Returns:
        The positive rate for random scores, 1.0 for perfect ones, NaN unless both classes are present.
    """
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(labels, scores)) if _both_classes(labels) else math.nan


def normalized_entropy(labels: np.ndarray, logits: np.ndarray) -> float:
    """Log loss over the entropy of the labels' own positive rate; lower is better (DHEN reports this one).

    Computed from logits, so that a confident model does not lose digits in the sigmoid.

    Args:
        labels: [N], 0 or 1.
        logits: [N], log-odds of the predicted probability.

    Returns:
        1.0 for a model that always predicts the positive rate, less for better ones, NaN unless both classes are
        present (the entropy is 0).
    """
    return (
        relative_to_rate(log_loss(labels, logits), float(np.mean(labels, dtype=np.float64)))
        if len(labels)
        else math.nan
    )


def log_loss(labels: np.ndarray, logits: np.ndarray) -> float:
    """Mean binary cross-entropy, in nats, from logits; NaN without rows.

    Args:
        labels: [N], 0 or 1.
        logits: [N], log-odds of the predicted probability.
    """
    y, z = np.asarray(labels, np.float64), np.asarray(logits, np.float64)
    return float(np.mean(np.logaddexp(0.0, z) - y * z)) if len(y) else math.nan


def calibration(labels: np.ndarray, logits: np.ndarray) -> float:
    """Mean predicted probability over mean label; 1.05 predicts 5 % more positives than there are.

    Args:
        labels: [N], 0 or 1.
        logits: [N], log-odds of the predicted probability.

    Returns:
        1.0 for a calibrated model, NaN without a positive.
    """
    positives = np.asarray(labels, np.float64).sum()
    return float(expit(np.asarray(logits, np.float64)).sum() / positives) if positives > 0 else math.nan


def reliability(labels: np.ndarray, logits: np.ndarray, bins: int = 10) -> list[dict[str, float]]:
    """Mean predicted probability and mean label of rows of similar predictions: equal where a model is calibrated.

    Args:
        labels: [N], 0 or 1.
        logits: [N], log-odds of the predicted probability.
        bins: into which the rows are cut, in the order of their predictions, of the same size but for one row.

    Returns:
        `predicted`, `observed` and `rows` of each bin, lowest predictions first; fewer where there are fewer rows.
    """
    order = np.argsort(logits, kind="stable")
    said, known = expit(np.asarray(logits, np.float64))[order], np.asarray(labels, np.float64)[order]
    return [
        {"predicted": float(said[part].mean()), "observed": float(known[part].mean()), "rows": len(part)}
        for part in np.array_split(np.arange(len(order)), bins)
        if len(part)
    ]


def _both_classes(labels: np.ndarray) -> bool:
    return bool(np.any(labels == 0) and np.any(labels == 1))
