"""Normalized entropy from what is known of all rows together: a ranker's logits or the sums that training keeps."""

from __future__ import annotations

import math


def relative_to_rate(log_loss: float, rate: float) -> float:
    """Log loss over the entropy of the labels' own positive rate; lower is better (DHEN reports this one).

    Args:
        log_loss: mean over rows, in nats.
        rate: share of the rows whose label is 1.

    Returns:
        1.0 for a model that always predicts the positive rate, less for better ones, NaN unless both classes are
        present (the entropy is 0).
    """
    if not 0 < rate < 1:
        return math.nan
    return log_loss / -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate))
