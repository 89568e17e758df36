"""Lookup as of a time: for each id in the newest snapshots that could be read then, many snapshots in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from embedding_store import times
from embedding_store.arguments import integer, is_readable
from embedding_store.errors import InvalidArgumentError, InvalidIdsError, SchemaChangedError, SpaceMismatchError
from embedding_store.native import gpu, ops
from embedding_store.native.library import translated_errors
from embedding_store.read.open_tables import OpenTables
from embedding_store.read.snapshot import Snapshot
from embedding_store.read.table import OUT_DTYPES, Table

_LATEST = torch.iinfo(torch.int64).max
MOST_PLACES = 4096
"""The largest k of a history, as native code has it."""
_LookUp = Callable[[Sequence[Table], Tensor], tuple[Tensor, ...]]
"""Of tables, and the number among them of none and of each snapshot, int64 [1 + snapshots]."""


class PointInTime:
    """Some snapshots of one series, each id looked up in the newest, or the k newest, that its timestamp may see.

    Results are on the device of the tables. Ids and timestamps may be there, or on the CPU, from where a GPU gets its
    copies without waiting. Which versions are needed is read from timestamps where they are: a lookup waits once for
    the GPU, for what its stream has to do until then, if they are there, and not at all if they are on the CPU.

    On a GPU tables take bytes, not addresses. A lookup in more versions than `gpu_bytes` hold is done in parts, with
    the same results; each version that is not there is loaded, in as long as reading, checking and copying it takes.

    Args:
        snapshots: of one series, oldest first, as `Series.history` gives them.
        dim: D of what lookups return.
        tables: those that are open already, to share them with others.
        device: where the tables of its own lie, if none are given; None: the CPU.
        gpu_bytes: of the device's memory for them, see OpenTables; None: what it has.

    Raises:
        InvalidArgumentError, NativeLibraryError: as OpenTables; or both `tables` and a place for others are given.
    """

    def __init__(
        self,
        snapshots: Sequence[Snapshot],
        dim: int,
        tables: OpenTables | None = None,
        *,
        device: torch.device | str | None = None,
        gpu_bytes: int | None = None,
    ) -> None:
        self.snapshots = tuple(snapshots)
        # `as_of` never decreases. Of equal ones the last is the correction, and a time that sees one sees all of them.
        following = (*(snapshot.as_of for snapshot in self.snapshots[1:]), None)
        self._valid = [one for one, later in zip(self.snapshots, following, strict=False) if one.as_of != later]
        self._dim = dim
        if tables is not None and (device, gpu_bytes) != (None, None):
            raise InvalidArgumentError(
                f"device is {device} and gpu_bytes {gpu_bytes}, but tables are given, on {tables.device}: leave out one"
            )
        self._tables = OpenTables("cpu" if device is None else device, gpu_bytes) if tables is None else tables
        self.device = self._tables.device
        """Of the results."""
        self._here = _ints([0, *(snapshot.version for snapshot in self._valid)])
        self._versions = gpu.copied(self._here, self.device)
        self._times = gpu.copied(_ints([snapshot.as_of for snapshot in self._valid]), self.device)
        self._since = dict[tuple[int, torch.device], Tensor]()

    def lookup(
        self,
        ids: Tensor,  # int64 [...]
        timestamps: Tensor,  # int64 [...], ms since the epoch
        delay_ms: int = 0,
        out_dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor, Tensor]:  # [..., D], bool [...], int64 [...]
        """Vectors, found and versions: see `Series.lookup_as_of`."""
        room = self._tables.making_room
        newest, chosen = room(self._seen, ids, timestamps, 1, delay_ms, out_dtype)
        ids, newest = (room(gpu.sent, x, self.device) for x in (ids, newest))

        def look_up(tables: Sequence[Table], numbers: Tensor) -> tuple[Tensor, ...]:
            return ops.lookup_versions(ids, numbers.take(newest), *self._stored(tables), out_dtype)

        vectors, found = self._in_parts(chosen, look_up) or (
            torch.zeros(*ids.shape, self._dim, dtype=out_dtype, device=self.device),
            torch.zeros(ids.shape, dtype=torch.bool, device=self.device),
        )
        return vectors, found, room(self._versions.take, newest)

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
        room = self._tables.making_room
        newest, chosen = room(self._seen, ids, timestamps, k, delay_ms, out_dtype)
        ids, timestamps, newest = (room(gpu.sent, x, self.device) for x in (ids, timestamps, newest))

        def look_up(tables: Sequence[Table], numbers: Tensor) -> tuple[Tensor, ...]:
            storages, layouts, dim, dtype = self._stored(tables)
            return ops.lookup_history(
                ids, timestamps, newest - 1, self._times, numbers[1:], storages, layouts, k, dim, dtype, out_dtype
            )

        places = (*ids.shape, k)
        vectors, mask, ages = self._in_parts(chosen, look_up) or (
            torch.zeros(*places, self._dim, dtype=out_dtype, device=self.device),
            torch.zeros(places, dtype=torch.bool, device=self.device),
            torch.zeros(places, dtype=torch.int64, device=self.device),
        )
        return vectors, mask, ages

    def visible(
        self,
        timestamps: Tensor,  # int64 [...], ms since the epoch
        delay_ms: int = 0,
    ) -> Tensor:  # int64 [...]
        """The version that each timestamp sees, 0 where it sees none: on the device of the timestamps, and without a
        look at any table."""
        return self._tables.making_room(self._visible, timestamps, delay_ms)

    def _visible(self, timestamps: Tensor, delay_ms: int) -> Tensor:
        newest = self._newest_visible(timestamps, timestamps, delay_ms, torch.float32)
        for end in torch.aminmax(timestamps) if timestamps.numel() else ():
            times.check_unit(int(end), "timestamps")
        return (self._here if newest.device.type == "cpu" else self._versions).take(newest)

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickled one is its snapshots and where they are looked up; their tables are opened anew when needed."""
        return type(self), (self.snapshots, self._dim, self._tables)

    def _stored(self, tables: Sequence[Table]) -> tuple[list[Tensor], list[Tensor], int, str]:
        """As ops take them."""
        return [x._storage for x in tables], [x.host_layout for x in tables], self._dim, tables[0].dtype

    def _in_parts(self, chosen: Sequence[Sequence[int]], look_up: _LookUp) -> tuple[Tensor, ...] | None:
        """What `look_up` finds in the snapshots of these indices, as many at a time as there is room for, all of one
        dtype; None if there are none."""
        answer: tuple[Tensor, ...] | None = None
        for left in chosen:
            left = [left[number] for number in self._tables.in_order([self._valid[index] for index in left])]
            while left:
                part, done = self._part(left, look_up)
                answer = part if answer is None else self._tables.making_room(_joined, answer, part)
                left = left[done:]
        return answer

    def _part(self, indices: Sequence[int], look_up: _LookUp) -> tuple[tuple[Tensor, ...], int]:
        """What `look_up` finds in the first of these, and how many that were. On return nothing here has their tables,
        so that they may be let go."""
        with self._tables.held([self._valid[index] for index in indices]) as tables, translated_errors():
            room = self._tables.making_room
            return room(look_up, tables, room(self._numbers, indices[: len(tables)])), len(tables)

    def _numbers(self, indices: Sequence[int]) -> Tensor:
        """The number among these of none and of each snapshot, int64 [1 + snapshots], -1 for those without."""
        numbers = [-1] * len(self._versions)
        for number, index in enumerate(indices):
            numbers[index + 1] = number
        return gpu.sent(_ints(numbers), self.device)

    def _seen(
        self, ids: Tensor, timestamps: Tensor, k: int, delay_ms: int, out_dtype: torch.dtype
    ) -> tuple[Tensor, list[list[int]]]:
        """What `_newest_visible` and `_chosen` say."""
        newest = self._newest_visible(ids, timestamps, delay_ms, out_dtype)
        return newest, self._chosen(newest, timestamps, k)

    def _newest_visible(self, ids: Tensor, timestamps: Tensor, delay_ms: int, out_dtype: torch.dtype) -> Tensor:
        """How many snapshots each timestamp may see, int64 as `timestamps`: the last one of them is the newest.

        Raises what lookups raise of their arguments; but what times are is seen by `_chosen`.
        """
        delay_ms = integer(delay_ms, "delay_ms", least=0, why=": less would read vectors of the future")
        _check(ids, timestamps, out_dtype, self.device)
        since = self._visible_since(delay_ms, timestamps.device)
        return torch.searchsorted(since, timestamps.contiguous(), right=True)

    def _visible_since(self, delay_ms: int, device: torch.device) -> Tensor:
        """Of each snapshot that can be read at some time, ascending, int64 [V]."""
        since = self._since.get((delay_ms, device))
        if since is None:
            later = [snapshot.as_of + delay_ms for snapshot in self._valid]
            since = gpu.copied(_ints([time for time in later if time <= _LATEST]), device)
            self._since[delay_ms, device] = since
        return since

    def _chosen(self, newest: Tensor, timestamps: Tensor, k: int) -> list[list[int]]:
        """Indices of the snapshots that some id has among the k newest it may see: a list for each dtype, nearly always
        one. All that the host has to know of timestamps on a GPU is read here, at once.

        Raises InvalidTimeError, and what `_check_alike` raises.
        """
        count = len(self._valid)
        seeing = torch.zeros(count + 1, dtype=torch.int64, device=newest.device).index_fill_(0, newest.flatten(), 1)
        ends = torch.stack(torch.aminmax(timestamps)) if timestamps.numel() else seeing[:0]
        told = torch.cat((seeing, ends)).tolist()
        for end in told[count + 1 :]:
            times.check_unit(end, "timestamps")
        up_to = list(accumulate(told[: count + 1]))  # whether some id sees so many, or fewer
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


