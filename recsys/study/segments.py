"""What vectors are worth where the ranker knows little: test rows by how often it has met their item, or their user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from recsys.evaluate.bootstrap import resample
from recsys.evaluate.metrics import normalized_entropy, roc_auc

SEGMENTS = ("new", "tail", "head")
OWNERS = ("item", "user")
TAIL = 0.2
"""Share of the training rows that the entities of the tail make up together, at most."""
ENOUGH = 100
"""Positives, and negatives, below which a segment's figures say nothing."""
DRAWS = 300
"""Of a segment's bootstrap, at most."""
DEFINITION = (
    f"New: in none of the rankers' training rows. Tail: the rarest of the others, which together make up at most "
    f"{TAIL:.0%} of those rows. Head: the rest."
)


BUCKETS = ("head", "middle", "tail")
HEAD = 0.5
"""Share of the training rows that the items of the head make up together, at least."""
BUCKETS_DEFINITION = (
    f"By how many of the rankers' training rows an item has, shown or chosen. Head: the fewest of the most frequent "
    f"items that make up {HEAD:.0%} of those rows. Tail: the rarest, which together make up at most {TAIL:.0%} of "
    f"them, and items that have none. Middle: the rest. Items with equally many rows share one."
)


def assign(
    training: np.ndarray,  # int64 [M], the entity of each training row
    test: np.ndarray,  # int64 [N], of each test row
) -> np.ndarray:  # int8 [N], index into SEGMENTS
    """The segment of each test row. Entities that were met equally often share one."""
    met, often, rows = _met(training, test)
    return np.where(met == 0, 0, np.where(met <= _rare(often, rows), 1, 2)).astype(np.int8)


def assign_bucket(
    training: np.ndarray,  # int64 [M], the item of each training row
    items: np.ndarray,  # int64 [N]
) -> np.ndarray:  # int8 [N], index into BUCKETS
    """The bucket of each item, see BUCKETS_DEFINITION."""
    met, often, rows = _met(training, items)
    at_least = np.cumsum(rows[::-1])[::-1]  # rows of the items with so many or more
    frequent = int(often[at_least >= HEAD * len(training)].max(initial=1))
    return np.where(met >= frequent, 0, np.where(met > _rare(often, rows), 1, 2)).astype(np.int8)


def _met(
    training: np.ndarray,  # int64 [M]
    asked: np.ndarray,  # int64 [N]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # int64 [N], int64 [C], int64 [C]
    """How often each entity asked for is among the training rows; how often any is, ascending, and the rows of those
    that are so often."""
    known, counts = np.unique(training, return_counts=True)
    often, entities = np.unique(counts, return_counts=True)
    place = np.searchsorted(known, asked)
    met = np.append(counts, 0)[np.where(np.append(known, 0)[place] == asked, place, len(known))]
    return met, often, often * entities


def _rare(often: np.ndarray, rows: np.ndarray) -> int:
    """As often as this, or less, the tail is met."""
    return int(often[np.cumsum(rows) <= TAIL * rows.sum()].max(initial=0))


def measure_segments(
    labels: np.ndarray,  # [N], 0 or 1
    users: np.ndarray,  # int64 [N]
    arms: Mapping[str, np.ndarray],
    segments: Mapping[str, np.ndarray],
    *,
    samples: int = DRAWS,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Owner -> segment -> its rows, and every arm on them: `segments.<task>` of the report.

    Args:
        labels: of the test rows.
        users: who made them.
        arms: arm -> logits [S, N], one line a seed; the first one is what lifts are relative to.
        segments: owner -> int8 [N], see `assign`.
        samples: draws of the paired bootstrap, at most DRAWS.
        seed: of the bootstrap.
    """
    return {
        owner: {
            name: _measure(labels, users, arms, numbers == index, min(samples, DRAWS), seed)
            for index, name in enumerate(SEGMENTS)
        }
        for owner, numbers in segments.items()
    }


def _measure(
    labels: np.ndarray, users: np.ndarray, arms: Mapping[str, np.ndarray], rows: np.ndarray, samples: int, seed: int
) -> dict[str, Any]:
    labels, users = labels[rows], users[rows]
    positives = int(np.sum(labels == 1))
    enough = min(positives, len(labels) - positives) >= ENOUGH
    measured: dict[str, Any] = {"rows": len(labels), "users": len(np.unique(users)), "positives": positives}
    measured["enough"] = enough
    if not enough:
        return measured
    measured["arms"], reference = {}, None
    for arm, lines in arms.items():
        scores = lines[:, rows]
        drawn = resample(labels, users, scores, metrics=("auc",), samples=samples, seed=seed)["auc"]
        figures: dict[str, Any] = {
            "auc": float(np.mean([roc_auc(labels, line) for line in scores])),
            "ne": float(np.mean([normalized_entropy(labels, line) for line in scores])),
        }
        if reference is None:
            reference = drawn
        else:
            lift = drawn.lift_over(reference)
            figures |= {"auc_lift": lift.lift, "auc_lift_ci95": [lift.low, lift.high]}
        measured["arms"][arm] = figures
    return measured
