"""Lookup as of a time: for each id in the newest snapshots that could be read then, many snapshots in one call."""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from embedding_store import times
from embedding_store.arguments import integer, is_readable
from embedding_store.errors import InvalidArgumentError, InvalidIdsError, SchemaChangedError, SpaceMismatchError
from embedding_store.native import ops
from embedding_store.native.library import translated_errors
from embedding_store.read.snapshot import Snapshot
from embedding_store.read.table import OUT_DTYPES, Table

_LATEST = torch.iinfo(torch.int64).max
OPEN_TABLES = 256
"""Tables that stay open between calls. One takes addresses, not memory: its files are mapped."""
MOST_PLACES = 4096
"""The largest k of a history, as native code has it."""


class _Open:
    """A version's table, once it is loaded, and the lock under which that happens."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.table: Table | None = None


class OpenTables:
    """Tables of one series by version, opened when first needed; beyond OPEN_TABLES those used longest ago are let go.

    Threads may share it: only those that need the same version wait for its load. A forked child has the tables too.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[int, _Open] = OrderedDict()
        self._lock = threading.Lock()  # never held over a load
        _shared.add(self)

    def get(self, snapshot: Snapshot) -> Table:
        """The snapshot's table on the CPU. Raises what `Snapshot.load` raises."""
        with self._lock:
            one = self._open.pop(snapshot.version, None) or _Open()
            self._open[snapshot.version] = one
            if len(self._open) > OPEN_TABLES:
                self._open.popitem(last=False)
        with one.lock:
            if one.table is None:
                one.table = snapshot.load()
            return one.table

    def _after_fork(self) -> None:
        """In the child: the threads that held locks are not there."""
        self._lock = threading.Lock()
        for one in self._open.values():
            one.lock = threading.Lock()


_shared: weakref.WeakSet[OpenTables] = weakref.WeakSet()


def _after_fork() -> None:
    for tables in list(_shared):
        tables._after_fork()


os.register_at_fork(after_in_child=_after_fork)