def _ints(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def _joined(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Vectors, found and what else there is of two parts, as one: what is found in one is zeros and False in the other.
    Not their sum, which would turn -0.0 into 0.0."""
    vectors, found, *rest = other
    kept = [torch.where(found, theirs, ours) for ours, theirs in zip(one[2:], rest, strict=True)]
    return torch.where(found.unsqueeze(-1), vectors, one[0]), found | one[1], *kept


def _check(ids: Tensor, timestamps: Tensor, out_dtype: torch.dtype, device: torch.device) -> None:
    for name, tensor in (("ids", ids), ("timestamps", timestamps)):
        if not isinstance(tensor, Tensor) or tensor.dtype != torch.int64 or not _is_at_hand(tensor, device):
            kind = f"{tensor.dtype} on {tensor.device}" if isinstance(tensor, Tensor) else type(tensor).__name__
            where = "the CPU" if device.type == "cpu" else f"the CPU or {device}"
            raise InvalidIdsError(f"{name} are {kind}: give an int64 tensor, dense and on {where}")
    if ids.shape != timestamps.shape:
        raise InvalidIdsError(f"ids are {list(ids.shape)}, timestamps {list(timestamps.shape)}: give one for each id")
    if out_dtype not in OUT_DTYPES:
        raise InvalidArgumentError(f"out_dtype is {out_dtype}; use one of {', '.join(map(str, OUT_DTYPES))}")


def _is_at_hand(tensor: Tensor, device: torch.device) -> bool:
    """Whether it is a dense one that the device reads, or gets."""
    if tensor.device.type == "cpu":
        return is_readable(tensor)
    return tensor.device == device and tensor.layout == torch.strided and not tensor.is_nested
