"""A snapshot that all ranks write, each the rows that it has: nobody gathers them, and rank 0 alone commits.

Where a rank must know whether others have an id, the ids go to the rank that their hash names, and the answers back.
"""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from embedding_store import Fragment, IndexPiece, Series, SharedDraft, Snapshot
from recsys.data.ranks import home
from recsys.train.distributed import Environment
from recsys.train.exchange import Route, agreed, of_all, ranks_of


class SharedIds:
    """The ids that the ranks have together, each those of one part of the hashes. A collective, as `has` is."""

    def __init__(
        self,
        ids: Tensor,  # int64 [n], of this rank
        environment: Environment,
    ) -> None:
        self._ranks = ranks_of(environment)
        (received,) = self._ranks.exchange((ids.numpy(),), home(ids.numpy(), self._ranks))
        self._ids = torch.from_numpy(received).sort().values

    def has(
        self,
        ids: Tensor,  # int64 [n]
    ) -> Tensor:  # bool [n]
        """Whether each is one of them."""
        route = Route(home(ids.numpy(), self._ranks), self._ranks.world_size)
        asked = torch.from_numpy(route.send(ids.numpy()))
        return torch.from_numpy(route.answer(is_in(asked, self._ids).to(torch.uint8).numpy())).bool()


class SharedWriter:
    """Writes one snapshot with all ranks, in a `with` block: nothing is visible before `commit`. Every method but
    `append` and `delete` is a collective, and so is the end of the block if it is clean.

    Raises, when made, what Series.draft raises, on every rank.
    """

    def __init__(self, series: Series, environment: Environment, **options: Any) -> None:
        """`options`: of Series.draft, but for `parts`."""
        self._series, self._environment = series, environment
        self._draft: SharedDraft = agreed(lambda: series.draft(parts=environment.world_size, **options), environment)
        self._writer = series.fragment(self._draft, environment.rank)
        self._open = ExitStack()
        self._fragments: list[Fragment] | None = None
        self._pieces: list[IndexPiece | None] = []
        self.snapshot: Snapshot | None = None
        """After `commit`, on rank 0."""

    def append(
        self,
        ids: Tensor,  # int64 [n]
        vectors: Tensor,  # float [n, D]
    ) -> None:
        """Rows of this rank; each id on one of them. Raises what FragmentWriter.append raises."""
        self._writer.append(ids, vectors)

    def delete(
        self,
        ids: Tensor,  # int64 [n]
    ) -> None:
        """Leave these ids out of a delta. Raises what FragmentWriter.delete raises."""
        self._writer.delete(ids)

    def finish(self) -> None:
        """End this rank's fragment, and write its piece of the index. Raises, on every rank, what it raises on one."""

        def end() -> Fragment:
            self._open.close()
            return self._writer.fragment

        rank, environment = self._environment.rank, self._environment
        fragments = of_all(end, environment)
        self._pieces = of_all(lambda: self._series.index_piece(self._draft, fragments, rank), environment)
        self._fragments = fragments

    def commit(self) -> None:
        """After `finish`: publish, on rank 0; nothing on the others. Raises what Series.commit raises."""
        assert self._fragments is not None
        if self._environment.is_main:
            self.snapshot = self._series.commit(self._draft, self._fragments, self._pieces)

    def __enter__(self) -> SharedWriter:
        self._open.enter_context(self._writer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._open.__exit__(kind, error, trace)
            return
        if self._fragments is None:
            self.finish()
        self.commit()


def is_in(
    ids: Tensor,  # int64 [n]
    among: Tensor,  # int64 [m], ascending
) -> Tensor:  # bool [n]
    """Whether each id is one of `among`."""
    if len(among) == 0:
        return torch.zeros(len(ids), dtype=torch.bool)
    return among[torch.searchsorted(among, ids).clamp_(max=len(among) - 1)] == ids
