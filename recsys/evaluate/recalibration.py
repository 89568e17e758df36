"""Recalibration: two numbers that make a model's probabilities right on rows it was not trained on (Platt scaling)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

LEAST_SCALE = 0.01
"""More than 0: the order of rows, and so ROC-AUC, stays, however little a model knows."""
_STEPS, _HALVINGS, _CLOSE = 100, 40, 1e-10

Total = Callable[[np.ndarray], np.ndarray]
"""Numbers [k] of the rows that are at hand, added up with those of other processes' rows: the same in each."""


def alone(values: np.ndarray) -> np.ndarray:
    """The `Total` of a process that has all rows."""
    return values


@dataclass(frozen=True)
class Recalibration:
    """`scale * logit + bias`; 1 / scale is the temperature."""

    scale: float = 1.0
    bias: float = 0.0

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """The logits [N], recalibrated, float64; in the same order."""
        return self.scale * np.asarray(logits, np.float64) + self.bias


def fit_recalibration(labels: np.ndarray, logits: np.ndarray, total: Total = alone) -> Recalibration:
    """The scale and bias of least log loss on these rows, on which the mean prediction then is the mean label.

    Args:
        labels: [N], 0 or 1.
        logits: [N], finite.
        total: where other processes have rows too.

    Returns:
        that changes nothing unless both classes are present.
    """
    y, z = np.asarray(labels, np.float64), np.asarray(logits, np.float64)
    rows, positives, said = total(np.array([len(y), y.sum(), z.sum()])).tolist()
    if not 0 < positives < rows:
        return Recalibration()
    centre, ones = said / rows, np.ones_like(z)
    more, bias = _fit(np.stack([z - centre, ones]), z, y, rows, total)
    if 1 + more >= LEAST_SCALE:
        return Recalibration(1 + more, bias - more * centre)
    (bias,) = _fit(ones[None], LEAST_SCALE * z, y, rows, total)
    return Recalibration(LEAST_SCALE, bias)


def _fit(
    columns: np.ndarray,  # float64 [K, N], the last one constant
    offset: np.ndarray,  # float64 [N]
    labels: np.ndarray,  # float64 [N]
    rows: float,  # of all processes
    total: Total,
) -> list[float]:
    """Weights [K] of a logistic regression beside an offset, by Newton's method.

    All but the constant's are drawn to 0 with the weight of one row, so that classes that can be told apart without a
    mistake have an optimum too.
    """
    ridge = np.diag([1.0] * (len(columns) - 1) + [0.0]) / rows

    def loss(weights: np.ndarray) -> float:
        z = offset + weights @ columns
        (lost,) = total(np.array([(np.logaddexp(0.0, z) - labels * z).sum()]))
        return float(lost / rows + weights @ ridge @ weights / 2)

    weights, processes = np.zeros(len(columns)), total(np.ones(1))
    for _ in range(_STEPS):
        p = expit(offset + weights @ columns)
        slope = total(columns @ (p - labels)) / rows + ridge @ weights
        bend = total(((columns * (p * (1 - p))) @ columns.T).ravel()).reshape(ridge.shape) / rows + ridge
        # LAPACK's last bits are those of a processor: processes that do not all halt at one step would wait for ever.
        step = total(np.linalg.lstsq(bend, slope, rcond=None)[0]) / processes
        now = loss(weights)
        for _ in range(_HALVINGS):
            if loss(weights - step) <= now:
                break
            step = step / 2
        weights = weights - step
        if np.abs(step).max() < _CLOSE:
            break
    return weights.tolist()
