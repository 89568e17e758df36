"""Retrieval of items by inner product of one upstream's stored user and item vectors, and how much it finds.

Thin and exact: every candidate is scored. The vectors of one query must come from one version of one space (papers.md
section 1: version skew cost Pinterest the online gain of offline wins), so that is checked before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from embedding_store import Snapshot
from recsys.evaluate.nearest import exact_top_k, recall_at_k


class VersionSkewError(ValueError):
    """User and item snapshots that must not be compared: of different spaces, versions or event times."""


@dataclass(frozen=True, kw_only=True)
class RetrievalResult:
    """Recall of the users' positives, beside what popularity alone finds."""

    recall: dict[int, float]
    """k -> mean over users of the share of their positives among the top k."""
    popularity_recall: dict[int, float]
    """The same when every user gets the most popular items."""
    users: int
    """Users with a positive: those the means are over."""
    users_without_vector: float
    """Share of them that the user snapshot does not hold; they retrieve nothing and count as recall 0."""
    items: int
    """Candidates: all items of the item snapshot."""
    positives_without_vector: float
    """Share of the positives whose item is no candidate; they count, and are never found."""
    space: str
    """Of both snapshots, like `version` and `as_of`."""
    version: int
    as_of: int
    """Milliseconds since the epoch; 0 of a log without event times."""


def evaluate_retrieval(
    user_snapshot: Snapshot,
    item_snapshot: Snapshot,
    positives: tuple[np.ndarray, np.ndarray],  # user ids int64 [P], item ids int64 [P]
    popularity: tuple[np.ndarray, np.ndarray],  # item ids int64 [I], counts [I]
    k: Sequence[int] = (10, 50),
) -> RetrievalResult:
    """Retrieve from all items of one upstream for every user with a positive, and measure recall beside popularity.

    Items a user saw before are not left out, neither here nor in the popularity list: in the feeds we know they return.

    Args:
        user_snapshot: of the series `user_<upstream>`.
        item_snapshot: of the series `item_<upstream>`: same space, version and as_of.
        positives: what the users turned out to want, all later than the snapshots' `as_of`; repeated pairs count once.
        popularity: distinct items and how often each was a positive in the training events.
        k: cut-offs.

    Raises:
        VersionSkewError: the snapshots differ in space, version or as_of.
        ValueError: a cut-off < 1, or arrays that do not fit together.
    """
    check_same_version(user_snapshot, item_snapshot)
    if not k or min(k) < 1:
        raise ValueError(f"k is {tuple(k)}; give cut-offs of 1 or more")
    for name, columns in (("positives", positives), ("popularity", popularity)):
        if len(columns[0]) != len(columns[1]):
            raise ValueError(f"{name} are columns of {len(columns[0])} and {len(columns[1])}; give two of one length")
    pairs = np.unique(np.stack([np.asarray(column, dtype=np.int64) for column in positives], axis=1), axis=0)  # [P, 2]
    user_ids, user_rows = np.unique(pairs[:, 0], return_inverse=True)
    users, found = user_snapshot.load().lookup(torch.from_numpy(user_ids))
    table = item_snapshot.load()
    candidates = table.ids()
    items, _ = table.lookup(candidates)

    retrieved = torch.full((len(user_ids), min(max(k), len(candidates))), -1)
    retrieved[found] = exact_top_k(users[found].float(), items.float(), max(k))
    popular = most_popular(*popularity, max(k))
    item_ids, rows = torch.from_numpy(pairs[:, 1].copy()), torch.from_numpy(user_rows)
    wanted = _positions(candidates, item_ids)
    same_for_all = torch.arange(len(popular)).expand(len(user_ids), -1)
    return RetrievalResult(
        recall=recall_at_k(retrieved, rows, wanted, k),
        popularity_recall=recall_at_k(same_for_all, rows, _positions(torch.from_numpy(popular), item_ids), k),
        users=len(user_ids),
        users_without_vector=float((~found).double().mean()),
        items=len(candidates),
        positives_without_vector=float((wanted < 0).double().mean()),
        space=user_snapshot.space,
        version=user_snapshot.version,
        as_of=user_snapshot.as_of,
    )


def check_same_version(user_snapshot: Snapshot, item_snapshot: Snapshot) -> None:
    """Raise VersionSkewError, naming both, unless the snapshots agree in space, version and as_of."""
    for name in ("space", "version", "as_of"):
        if getattr(user_snapshot, name) != getattr(item_snapshot, name):
            raise VersionSkewError(
                f"user and item snapshots differ in {name}: users are {_describe(user_snapshot)}, "
                f"items are {_describe(item_snapshot)}; read two that one upstream published together"
            )


def most_popular(
    item_ids: np.ndarray,  # int64 [I], distinct
    counts: np.ndarray,  # [I]
    k: int,
) -> np.ndarray:
    """The ids of the `k` greatest counts, greatest first, smaller id first among equals: int64 [min(k, I)]."""
    order = np.lexsort((item_ids, -np.asarray(counts, dtype=np.int64)))
    return np.asarray(item_ids, dtype=np.int64)[order[:k]]


def _positions(ids: Tensor, wanted: Tensor) -> Tensor:
    """Where each wanted id stands in `ids` (distinct); -1 where it does not: int64 [P]."""
    if not len(ids):
        return torch.full_like(wanted, -1)
    ascending, order = ids.sort()
    place = torch.searchsorted(ascending, wanted).clamp(max=len(ids) - 1)
    return torch.where(ascending[place] == wanted, order[place], -1)


def _describe(snapshot: Snapshot) -> str:
    return f"{snapshot.series} space {snapshot.space!r} version {snapshot.version} as of {snapshot.as_of}"
