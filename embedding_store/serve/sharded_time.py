"""Lookup as of a time in versions that are spread over the ranks of a process group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from embedding_store.errors import InvalidArgumentError
from embedding_store.read.point_in_time import PointInTime
from embedding_store.read.snapshot import Snapshot
from embedding_store.serve.ranks import Ranks, on_cpu
from embedding_store.serve.sharded import ShardedTable, load_sharded


class ShardedPointInTime(PointInTime):
    """As `PointInTime`, of every rank of a group at a time, each with ids and timestamps of its own, or none.

    A version that some rank's timestamps see is loaded by all of them when it is first seen, and stays: a rank holds
    its part of each. Versions are looked up in one after the other: few at a time are fast. On the CPU.

    Args:
        snapshots: the same on every rank, of one series, oldest first.
        dim: D of what lookups return.
        group: of torch.distributed; None: all ranks.
    """

    def __init__(self, snapshots: Sequence[Snapshot], dim: int, group: dist.ProcessGroup | None = None) -> None:
        super().__init__(snapshots, dim)
        self._ranks: Ranks = on_cpu(group)
        self._spread = dict[int, ShardedTable]()

    def __reduce__(self) -> tuple[Any, ...]:
        raise InvalidArgumentError(
            "a ShardedPointInTime is of its process group and cannot be pickled: pickle its snapshots"
        )

    def lookup(
        self,
        ids: Tensor,  # int64 [...]
        timestamps: Tensor,  # int64 [...], ms since the epoch
        delay_ms: int = 0,
        out_dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor, Tensor]:  # [..., D], bool [...], int64 [...]
        """Vectors, found and versions: see `Series.lookup_as_of`. A collective.

        Raises:
            As `Series.lookup_as_of`; RankFailedError: another rank raised one of these.
        """
        newest, error = torch.zeros(0, dtype=torch.int64), None
        try:
            newest = self._newest_visible(ids, timestamps, delay_ms, out_dtype)
            self._chosen(newest, timestamps, 1)
        except Exception as raised:
            error = raised
        indices = self._seen_by_any(newest.unique(), error)
        vectors = torch.zeros(*ids.shape, self._dim, dtype=out_dtype)
        found = torch.zeros(ids.shape, dtype=torch.bool)
        for index in indices:
            here = newest == index + 1
            vectors[here], found[here] = self._table(index).lookup(ids[here], out_dtype)
        return vectors, found, self._versions[newest]

    def lookup_history(
        self, ids: Tensor, timestamps: Tensor, k: int, delay_ms: int = 0, out_dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Not of spread versions. Raises InvalidArgumentError."""
        raise InvalidArgumentError(f"k is {k}: the last k versions are looked up in whole tables only, use PointInTime")

    def _seen_by_any(self, seen: Tensor, error: Exception | None) -> list[int]:
        """Indices of the snapshots that some rank's timestamps see; raises on all ranks if one has an error."""
        flags = torch.zeros(len(self._valid) + 2, dtype=torch.int64)
        flags[seen + 1] = 1
        flags[0] = error is not None
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._ranks.group)
        if flags[0]:
            self._ranks.agree(error)
        return flags[2:].nonzero().flatten().tolist()

    def _table(self, index: int) -> ShardedTable:
        if index not in self._spread:
            self._spread[index] = load_sharded(self._valid[index], self._ranks.group)
        return self._spread[index]
