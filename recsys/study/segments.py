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


def assign(
    training: np.ndarray,  # int64 [M], the entity of each training row
    test: np.ndarray,  # int64 [N], of each test row
) -> np.ndarray:  # int8 [N], index into SEGMENTS
    """The segment of each test row. Entities that were met equally often share one."""
    known, counts = np.unique(training, return_counts=True)
    often, entities = np.unique(counts, return_counts=True)
    rare = int(often[np.cumsum(often * entities) <= TAIL * len(training)].max(initial=0))
    place = np.searchsorted(known, test)
    met = np.append(counts, 0)[np.where(np.append(known, 0)[place] == test, place, len(known))]
    return np.where(met == 0, 0, np.where(met <= rare, 1, 2)).astype(np.int8)


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
