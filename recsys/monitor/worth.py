"""How well the inner product of users and items ranks events: of one publish, and of several days together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CHANCE = 0.5
"""ROC-AUC of who knows nothing."""
DAYS = 7
"""The newest days that are looked at together: a quiet one alone tells nothing."""
NORMAL = 1.96
"""Standard deviations on either side of a mean that hold 95 %."""


@dataclass(frozen=True, kw_only=True)
class Worth:
    """ROC-AUC of the inner product for the day's label, each on the events that have both vectors."""

    auc: float | None
    """Of the vectors about to be served, which have learned from these events."""
    auc_ci95: tuple[float, float] | None
    """By a bootstrap over users."""
    positives: int
    """Events it is of, like `negatives`."""
    negatives: int
    read_auc: float | None
    """Of the vectors before: those that the day's traffic could read, and that had not learned from it."""
    read_auc_ci95: tuple[float, float] | None


@dataclass(frozen=True)
class Ranking:
    """What some days say together."""

    auc: float
    low: float
    """Of the 95 % interval."""
    high: float
    days: int

    @property
    def is_chance(self) -> bool:
        """Whether it is no better than chance."""
        return self.low <= CHANCE

    def __str__(self) -> str:
        """In words, as an end of a sentence."""
        span = f"the last {self.days} days' traffic" if self.days > 1 else "the last day's traffic"
        chance = ", no better than chance" if self.is_chance else ""
        return f"ranks {span} at a ROC-AUC of {self.auc:.3f} ({self.low:.3f} to {self.high:.3f}){chance}"


def ranking(measured: Sequence[tuple[float | None, Sequence[float | None] | None]]) -> Ranking | None:
    """The mean of the newest days, each weighted by how well it is known; None where nothing is.

    Args:
        measured: ROC-AUC and its 95 % interval of each day, oldest first.
    """
    known = []
    for auc, bounds in measured[-DAYS:]:
        low, high = bounds or (None, None)
        if auc is not None and low is not None and high is not None and high > low:
            known.append((auc, (2 * NORMAL / (high - low)) ** 2))
    if not known:
        return None
    total = sum(weight for _, weight in known)
    auc, half = sum(auc * weight for auc, weight in known) / total, NORMAL / math.sqrt(total)
    return Ranking(auc, auc - half, auc + half, len(known))


def read_by(record: Mapping[str, Any]) -> tuple[float | None, Sequence[float | None] | None]:
    """What `ranking` takes, of the record of a day's cycle."""
    measured = (record["quality"].get("pair") or {}).get("worth", {})
    return measured.get("read_auc"), measured.get("read_auc_ci95")
