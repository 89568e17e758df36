"""What a ranker came to on its validation rows, kept beside its predictions as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from recsys.atomic import write_json
from recsys.data.ranks import ALONE, Ranks, home
from recsys.evaluate.entropy import relative_to_rate
from recsys.evaluate.measures import measures
from recsys.evaluate.recalibration import Recalibration
from recsys.shared_figures import added, shared_figures, shared_recalibration

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
    labels: np.ndarray,  # [n], 0 or 1, or 0 or more
    logits: np.ndarray,  # [n]
    *,
    is_value: bool = False,
    scores: Sequence[float],
    most_passes: int,
    reads: bool,
    tried: Mapping[str, float],
    ranks: Ranks = ALONE,
) -> Validation:
    """Fit the recalibration on the rows of all ranks, of which these are this one's, and measure on them what comes of
    it. A collective. `scores`: their entropy by pass, `is_value`: whether the label is a value."""
    judged = measures(is_value=is_value)
    fitted = shared_recalibration(labels, logits, is_value=is_value, ranks=ranks)
    found = shared_figures(labels, logits, fitted, is_value=is_value, ranks=ranks)
    raw = shared_figures(labels, logits, Recalibration(), is_value=is_value, ranks=ranks)
    return Validation(
        ne=found[judged.loss_name],
        auc=raw[judged.ranking_name],
        calibration=found["calibration"],
        raw_calibration=raw["calibration"],
        scale=fitted.scale,
        bias=fitted.bias,
        rows=int(found["rows"]),
        positives=int(found["positives"]),
        best_pass=int(np.argmin(scores)) + 1,
        most_passes=most_passes,
        reads=reads,
        tried=dict(tried),
    )


def row_losses(labels: np.ndarray, logits: np.ndarray, ranks: Ranks = ALONE) -> np.ndarray:
    """Log loss of each of this rank's rows [n], recalibrated on those of all ranks, over the entropy of their rate: NE
    is the mean. A collective."""
    z = shared_recalibration(labels, logits, is_value=False, ranks=ranks)(logits)
    rows, positives = ranks.sum(np.array([len(labels), (labels > 0).sum()])).tolist()
    return (np.logaddexp(0.0, z) - labels * z) * relative_to_rate(1.0, positives / rows if rows else 0.0)


def mean(values: np.ndarray, ranks: Ranks = ALONE) -> float:
    """Of the values of all ranks, of which these are this one's, [n]; NaN without any. A collective."""
    rows = int(ranks.sum(np.array([len(values)]))[0])
    return float(added(np.array([values.sum()]), ranks)[0] / rows) if rows else math.nan


def gain(
    without: np.ndarray,  # float64 [n]
    read: np.ndarray,  # float64 [n]
    users: np.ndarray,  # int64 [n]
    ranks: Ranks = ALONE,
) -> tuple[float, float]:
    """By how much the mean loss of the same rows is lower in `read`, and the standard error of that, rows of one user
    taken together: they err alike. Of the rows of all ranks: a collective."""
    difference = without - read
    gained = mean(difference, ranks)
    sums = (difference - gained).view(np.int64)
    users, sums = ranks.exchange((users, sums), home(users, ranks))  # a user's rows come together on one rank
    _, where = np.unique(users, return_inverse=True)
    by_user = np.bincount(where, sums.view(np.float64))
    squares, rows = added(np.array([np.sum(by_user**2), len(difference)]), ranks).tolist()
    return gained, math.sqrt(squares) / rows if rows else math.nan


def named(reads: bool) -> str:
    """What was tried, in a word."""
    return "with" if reads else "without"
