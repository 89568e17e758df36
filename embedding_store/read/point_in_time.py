"""Lookup as of a time: for each id in the newest snapshot that could be read then, many snapshots in one call."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from embedding_store.errors import InvalidArgumentError, InvalidIdsError, SchemaChangedError, SpaceMismatchError
from embedding_store.native import ops
from embedding_store.native.library import translated_errors
from embedding_store.read.snapshot import Snapshot
from embedding_store.read.table import OUT_DTYPES, Table

_LATEST = torch.iinfo(torch.int64).max
OPEN_TABLES = 256
"""Tables that stay open between calls. One takes addresses, not memory: its files are mapped."""


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
    """Some snapshots of one series, each id looked up in the newest of them that its timestamp may see.

    Args:
        snapshots: of one series, oldest first, as `Series.history` gives them.
        dim: D of what lookups return.
        tables: those that are open already, to share them with others.
    """

    def __init__(self, snapshots: Sequence[Snapshot], dim: int, tables: OpenTables | None = None) -> None:
        self.snapshots = tuple(snapshots)
        self._dim = dim
        self._tables = tables or OpenTables()
        self._versions = torch.tensor([0, *(snapshot.version for snapshot in self.snapshots)])

    def lookup(
        self,
        ids: Tensor,  # int64 [...]
        timestamps: Tensor,  # int64 [...], ms since the epoch
        delay_ms: int = 0,
        out_dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor, Tensor]:  # [..., D], bool [...], int64 [...]
        """Vectors, found and versions: see `Series.lookup_as_of`."""
        _check(ids, timestamps, delay_ms, out_dtype)
        newest = self._newest_visible(timestamps, delay_ms)
        used = torch.bincount(newest.flatten(), minlength=len(self._versions))[1:].nonzero().squeeze(1).tolist()
        chosen = [self.snapshots[index] for index in used]
        self._check_alike(chosen)
        dtypes = sorted({snapshot.dtype for snapshot in chosen})  # nearly always one
        parts = [
            self._lookup(ids, newest, [index for index in used if self.snapshots[index].dtype == dtype], out_dtype)
            for dtype in dtypes
        ] or [(torch.zeros(*ids.shape, self._dim, dtype=out_dtype), torch.zeros(ids.shape, dtype=torch.bool))]
        vectors, found = parts[0]
        for part, part_found in parts[1:]:  # an id that is found in one is zero in the others
            vectors, found = vectors + part, found | part_found
        return vectors, found, self._versions[newest]

    def _lookup(
        self, ids: Tensor, newest: Tensor, indices: Sequence[int], out_dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Vectors and found in the snapshots of these indices, all of one dtype; zeros and False for the other ids."""
        tables = [self._tables.get(self.snapshots[index]) for index in indices]
        number = torch.full((len(self._versions),), -1)
        number[torch.tensor(indices) + 1] = torch.arange(len(indices))
        with translated_errors():
            return ops.lookup_versions(
                ids,
                number[newest],
                [table.storage for table in tables],
                [table.layout for table in tables],
                self._dim,
                tables[0].dtype,
                out_dtype,
            )

    def _newest_visible(self, timestamps: Tensor, delay_ms: int) -> Tensor:
        """How many snapshots each timestamp may see, int64 as `timestamps`: the last one of them is the newest."""
        visible_from = [snapshot.as_of + delay_ms for snapshot in self.snapshots]
        in_range = torch.tensor([time for time in visible_from if time <= _LATEST], dtype=torch.int64)
        # `as_of` never decreases; of equal ones the later version, which is the correction, comes last.
        return torch.searchsorted(in_range, timestamps.contiguous(), right=True)

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


def _check(ids: Tensor, timestamps: Tensor, delay_ms: int, out_dtype: torch.dtype) -> None:
    for name, tensor in (("ids", ids), ("timestamps", timestamps)):
        if not isinstance(tensor, Tensor) or tensor.dtype != torch.int64 or tensor.device.type != "cpu":
            kind = f"{tensor.dtype} on {tensor.device}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise InvalidIdsError(f"{name} are {kind}: give an int64 tensor on the CPU")
    if ids.shape != timestamps.shape:
        raise InvalidIdsError(f"ids are {list(ids.shape)}, timestamps {list(timestamps.shape)}: give one for each id")
    if not isinstance(delay_ms, int) or delay_ms < 0:
        raise InvalidArgumentError(f"delay_ms is {delay_ms!r}; use 0 or more: less would read vectors of the future")
    if out_dtype not in OUT_DTYPES:
        raise InvalidArgumentError(f"out_dtype is {out_dtype}; use one of {', '.join(map(str, OUT_DTYPES))}")
