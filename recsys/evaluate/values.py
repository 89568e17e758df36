"""What predictions of a value of 0 or more, revenue or watch time say, are worth: deviance, concordance, calibration.

Every function takes values and logs of the predicted means and returns a Python float; a metric that the values leave
undefined (no rows, or the same value everywhere) is NaN, never an error. On values of 0 and 1 the concordance index is
ROC-AUC.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import xlogy

from recsys.evaluate.recalibration import Recalibration, Total, alone


def row_deviances(
    values: np.ndarray,  # [N], 0 or more
    logs: np.ndarray,  # [N]
) -> np.ndarray:  # float64 [N]
    """Poisson deviance of each row: 2 (y log(y / m) - y + m), m = exp(log); 0 where the prediction is right."""
    y, z = np.asarray(values, np.float64), np.asarray(logs, np.float64)
    return 2 * (xlogy(y, y) - y * z - y + np.exp(z))


def normalized_deviance(values: np.ndarray, logs: np.ndarray) -> float:
    """Poisson deviance over that of the values' own mean: what normalized entropy is for labels of 0 and 1.

    The deviance is consistent for the mean of any distribution on numbers of 0 or more (Gneiting, Making and Evaluating
    Point Forecasts, JASA 2011), and the ratio does not depend on the values' unit.

    Args:
        values: [N], 0 or more.
        logs: [N], log of the predicted mean.

    Returns:
        1.0 for a model that always predicts the mean, less for better ones, NaN unless two values differ.
    """
    y = np.asarray(values, np.float64)
    if not _differ(y):
        return math.nan
    constant = np.full(len(y), math.log(y.mean()))
    return float(row_deviances(y, logs).sum() / row_deviances(y, constant).sum())


def concordance(values: np.ndarray, scores: np.ndarray) -> float:
    """Concordance index: of two rows with different values, the probability that the greater one scores higher; ties in
    the score count half (Harrell et al., JAMA 1982, without censoring).

    Args:
        values: [N].
        scores: [N], anything that ranks.

    Returns:
        0.5 for random scores, 1.0 for perfect ones, NaN unless two values differ.
    """
    if not _differ(values):
        return math.nan
    if not _differ(scores):
        return 0.5
    from scipy.stats import kendalltau  # half a second to import, for few

    # tau-b is (concordant - discordant) / sqrt(pairs that differ in value x pairs that differ in score).
    tau = float(kendalltau(values, scores).statistic)
    return 0.5 + tau * math.sqrt(_pairs(scores) / _pairs(values)) / 2


def value_calibration(values: np.ndarray, logs: np.ndarray) -> float:
    """Sum of the predictions over the sum of the values; 1.05 predicts 5 % more than there is.

    Args:
        values: [N], 0 or more.
        logs: [N], log of the predicted mean.

    Returns:
        1.0 for a calibrated model, NaN where all values are 0.
    """
    total = np.asarray(values, np.float64).sum()
    return float(np.exp(np.asarray(logs, np.float64)).sum() / total) if total > 0 else math.nan


def fit_level(
    values: np.ndarray, logs: np.ndarray, total: Total = alone, *, near: float | None = None
) -> Recalibration:
    """The factor of all predictions, a bias of their logs, with which their sum is that of the values. Of all factors
    it has the least Poisson deviance.

    Args:
        values: [N], 0 or more.
        logs: [N], log of the predicted mean, finite.
        total: where other processes have rows too.
        near: about the greatest of all logs; None: that of these.

    Returns:
        that changes nothing where all values are 0.
    """
    y, z = np.asarray(values, np.float64), np.asarray(logs, np.float64)
    most = np.max(z, initial=-np.inf) if near is None else near
    known, said = total(np.array([y.sum(), np.exp(z - most).sum()])).tolist()
    return Recalibration(1.0, math.log(known) - float(most + math.log(said))) if known > 0 else Recalibration()


def _differ(x: np.ndarray) -> bool:
    return len(x) > 0 and bool(np.min(x) < np.max(x))


def _pairs(x: np.ndarray) -> float:
    """Pairs of rows that differ."""
    counts = np.unique(x, return_counts=True)[1].astype(np.float64)
    return float(counts.sum() ** 2 - (counts**2).sum()) / 2
