"""A table that is spread over the ranks of a process group.

    table = load_sharded(series.latest())  # every rank; each reads, and holds, its part of the rows
    vectors, found = table.lookup(ids)     # every rank, each with ids of its own, or none

A lookup asks for each different id once, the rank that holds it, and rows come as they are stored, so that int8 vectors
take a quarter of the way that float32 ones take.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from embedding_store import arguments
from embedding_store.errors import InvalidArgumentError, RanksDisagreeError
from embedding_store.format.manifest import Manifest
from embedding_store.native import ops, reference
from embedding_store.read.snapshot import Snapshot
from embedding_store.read.table import Table, pooled
from embedding_store.serve.ranks import Asked, Ranks, on_cpu
from embedding_store.serve.shard import Shard, load_shard


class ShardedTable(Table):
    """As `Table`, with 1 / W of the rows on each of W ranks, made by `load_sharded`.

    Lookups are collectives: every rank calls the same ones in the same order, with ids of its own, as many as it likes,
    none too; one thread at a time of each rank. The answers are, bit for bit, those of the whole table, but for the
    rounding of `lookup_pooled`, which adds up in another order. A lookup that is refused on one rank raises
    RankFailedError on the others, and one in another version than the others' RanksDisagreeError on all; a rank that is
    gone, or does not call, ends the others' wait by the group's timeout.

    `ids()` gives this rank's ids. It cannot be pickled or exported: it is of its group.
    """

    def __init__(self, manifest: Manifest, shard: Shard, ranks: Ranks) -> None:
        super().__init__(manifest, shard.storage, shard.layout)
        self.shard = shard
        """What this rank holds."""
        self._ranks = ranks
        self._token = int.from_bytes(hashlib.blake2b(manifest.content.encode(), digest_size=7).digest())
        self._has_asked = False
        self._received = shard.storage.new_empty(0)
        self._native = self.device.type == "cpu"  # elsewhere there are no kernels of `distinct`, `locate` and `gather`

    def lookup(self, ids: Any, out_dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
        """`Table.lookup`, of every rank.

        Raises:
            InvalidIdsError, InvalidArgumentError: as `Table.lookup`.
            RankFailedError: another rank raised one of these.
            RanksDisagreeError: the ranks look up in different snapshots.
        """
        with self._together():
            return super().lookup(ids, out_dtype)

    def lookup_pooled(
        self,
        ids: Tensor,  # int64 [N]
        offsets: Tensor,  # int64 [B + 1]
        weights: Tensor | None = None,  # float32 [N]
        mode: str = "sum",
        out_dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor]:
        """`Table.lookup_pooled`, of every rank: vectors come once for each different id, and are pooled where they are
        asked for. Raises as `lookup`."""
        with self._together():
            return super().lookup_pooled(ids, offsets, weights, mode, out_dtype)

    def lookup_keys(self, keys: Any, out_dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """`Table.lookup_keys`, of every rank. Raises as `lookup`."""
        with self._together():
            return super().lookup_keys(keys, out_dtype)

    @property
    def group(self) -> dist.ProcessGroup:
        """The ranks that it is spread over."""
        return self._ranks.group

    def to(self, device: torch.device | str) -> ShardedTable:
        """This rank's part on another device, for which the group must have a backend; not a collective.

        Raises:
            InvalidArgumentError: it has none.
        """
        place = arguments.device(device)
        if place == self.device:
            return self
        return ShardedTable(self.manifest, self.shard.to(place), Ranks(self.group, place))

    def refuse(self) -> None:
        """Let the lookup that the other ranks are making raise RankFailedError there: this rank cannot join it."""
        self._ranks.refuse()

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Of a call that fails before the others are asked, tell them: they wait."""
        self._has_asked = False
        try:
            yield
        except Exception:
            if not self._has_asked:
                self._has_asked = True
                self._ranks.refuse()
            raise

    def _lookup(self, ids: Tensor, out_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        different, counts, places = (ops if self._native else reference).distinct(ids, self._ranks.size)
        sent = counts.tolist()
        self._has_asked = True
        asked = self._ranks.ask(sent, self.manifest.version, self._token)
        return self._chosen(asked)._answer(different, sent, asked.counts, places, out_dtype)

    def _chosen(self, asked: Asked) -> ShardedTable:
        """The table that all ranks look up in."""
        if len(set(asked.tokens)) > 1:
            each = ", ".join(f"rank {rank} version {version}" for rank, version in enumerate(asked.versions))
            raise RanksDisagreeError(
                f"the ranks look up different snapshots: {each}, one of them in {self!r}: make the same lookups, in "
                "the same order, on every rank of a group"
            )
        return self

    def _answer(
        self,
        different: Tensor,  # int64 [M], the ids of rank 0 first
        sent: list[int],  # of each rank
        received: list[int],  # of each rank
        places: Tensor,  # int64 [...], where in `different` the ids are
        out_dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        """Vectors and found, when all ranks look up here. This rank's own ids go nowhere."""
        first = sum(sent[: self._ranks.rank])
        last = first + sent[self._ranks.rank]
        own, others = different[first:last], torch.cat((different[:first], different[last:]))
        to_others, from_others = (self._ranks.without_own(counts) for counts in (sent, received))
        asked = self._ranks.exchange(others, to_others, from_others)
        if self._native:
            # Into the memory of the last answers: to get new pages costs as much as to fill them.
            answers = self._ranks.exchange(self._records_of(asked), from_others, to_others, self._received)
            here = self.shard.records
            mine = ops.locate(own, self._storage, self.layout)
        else:  # own records come as the others' do
            looked_up = self._records_of(torch.cat((asked, own)))
            given = self._ranks.exchange(looked_up[: len(asked)], from_others, to_others)
            answers, here = torch.cat((given, looked_up[len(asked) :])), self.shard.records[:0]
            mine = torch.arange(len(others), len(different), device=self.device)
        theirs = torch.arange(len(here), len(here) + len(others), device=self.device)
        where = torch.cat((theirs[:first], mine, theirs[first:]))
        return (ops if self._native else reference).gather(
            where[places], here, answers, self.dim, self.dtype, out_dtype
        )

    def _records_of(self, ids: Tensor) -> Tensor:
        """This rank's records of these ids, uint8 [N, R]; zeros where it has none."""
        values = self.shard.record_bytes // 4  # copied as if they were float32: no bit changes
        vectors, _ = ops.lookup(ids, self._storage, self.host_layout, values, "float32", torch.float32)
        return vectors.view(torch.uint8)

    def _lookup_pooled(
        self, ids: Tensor, offsets: Tensor, weights: Tensor | None, mode: str, out_dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        vectors, found = self._lookup(ids, torch.float32)
        return pooled(vectors, found, offsets, weights, mode, out_dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        raise InvalidArgumentError(f"{self!r} is of its process group and cannot be pickled: pickle the snapshot")

    def __repr__(self) -> str:
        m = self.manifest
        return f"ShardedTable({m.series!r}, version={m.version}, {self.shard.rows} of {m.rows} rows)"


def load_sharded(
    snapshot: Snapshot, group: dist.ProcessGroup | None = None, device: torch.device | str = "cpu"
) -> ShardedTable:
    """Spread a snapshot over the ranks of a group by the hash of its ids. A collective.

    Each rank reads its part of the index and an equal piece of the rows, checks them, and sends each row to the rank
    that holds it; of an object store it fetches these alone, past the cache.

    Args:
        snapshot: the same on every rank.
        group: of torch.distributed; None: all ranks.
        device: where this rank's rows lie, and ids and vectors of its lookups. The group must have a backend for it.

    Raises:
        CorruptStoreError: of the class that fits, naming the file; VersionExpiredError: its files are gone.
        RankFailedError: another rank raised one of these.
        RanksDisagreeError: the ranks were given different snapshots.
        InvalidArgumentError: no process group is running, or it has no backend for the device.
    """
    place = arguments.device(device)
    ranks = Ranks(group, place)
    shard = load_shard(snapshot._storage, snapshot.manifest, ranks if place.type == "cpu" else on_cpu(group))
    return ShardedTable(snapshot.manifest, shard.to(place), ranks)
