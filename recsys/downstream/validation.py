"""What a ranker came to on its validation rows, kept beside its predictions as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from recsys.atomic import write_json
from recsys.evaluate.entropy import relative_to_rate
from recsys.evaluate.measures import measures
from recsys.evaluate.recalibration import Recalibration, fit_recalibration

REFERENCE = "none"
"""The arm that reads no vectors, which the others are held against."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Figures of one ranker on its validation rows, of its best epoch, and what they chose.

    Of a label that is a value `ne` is the normalized deviance, `auc` the concordance index, and `positives` are the
    rows above 0: see `recsys.evaluate.values`.
    """

    ne: float
    """Recalibrated, as all predictions are."""
    auc: float
    calibration: float
    """Recalibrated: 1, but for rounding."""
    raw_calibration: float
    """As it was trained."""
    scale: float
    """The recalibration was fitted on these rows: scale * logit + bias."""
    bias: float
    rows: int
    positives: int
    best_pass: int = 0
    """The pass over the training rows, from 1 on, after which the normalized entropy was least; 0: nobody knows."""
    most_passes: int = 0
    """How many it could have made."""
    reads: bool
    """Whether it reads the vectors of its arm."""
    tried: Mapping[str, float] = field(default_factory=dict)
    """NE of what was tried, `with` vectors and `without`; where both were, the standard `error` of the difference."""

    @property
    def recalibration(self) -> Recalibration:
        """What to apply to the ranker's logits."""
        return Recalibration(self.scale, self.bias)

    def save(self, path: Path) -> None:
        """Write it whole or not at all."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Validation:
        """Raises FileNotFoundError."""
        return cls(**json.loads(path.read_text()))


def validate(
    labels: np.ndarray,  # [N], 0 or 1, or 0 or more
    logits: np.ndarray,  # [N]
    *,
    is_value: bool = False,
    scores: Sequence[float],
    most_passes: int,
    reads: bool,
    tried: Mapping[str, float],
) -> Validation:
    """Fit the recalibration on these rows, and measure on them what comes of it; `scores`: their entropy by pass,
    `is_value`: whether the label is a value."""
    judged = measures(is_value=is_value)
    fitted = judged.recalibrate(labels, logits)
    recalibrated = fitted(logits)
    return Validation(
        ne=judged.loss(labels, recalibrated),
        auc=judged.ranking(labels, logits),
        calibration=judged.calibration(labels, recalibrated),
        raw_calibration=judged.calibration(labels, logits),
        scale=fitted.scale,
        bias=fitted.bias,
        rows=len(labels),
        positives=int(np.sum(labels > 0)),
        best_pass=int(np.argmin(scores)) + 1,
        most_passes=most_passes,
        reads=reads,
        tried=dict(tried),
    )


def row_losses(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Log loss of each row [N], recalibrated on these rows, over the entropy of their rate: NE is the mean."""
    z = fit_recalibration(labels, logits)(logits)
    return (np.logaddexp(0.0, z) - labels * z) * relative_to_rate(1.0, float(labels.mean()))


def gain(
    without: np.ndarray,  # [N]
    read: np.ndarray,  # [N]
    users: np.ndarray,  # int64 [N]
) -> tuple[float, float]:
    """By how much the mean loss of the same rows is lower in `read`, and the standard error of that, rows of one user
    taken together: they err alike."""
    difference = without - read
    _, where = np.unique(users, return_inverse=True)
    mean = float(difference.mean())
    by_user = np.bincount(where, difference - mean)
    return mean, float(np.sqrt(np.sum(by_user**2)) / len(difference))


def named(reads: bool) -> str:
    """What was tried, in a word."""
    return "with" if reads else "without"