class PointInTime:
    """Some snapshots of one series, each id looked up in the newest, or the k newest, that its timestamp may see.

    Args:
        snapshots: of one series, oldest first, as `Series.history` gives them.
        dim: D of what lookups return.
        tables: those that are open already, to share them with others.
    """

    def __init__(self, snapshots: Sequence[Snapshot], dim: int, tables: OpenTables | None = None) -> None:
        self.snapshots = tuple(snapshots)
        # `as_of` never decreases. Of equal ones the last is the correction, and a time that sees one sees all of them.
        following = (*(snapshot.as_of for snapshot in self.snapshots[1:]), None)
        self._valid = [one for one, later in zip(self.snapshots, following, strict=False) if one.as_of != later]
        self._dim = dim
        self._tables = tables or OpenTables()
        self._versions = torch.tensor([0, *(snapshot.version for snapshot in self._valid)])
        self._times = torch.tensor([snapshot.as_of for snapshot in self._valid], dtype=torch.int64)

    def lookup(
        self,
        ids: Tensor,  # int64 [...]
        timestamps: Tensor,  # int64 [...], ms since the epoch
        delay_ms: int = 0,
        out_dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor, Tensor]:  # [..., D], bool [...], int64 [...]
        """Vectors, found and versions: see `Series.lookup_as_of`."""
        newest = self._newest_visible(ids, timestamps, delay_ms, out_dtype)
        parts = [self._lookup(ids, newest, indices, out_dtype) for indices in self._chosen(newest, 1)] or [
            (torch.zeros(*ids.shape, self._dim, dtype=out_dtype), torch.zeros(ids.shape, dtype=torch.bool))
        ]
        vectors, found = _sums(parts)
        return vectors, found, self._versions[newest]

    def lookup_history(
        self,
        ids: Tensor,  # int64 [...]
        timestamps: Tensor,  # int64 [...], ms since the epoch
        k: int,
        delay_ms: int = 0,
        out_dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor, Tensor]:  # [..., k, D], bool [..., k], int64 [..., k]
        """Vectors, mask and ages: see `Series.lookup_history_as_of`."""
        k = integer(k, "k", least=1, most=MOST_PLACES, why=": each id gets k vectors, zeros where there are none")
        newest = self._newest_visible(ids, timestamps, delay_ms, out_dtype)
        places = (*ids.shape, k)
        parts = [
            self._lookup_history(ids, timestamps, newest, indices, k, out_dtype) for indices in self._chosen(newest, k)
        ] or [
            (
                torch.zeros(*places, self._dim, dtype=out_dtype),
                torch.zeros(places, dtype=torch.bool),
                torch.zeros(places, dtype=torch.int64),
            )
        ]
        vectors, mask, ages = _sums(parts)
        return vectors, mask, ages

    def _lookup(
        self, ids: Tensor, newest: Tensor, indices: Sequence[int], out_dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Vectors and found in the snapshots of these indices, all of one dtype; zeros and False for the other ids."""
        tables, numbers = self._open(indices)
        with translated_errors():
            return ops.lookup_versions(
                ids,
                numbers[newest],
                [table._storage for table in tables],
                [table.layout for table in tables],
                self._dim,
                tables[0].dtype,
                out_dtype,
            )

    def _lookup_history(
        self,
        ids: Tensor,
        timestamps: Tensor,
        newest: Tensor,
        indices: Sequence[int],
        k: int,
        out_dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `_lookup`, with mask and ages, for the k places of each id."""
        tables, numbers = self._open(indices)
        with translated_errors():
            return ops.lookup_history(
                ids,
                timestamps,
                newest - 1,
                self._times,
                numbers[1:],
                [table._storage for table in tables],
                [table.layout for table in tables],
                k,
                self._dim,
                tables[0].dtype,
                out_dtype,
            )

    def _open(self, indices: Sequence[int]) -> tuple[list[Table], Tensor]:
        """The tables of the snapshots of these indices, and the number among them of none and of each snapshot, int64
        [1 + snapshots]: -1 for those without."""
        tables = [self._tables.get(self._valid[index]) for index in indices]
        numbers = [-1] * len(self._versions)
        for number, index in enumerate(indices):
            numbers[index + 1] = number
        return tables, torch.tensor(numbers)

    def _newest_visible(self, ids: Tensor, timestamps: Tensor, delay_ms: int, out_dtype: torch.dtype) -> Tensor:
        """How many snapshots each timestamp may see, int64 as `timestamps`: the last one of them is the newest.

        Raises what lookups raise of their arguments.
        """
        delay_ms = integer(delay_ms, "delay_ms", least=0, why=": less would read vectors of the future")
        _check(ids, timestamps, out_dtype)
        visible_from = [snapshot.as_of + delay_ms for snapshot in self._valid]
        in_range = torch.tensor([time for time in visible_from if time <= _LATEST], dtype=torch.int64)
        return torch.searchsorted(in_range, timestamps.contiguous(), right=True)

    def _chosen(self, newest: Tensor, k: int) -> list[list[int]]:
        """Indices of the snapshots that some id has among the k newest it may see: a list for each dtype, nearly always
        one. Raises what `_check_alike` raises."""
        count = len(self._valid)
        seeing = torch.bincount(newest.flatten(), minlength=count + 1).tolist()  # ids that see so many
        up_to = list(accumulate(seeing))  # or fewer
        used = [index for index in range(count) if up_to[min(index + k, count)] > up_to[index]]
        self._check_alike([self._valid[index] for index in used])
        by_dtype: dict[str, list[int]] = {}
        for index in used:
            by_dtype.setdefault(self._valid[index].dtype, []).append(index)
        return list(by_dtype.values())

    def _check_alike(self, chosen: Sequence[Snapshot]) -> None:
        """Vectors of two spaces, or of two lengths, cannot be one feature."""
        spaces = {snapshot.space: snapshot for snapshot in chosen}
        if len(spaces) > 1:
            names = " and ".join(f"{space!r} (version {snapshot.version})" for space, snapshot in spaces.items())
            raise SpaceMismatchError(
                f"these timestamps see vectors of the spaces {names} of series {chosen[0].series!r}, which cannot be "
                f"compared: give space={list(spaces)[-1]!r}, or look up times of one space only"
            )
        for snapshot in chosen:
            if snapshot.dim != self._dim:
                raise SchemaChangedError(
                    f"version {snapshot.version} of series {snapshot.series!r} has dim = {snapshot.dim}, asked for is "
                    f"{self._dim}: look up only times from which on vectors have {self._dim} values"
                )


def _sums(parts: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    """Results in parts as one: what is found in one is zeros and False in the others."""
    return [functools.reduce(torch.add, tensors) for tensors in zip(*parts, strict=True)]


def _check(ids: Tensor, timestamps: Tensor, out_dtype: torch.dtype) -> None:
    for name, tensor in (("ids", ids), ("timestamps", timestamps)):
        if not isinstance(tensor, Tensor) or tensor.dtype != torch.int64 or not is_readable(tensor):
            kind = f"{tensor.dtype} on {tensor.device}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise InvalidIdsError(f"{name} are {kind}: give an int64 tensor, dense and on the CPU")
    if ids.shape != timestamps.shape:
        raise InvalidIdsError(f"ids are {list(ids.shape)}, timestamps {list(timestamps.shape)}: give one for each id")
    times.check_units(timestamps, "timestamps")
    if out_dtype not in OUT_DTYPES:
        raise InvalidArgumentError(f"out_dtype is {out_dtype}; use one of {', '.join(map(str, OUT_DTYPES))}")
