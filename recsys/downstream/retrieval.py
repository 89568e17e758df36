"""Retrieval of items by what the contrastive softmax learned: u.v / temperature + weight * prior.

Stores and indexes search by inner product alone, so the prior becomes one more dimension: an item is
[v / temperature, weight * prior], a user [u, 1]. `build_index` makes the items so, `Index.queries` the users; both can
be given to any index of inner products.

Nobody falls out. A user without a vector is [0, 1] and gets the items of the greatest prior; an item without one stands
with the mean of those that have one, so that its inner product is the user's average, and with its own prior.

The vectors of one query must come from one version of one space (arXiv 2509.04337: version skew cost Pinterest the
online gain of offline wins), so that is checked before anything is loaded. The prior has a time of its own, and should
be newer.

`recsys.retrieval` makes a product of it: indexes as files, many users at once, `recsys index` and `recsys retrieve`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from embedding_store import Snapshot, Table
from recsys.evaluate.nearest import exact_top_k
from recsys.prior import Prior


class VersionSkewError(ValueError):
    """User and item snapshots that must not be compared: of different spaces, versions or event times."""


@dataclass(frozen=True)
class Index:
    """Items that can be retrieved, as vectors whose inner product with a user's is the score."""

    ids: Tensor  # int64 [N], ascending
    vectors: Tensor  # float32 [N, D + 1]
    has_vector: Tensor  # bool [N]
    users: Table

    def queries(
        self,
        user_ids: Tensor,  # int64 [U]
    ) -> tuple[Tensor, Tensor]:  # float32 [U, D + 1], bool [U]
        """The users' side of the inner product, and who has a vector."""
        vectors, found = self.users.lookup(user_ids)
        return torch.cat([vectors, torch.ones(len(user_ids), 1)], dim=1), found  # zeros where there is no vector

    def search(
        self,
        queries: Tensor,  # float32 [U, D + 1], of `queries`
        k: int,
        without: tuple[Tensor, Tensor] | None = None,  # int64 [P], rows of queries; int64 [P], ids of items
    ) -> Tensor:
        """Rows of `ids` of the k items of greatest score for each user, best first; every item is scored.

        `without` are items that a user must not get, those it has seen say.

        Returns:
            int64 [U, min(k, N)]; -1 where there are no more.
        """
        return exact_top_k(queries, self.vectors, k, without=pairs_of(self.ids, without))


def build_index(
    user_snapshot: Snapshot,
    item_snapshot: Snapshot,
    prior_snapshot: Snapshot,
    *,
    temperature: float,
    weight: float = 1.0,
) -> Index:
    """The items that can be retrieved now: those with a vector, and those with an event in the prior's window, less
    those that the prior says are withdrawn.

    Args:
        user_snapshot: of the series `user_<upstream>`.
        item_snapshot: of `item_<upstream>`: same space, version and as_of.
        prior_snapshot: of `item_<upstream>.prior`, the newest there is.
        temperature: the upstream's `loss.temperature`.
        weight: of the prior; the report of a run says which was best on validation days (`retrieval.weight`).

    Raises:
        VersionSkewError: the vectors' snapshots differ in space, version or as_of.
        ValueError: a prior of more than one dimension.
    """
    check_same_version(user_snapshot, item_snapshot)
    prior = Prior.load(prior_snapshot)
    return index_of(user_snapshot.load(), item_snapshot.load(), prior, temperature=temperature, weight=weight)


def index_of(users: Table, items: Table, prior: Prior, *, temperature: float, weight: float) -> Index:
    """`build_index` of tables of one version, and any prior."""
    ids = torch.cat([items.ids(), prior.ids]).unique()
    ids = ids[~torch.isin(ids, prior.withdrawn)]
    vectors, found = items.lookup(ids)
    mean = vectors[found].mean(0) if bool(found.any()) else torch.zeros(items.dim)
    scaled = torch.where(found[:, None], vectors, mean) / temperature
    return Index(ids, torch.cat([scaled, weight * prior.of(ids)[:, None]], dim=1), found, users)


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


def positions(
    ids: Tensor,  # int64 [N], distinct
    wanted: Tensor,  # int64 [P]
) -> Tensor:  # int64 [P]
    """Where each wanted id stands in `ids`; -1 where it does not."""
    if not len(ids):
        return torch.full_like(wanted, -1)
    ascending, order = ids.sort()
    place = torch.searchsorted(ascending, wanted).clamp(max=len(ids) - 1)
    return torch.where(ascending[place] == wanted, order[place], -1)


def pairs_of(
    ids: Tensor,  # int64 [N], distinct
    pairs: tuple[Tensor, Tensor] | None,  # int64 [P], rows of users; int64 [P], ids of items
) -> tuple[Tensor, Tensor] | None:  # int64 [<= P], rows of users; int64 [<= P], rows of `ids`
    """The pairs whose item is one of `ids`, by its row there: what `exact_top_k` leaves out."""
    if pairs is None:
        return None
    rows = positions(ids, pairs[1])
    return pairs[0][rows >= 0], rows[rows >= 0]


def _describe(snapshot: Snapshot) -> str:
    return f"{snapshot.series} space {snapshot.space!r} version {snapshot.version} as of {snapshot.as_of}"
