"""How a task is judged: one that predicts a probability of 1, and one that predicts a value, by figures of their own.

Both have a loss relative to a constant prediction (1 for that, less is better), a probability that of two rows the
greater one is ranked higher, a calibration, and a recalibration of the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from recsys.evaluate.metrics import calibration, normalized_entropy, roc_auc
from recsys.evaluate.recalibration import Recalibration, fit_recalibration
from recsys.evaluate.values import concordance, fit_level, normalized_deviance, value_calibration

Metric = Callable[[np.ndarray, np.ndarray], float]
"""Labels [N] and logits [N] -> a figure, NaN where it is not defined."""


@dataclass(frozen=True, kw_only=True)
class Measures:
    """The figures of one kind of task."""

    loss_name: str
    ranking_name: str
    loss: Metric
    """Relative to the best constant."""
    ranking: Metric
    calibration: Metric
    recalibrate: Callable[[np.ndarray, np.ndarray], Recalibration]

    def figures(self, labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
        """Name -> figure of these rows."""
        return {
            self.loss_name: self.loss(labels, logits),
            self.ranking_name: self.ranking(labels, logits),
            "calibration": self.calibration(labels, logits),
        }


_BINARY = Measures(
    loss_name="ne",
    ranking_name="auc",
    loss=normalized_entropy,
    ranking=roc_auc,
    calibration=calibration,
    recalibrate=fit_recalibration,
)
_VALUE = Measures(
    loss_name="deviance",
    ranking_name="concordance",
    loss=normalized_deviance,
    ranking=concordance,
    calibration=value_calibration,
    recalibrate=fit_level,
)


def measures(*, is_value: bool) -> Measures:
    """Those of a task whose label is a value, or 0 or 1."""
    return _VALUE if is_value else _BINARY
