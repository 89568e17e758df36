"""A mapped snapshot copied to a device: only its indexes and its vectors, without rows that no id leads to.

A copy is the same two tensors that a mapping is, `storage` and `layout`, so that one op serves both. It has one
segment, or two in a tiered table: what fits a budget of GPU memory, and the rest in pinned host memory, which the GPU
reads over the bus. A quantised row has its scale and offset in front of it, so that it costs one access. Reading,
checking and copying overlap. Host memory: some staging buffers, about 18 bytes a stored row while the copy is made, and
the cold rows themselves.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from embedding_store.dtypes import Dtype
from embedding_store.errors import InvalidIndexError
from embedding_store.native import gpu, ops
from embedding_store.native.layout import (
    ABSENT,
    BUCKET_BYTES,
    EMPTY,
    LAYOUT_HEADER,
    ROW_BITS,
    SCALE_BYTES,
    index_numbers,
)
from embedding_store.native.library import translated_errors
from embedding_store.native.mapping import BLOCK, Mapping
from embedding_store.read.budget import Budget
from embedding_store.read.copy_sizes import aligned, copied_row_bytes
from embedding_store.read.copying import AT_ONCE, Manner, StoppedError, host_memory

_STAGING_BYTES = 32 << 20
_STAGING_BUFFERS = 3
_DEAD, _HOT, _COLD = 0, 1, 2
_EMPTY, _ABSENT = EMPTY - 2**64, ABSENT - 2**64  # as int64


@dataclass(frozen=True)
class Tiered:
    """A table in two places, as `lookup_tiered` takes it."""

    storage: Tensor
    """uint8 [bytes] on the device: the index, the overlay and the hot rows, segment 0."""
    cold: Tensor
    """uint8 [bytes] on the host, pinned if the device is a GPU: the other rows, segment 1."""
    layout: Tensor
    """int64 [8 + 4 * S] on the CPU, S = 1 if no row is cold, else 2; 4 more with an overlay."""
    hot_rows: int
    cold_rows: int
    index_on_host: bool
    """Whether index and overlay are in `cold` instead, before its rows."""
    readers: gpu.Readers | None = None
    """Of `cold`, whose memory waits for them before it is given back; None unless a GPU reads it."""


def upload(
    mapping: Mapping,
    layout: Tensor,  # int64 [8 + 4 * S], CPU
    *,
    dim: int,
    dtype: Dtype,
    device: torch.device | str,
    index_path: str,
    manner: Manner = AT_ONCE,
) -> tuple[Tensor, Tensor]:
    """Copy a mapped snapshot to `device`. Returns storage, uint8 [bytes], there, and layout, int64 [8 + 4], or 4 more
    with an overlay, on the CPU.

    Raises:
        NativeLibraryError: no lookup was built for this kind of device, or it does not run there.
        DeviceMemoryError: the device has not as much memory.
        ChecksumError: bytes that were read are not those that were written; names the file.
        InvalidIndexError: an entry points to no row; names `index_path`.
        StoppedError: `manner.progress` said so.
    """
    place = gpu.usable(torch.device(device))
    source = _Source(mapping, layout, dim, dtype, index_path, manner)
    tiers = torch.full((source.rows,), _DEAD, dtype=torch.uint8)
    for rows, _ in source.entries():
        tiers[rows] = _HOT
    tiered = _copy(source, tiers, place, manner)
    return tiered.storage, tiered.layout


def upload_tiered(
    mapping: Mapping,
    layout: Tensor,  # int64 [8 + 4 * S], CPU
    *,
    dim: int,
    dtype: Dtype,
    device: torch.device | str,
    budget: Budget,
    index_path: str,
    manner: Manner = AT_ONCE,
) -> Tiered:
    """Copy a mapped snapshot: index and as many rows as fit into the budget to `device`, the rest to host memory.

    Rows of its `hot_ids` go to the device first; what room is left takes other rows in stored order. Ids that are not
    in the snapshot are passed over. An index that does not fit goes to host memory too, with a warning.

    Raises:
        NativeLibraryError, DeviceMemoryError, ChecksumError, InvalidIndexError, StoppedError: as `upload`.
    """
    place = gpu.usable(torch.device(device))
    source = _Source(mapping, layout, dim, dtype, index_path, manner)
    index_on_host = budget.gpu_bytes < source.indexes_bytes
    if index_on_host:
        warnings.warn(
            f"gpu_bytes is {budget.gpu_bytes}, and the index takes {source.indexes_bytes}: it lies in host memory, "
            "where each id that is looked up reads it over the bus; give more, if there is more",
            stacklevel=2,
        )
    room = budget.gpu_bytes - (0 if index_on_host else source.indexes_bytes)
    tiers = _tiers(source, room // source.copied_row_bytes, budget.hot_ids)
    return _copy(source, tiers, place, manner, index_on_host)


class _Index(NamedTuple):
    """Of an index what a layout has."""

    start: int
    """Of its first bucket."""
    home_buckets: int
    total_buckets: int
    seed: int

    @property
    def bytes(self) -> int:
        """Of all buckets."""
        return self.total_buckets * BUCKET_BYTES


class _Source:
    """A mapping with its layout: entries and columns, every block checked before it is used."""

    def __init__(
        self, mapping: Mapping, layout: Tensor, dim: int, dtype: Dtype, index_path: str, manner: Manner
    ) -> None:
        count = int(layout[4])
        self._storage = mapping.storage
        self._manner = manner
        self._begun = time.monotonic()
        self._read = 0
        self._index_path = index_path
        self.indexes = [_Index(*numbers.tolist()) for numbers in index_numbers(layout)]
        self.indexes_bytes = sum(aligned(index.bytes) for index in self.indexes)
        self._index_layout = torch.tensor([*self.indexes[0], 0, 0, 0, 0])  # without the overlay
        self.segments = (
            layout[LAYOUT_HEADER : LAYOUT_HEADER + 4 * count].view(-1, 4).tolist()
        )  # vector, scale, offset, rows
        self._segment_rows = torch.tensor([rows for *_, rows in self.segments], dtype=torch.int64)
        self._first_rows = self._segment_rows.cumsum(0) - self._segment_rows
        self.rows = int(self._segment_rows.sum())
        self.quantised = dtype.quantised
        self.row_bytes = dtype.width(dim) * dtype.torch_dtype.itemsize
        self.copied_row_bytes = copied_row_bytes(dtype, dim)

    def bytes(self, start: int, count: int) -> Tensor:
        """uint8 [count] of the mapped range, read-only, in the manner of the copy."""
        first, last, rate = start // BLOCK, -(-(start + count) // BLOCK), self._manner.rate
        with translated_errors():
            torch.ops.embedding_store.check_blocks(self._storage, first, last - first, rate)
        self._read += count
        if rate:  # what has been checked before, and what is done with the bytes, takes its time too
            time.sleep(max(0.0, self._begun + self._read / rate - time.monotonic()))
        if self._manner.progress and self._manner.progress(min(self._read, self.all_bytes), self.all_bytes) is False:
            raise StoppedError
        return self._storage[start : start + count]

    @property
    def all_bytes(self) -> int:
        """What is read for a copy: the index twice, the overlay once more, each row once."""
        index, *overlay = (one.bytes for one in self.indexes)
        return 2 * index + 3 * sum(overlay) + self.rows * (self.row_bytes + (SCALE_BYTES if self.quantised else 0))

    def slots(self) -> Iterator[tuple[int, Tensor]]:
        """The index in pieces: where in it each begins, in bytes, and int64 [n, 2], ids and locations, read-only."""
        return self._pieces(self.indexes[0])

    def overlay_slots(self) -> Iterator[tuple[int, Tensor]]:
        """As `slots`, of the overlay, if there is one."""
        return chain(*map(self._pieces, self.indexes[1:]))

    def _pieces(self, index: _Index) -> Iterator[tuple[int, Tensor]]:
        for first in range(0, index.bytes, _STAGING_BYTES):
            count = min(_STAGING_BYTES, index.bytes - first)
            yield first, self.bytes(index.start + first, count).view(torch.int64).view(-1, 2)

    def entries(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows, numbered through all segments, and ids of the entries that count, int64 [n] each, piece by piece."""
        replaced = torch.zeros(self.rows, dtype=torch.bool)
        for _, slots in self.overlay_slots():
            ids = slots[slots[:, 1] != _EMPTY, 0]
            with translated_errors():
                below = torch.stack((ids, ops.locate(ids, self._storage, self._index_layout)), 1)
            replaced[self.row_numbers(below[below[:, 1] != _EMPTY])] = True
        for _, slots in self.slots():
            used = slots[slots[:, 1] != _EMPTY]
            rows = self.row_numbers(used)
            yield rows[~replaced[rows]], used[~replaced[rows], 0]
        for _, slots in self.overlay_slots():
            used = slots[(slots[:, 1] != _EMPTY) & (slots[:, 1] != _ABSENT)]
            yield self.row_numbers(used), used[:, 0].contiguous()

    def row_numbers(
        self,
        entries: Tensor,  # int64 [n, 2]
    ) -> Tensor:
        """The rows that entries point to, int64 [n], numbered through all segments."""
        segment, row = entries[:, 1] >> ROW_BITS, entries[:, 1] & ((1 << ROW_BITS) - 1)
        known = (segment >= 0) & (segment < len(self.segments))
        segment = torch.where(known, segment, 0)
        good = known & (row < self._segment_rows[segment]) if self.segments else known
        if not bool(good.all()):
            id, location = entries[int((~good).nonzero()[0])].tolist()
            where = f"segment {(location >> ROW_BITS) & 0xFFFFFF} row {location & ((1 << ROW_BITS) - 1)}"
            message = f"leads from id {id} to {where}, which does not exist: write the snapshot again"
            raise InvalidIndexError(self._index_path, message)
        return self._first_rows[segment] + row if self.segments else row

    def row_ranges(self) -> Iterator[tuple[int, int, list[int], int]]:
        """Rows in pieces: number through all segments, count, the segment, number within the segment."""
        step = max(1, _STAGING_BYTES // self.copied_row_bytes)
        number = 0
        for segment in self.segments:
            for first in range(0, segment[3], step):
                count = min(step, segment[3] - first)
                yield number, count, segment, first
                number += count


class _Copier:
    """Fills tensors on a device through pinned buffers by turns, on the current stream: while one travels, the next is
    filled."""

    def __init__(self) -> None:
        self._staging: list[tuple[Tensor, torch.cuda.Event]] = []
        self._turn = 0

    def put(
        self,
        target: Tensor,  # uint8 [n], at most what a staging buffer holds if it is on a GPU
        fill: Callable[[Tensor], object],
    ) -> None:
        """Call `fill` with uint8 [n] on the host: with `target` itself if it is there."""
        if target.device.type == "cpu":
            fill(target)
            return
        if len(self._staging) < _STAGING_BUFFERS:
            buffer = torch.empty(max(_STAGING_BYTES, len(target)), dtype=torch.uint8, pin_memory=True)
            self._staging.append((buffer, torch.cuda.Event()))
        buffer, done = self._staging[self._turn % len(self._staging)]
        self._turn += 1
        done.synchronize()
        staged = buffer[: len(target)]
        fill(staged)
        target.copy_(staged, non_blocking=True)
        done.record()


def _tiers(source: _Source, hot_rows: int, hot_ids: Tensor | None) -> Tensor:
    """Which tier each stored row belongs to, uint8 [rows]."""
    tiers = torch.full((source.rows,), _DEAD, dtype=torch.uint8)
    asked = torch.empty(0, dtype=torch.int64) if hot_ids is None else hot_ids
    ascending, rank = asked.cpu().sort(stable=True)  # of equal ids the first, the most frequent, counts
    row_of_rank = torch.full((len(asked),), -1, dtype=torch.int64)
    for rows, ids in source.entries():
        tiers[rows] = _COLD
        if len(asked):
            position = torch.searchsorted(ascending, ids).clamp_(max=len(asked) - 1)
            wanted = ascending[position] == ids
            row_of_rank[rank[position[wanted]]] = rows[wanted]
    first = row_of_rank[row_of_rank >= 0][:hot_rows]
    tiers[first] = _HOT
    others = (tiers == _COLD).nonzero().squeeze(1)[: hot_rows - len(first)]
    tiers[others] = _HOT
    return tiers


def _copy(
    source: _Source,
    tiers: Tensor,  # uint8 [rows]
    device: torch.device,
    manner: Manner,
    index_on_host: bool = False,
) -> Tiered:
    hot, cold = (int((tiers == tier).sum()) for tier in (_HOT, _COLD))
    hot_columns = _Columns(0 if index_on_host else source.indexes_bytes, hot, source)
    cold_columns = _Columns(source.indexes_bytes if index_on_host else 0, cold, source)
    storage = (manner.memory or gpu.device_memory)(hot_columns.end, device)
    cold_storage, readers = host_memory(cold_columns.end if cold or index_on_host else 0, device)
    targets = {_HOT: (storage, hot_columns, hot), _COLD: (cold_storage, cold_columns, cold)}
    with gpu.aside(device):
        copier = _Copier()
        _copy_indexes(source, tiers, cold_storage if index_on_host else storage, copier)
        for tier, (target, columns, count) in targets.items():
            if count:
                _copy_rows(source, tiers == tier, target, columns, copier)
    index, *overlay = source.indexes
    segments = [hot_columns.layout, cold_columns.layout] if cold else [hot_columns.layout]
    stride = source.copied_row_bytes if source.quantised else 0
    header = [0, *index[1:], len(segments), stride, len(overlay), int(index_on_host)]
    above = [number for one in overlay for number in (aligned(index.bytes), *one[1:])]
    layout = torch.tensor([*header, *chain(*segments), *above], dtype=torch.int64)
    return Tiered(storage, cold_storage, layout, hot, cold, index_on_host, readers)


class _Columns:
    """Where a tier's rows lie in its tensor, and what a layout says of them."""

    def __init__(self, start: int, rows: int, source: _Source) -> None:
        self.start = start
        self.end = start + rows * source.copied_row_bytes
        self.layout = (start + SCALE_BYTES, start, start + 4, rows) if source.quantised else (start, -1, -1, rows)


def _copy_indexes(source: _Source, tiers: Tensor, storage: Tensor, copier: _Copier) -> None:
    """The buckets, with the locations that rows have in the copy. An entry of the index that leads to a row that is not
    copied, since the overlay has another one of its id, keeps its slot: searches end at empty ones."""
    locations = torch.full((len(tiers),), _ABSENT, dtype=torch.int64)
    for segment, tier in enumerate((_HOT, _COLD)):
        rows = (tiers == tier).nonzero().squeeze(1)
        locations[rows] = torch.arange(len(rows)) + (segment << ROW_BITS)
    above = aligned(source.indexes[0].bytes)
    pieces = chain(source.slots(), ((above + first, slots) for first, slots in source.overlay_slots()))
    for start, slots in pieces:

        def fill(out: Tensor, slots: Tensor = slots) -> None:
            moved = out.view(torch.int64).view(-1, 2)
            moved.copy_(slots)
            used = (slots[:, 1] != _EMPTY) & (slots[:, 1] != _ABSENT)
            moved[used, 1] = locations[source.row_numbers(slots[used])]

        copier.put(storage[start : start + slots.numel() * 8], fill)


def _copy_rows(source: _Source, chosen: Tensor, target: Tensor, columns: _Columns, copier: _Copier) -> None:
    """The chosen rows, bool [rows], one after another in stored order."""
    width, copied = source.row_bytes, source.copied_row_bytes
    done = 0
    for number, count, (vector, scale, offset, _), first in source.row_ranges():
        kept = chosen[number : number + count].nonzero().squeeze(1)
        if not len(kept):
            continue
        parts = [source.bytes(vector + first * width, count * width).view(count, width)]
        if source.quantised:
            scales, offsets = (source.bytes(column + 4 * first, 4 * count).view(-1, 4) for column in (scale, offset))
            parts = [scales, offsets, *parts]
        start = columns.start + done * copied
        copier.put(target[start : start + len(kept) * copied], partial(_select, parts, kept))
        done += len(kept)


def _select(
    parts: Sequence[Tensor],  # of uint8 [n, width]: of a row, what lies side by side in the copy
    kept: Tensor,  # int64 [k]
    out: Tensor,  # uint8 [k * copied]
) -> None:
    out = out.view(len(kept), -1)
    begin = 0
    for part in parts:
        place = out[:, begin : begin + part.shape[1]]
        if len(kept) == len(part):
            place.copy_(part)
        else:
            torch.index_select(part, 0, kept, out=place)
        begin += part.shape[1]
    out[:, begin:] = 0
