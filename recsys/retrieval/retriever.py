"""The Python door to retrieval: `open_index(path, store).search(users, k)`, or `open_exact(store, upstream)`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from embedding_store import EmbeddingStore, Table
from recsys.config.upstream import LossConfig
from recsys.evaluate.nearest import Nearest, nearest
from recsys.retrieval import approximate
from recsys.retrieval.manifest import IDS, INDEX, Manifest, RetrievalError
from recsys.retrieval.pair import Pair, newest_pair, pinned_pair, withdrawn_now

TEMPERATURE = LossConfig().temperature
"""Of an upstream whose config says nothing else."""


class Retrieved(NamedTuple):
    """What was found for U users, best first."""

    items: Tensor  # int64 [U, k], ids; meaningless where the score is -inf
    scores: Tensor  # float32 [U, k]; -inf: nothing at this place
    found: Tensor  # bool [U], whether the user has a vector


class Retriever:
    """Items for users, from `open_index` or `open_exact`. Threads may share it.

    Args:
        pair: what is searched.
        users: the users' vectors.
        ids: int64 [N], the items of the rows that `search` finds.
        items: how many of them can be retrieved.
        search: queries float32 [U, D + 1] and k -> rows and scores.
        kind: how it searches, in a word.
    """

    def __init__(
        self,
        pair: Pair,
        users: Table,
        ids: Tensor,
        items: int,
        search: Callable[[Tensor, int], Nearest],
        kind: str,
    ) -> None:
        self.pair = pair
        self.items = items
        self.kind = kind
        self._users, self._ids, self._search = users, ids, search

    def check_k(self, k: int) -> None:
        """Raise RetrievalError unless there are k items."""
        if not 1 <= k <= self.items:
            raise RetrievalError(
                f"k is {k}, and {self.items:,} items of {self.pair.items.series!r} can be retrieved: use 1 to "
                f"{max(self.items, 1):,}"
            )

    def search(
        self,
        users: Tensor,  # int64 [U], ids, any of them more than once
        k: int,
    ) -> Retrieved:
        """The k best items for each user. One without a vector gets those of the greatest prior, or nothing (scores of
        -inf) where the prior has no part in the scores.

        Memory grows with U: give many users in parts.

        Raises:
            RetrievalError: k < 1, or more than there are items.
        """
        self.check_k(k)
        vectors, known = self._users.lookup(users)
        found = self._search(torch.cat([vectors, torch.ones(len(users), 1)], dim=1), k)
        scores = found.scores
        if not self.pair.weight:
            scores = scores.masked_fill(~known[:, None], float("-inf"))
        return Retrieved(self._ids[found.rows.clamp(min=0)], scores, known)


def open_exact(
    store: str | Path,
    upstream: str,
    *,
    version: int | None = None,
    temperature: float = TEMPERATURE,
    weight: float = 1.0,
) -> Retriever:
    """Retrieve by scoring every item: u.v / temperature + weight * prior.

    Args:
        store: path or URL of the store.
        upstream: whose series `user_<upstream>`, `item_<upstream>` and, if it is there, `item_<upstream>.prior` are
            read: the newest prior, and the newest version of the others that was not refused.
        version: another one.
        temperature: the upstream's `loss.temperature`.
        weight: of the prior; 0: none.

    Raises:
        RetrievalError: no such series or version.
        VersionSkewError: users and items of the version do not belong together.
        StoreError: the store cannot be read.
    """
    opened = EmbeddingStore(store)
    pair = newest_pair(opened, upstream, version=version, temperature=temperature, weight=weight)
    return _exact(opened, pair)


def open_index(
    path: str | Path,
    store: str | Path | None = None,
    *,
    upstream: str | None = None,
    version: int | None = None,
    exact: bool = False,
) -> Retriever:
    """Retrieve by an index that `build_index` left. Its files are held against their checksums first; users are those
    of its version. Items that were withdrawn since it was built are not found.

    Args:
        path: folder of the index.
        store: the store, where it is not at the place any more that the index names.
        upstream, version: what it must be of; None: whatever it is.
        exact: score every item of the index's versions instead, to see what the index misses.

    Raises:
        RetrievalError: no index, a changed or missing file, an index of another upstream, version, space or time,
            or whose version is gone.
        StoreError: the store cannot be read.
    """
    folder = Path(path)
    manifest = Manifest.load(folder)
    for name, wanted in (("upstream", upstream), ("version", version)):
        if wanted not in (None, getattr(manifest, name)):
            raise RetrievalError(
                f"{folder} is an index of {name} {getattr(manifest, name)!r}, not of {wanted!r}: build another one "
                f"(`recsys index`), or ask for that {name}"
            )
    opened = EmbeddingStore(store or manifest.store)
    pair = pinned_pair(opened, manifest)
    manifest.verify(folder)
    return _exact(opened, pair) if exact else _indexed(opened, pair, folder, manifest)


def _exact(store: EmbeddingStore, pair: Pair) -> Retriever:
    index = pair.load(withdrawn_now(store, pair.upstream))

    def search(queries: Tensor, k: int) -> Nearest:
        return nearest(queries, index.vectors, k)

    return Retriever(pair, index.users, index.ids, len(index.ids), search, "exact")


def _indexed(store: EmbeddingStore, pair: Pair, folder: Path, manifest: Manifest) -> Retriever:
    index = approximate.load(folder / INDEX)
    ids = torch.from_numpy(np.load(folder / IDS, allow_pickle=False))
    gone = torch.isin(ids, withdrawn_now(store, pair.upstream)).nonzero()[:, 0]

    def search(queries: Tensor, k: int) -> Nearest:
        found = approximate.search(index, manifest.kind, queries, k, gone)
        return Nearest(found.rows, found.scores + manifest.base)

    return Retriever(pair, pair.users.load(), ids, len(ids) - len(gone), search, manifest.kind)
