"""Stored rows, front to back: those that are alive, in bounded memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from embedding_store.dtypes import DTYPES
from embedding_store.errors import InvalidIndexError
from embedding_store.format.files import RowFormat, Rows, SegmentReader, StoredReader
from embedding_store.format.index import Ids, Words
from embedding_store.format.manifest import ROW_BITS, DataFile, Manifest, Segment
from embedding_store.scan.index import hashed_entries
from embedding_store.storage.base import Storage

CHUNK = 65_536  # rows read at once

Alive = Callable[[int, int, int], NDArray[np.bool_]]
"""Of a segment (by number) and its rows start .. stop - 1: which of them are alive, bool [stop - start]."""


def row_format(manifest: Manifest) -> RowFormat:
    """What the rows of a snapshot look like."""
    return RowFormat(dim=manifest.dim, dtype=DTYPES[manifest.dtype], ids=manifest.ids)


def segments_and_rows(
    locations: Words,  # [N]
) -> tuple[Ids, Ids]:
    """Segment numbers and row numbers of locations, int64 [N] each."""
    row_mask = np.uint64((1 << ROW_BITS) - 1)
    return (locations >> np.uint64(ROW_BITS)).view(np.int64), (locations & row_mask).view(np.int64)


class RowNumbers:
    """Numbers all rows of some segments, one segment after the other."""

    def __init__(self, segments: Sequence[Segment], *, first_segment: int = 0) -> None:
        self._sizes = np.array([segment.rows for segment in segments], np.int64)
        self._first = first_segment
        self.starts: Ids = np.append(0, self._sizes.cumsum())
        """The number of each segment's first row, and behind the last segment that of all rows."""

    def positions(
        self,
        locations: Words,  # [N]
        where: str,
    ) -> Ids:
        """Row numbers that run through all segments, int64 [N]. Raises InvalidIndexError naming the index, `where`."""
        segments, rows = segments_and_rows(locations)
        segments -= self._first
        outside = (segments < 0) | (segments >= len(self._sizes))
        if not bool(outside.any()):
            outside = rows >= self._sizes[segments]
        if bool(outside.any()):
            location = int(locations[outside][0])
            place = f"row {location & ((1 << ROW_BITS) - 1)} of segment {location >> ROW_BITS}"
            raise InvalidIndexError(where, f"points to {place}, which does not exist: write the snapshot again")
        return self.starts[segments] + rows


class RowFlags(RowNumbers):
    """A flag for every stored row, all unset at first; in a temporary file, so that memory need not hold them."""

    def __init__(self, segments: Sequence[Segment], scratch: Path, *, first_segment: int = 0) -> None:
        super().__init__(segments, first_segment=first_segment)
        self._flags = scratch_array(int(self.starts[-1]), np.bool_, scratch)

    def set(
        self,
        locations: Words,  # [N]
        where: str,
    ) -> None:
        """Set the flags of these rows. Raises InvalidIndexError if one does not exist or was set before."""
        positions = self.positions(locations, where)
        again = self._flags[positions]
        self._flags[positions] = True
        if bool(again.any()) or len(np.unique(positions)) < len(positions):
            raise InvalidIndexError(where, "points to a row twice: write the snapshot again")

    def get(self, segment: int, start: int, stop: int) -> NDArray[np.bool_]:
        """Flags of rows start .. stop - 1 of a segment: an `Alive`."""
        first = int(self.starts[segment - self._first])
        return np.array(self._flags[first + start : first + stop])

    def unset(self, segment: int, start: int, stop: int) -> NDArray[np.bool_]:
        """The opposite of `get`."""
        return ~self.get(segment, start, stop)


def live_rows(storage: Storage, manifest: Manifest) -> Alive | None:
    """Which rows of a snapshot an index entry leads to; None: all. Raises CorruptStoreError of the class that fits."""
    if manifest.rows == manifest.stored_rows:
        return None
    flags = RowFlags(manifest.segments, storage.scratch())
    for _, locations in hashed_entries(storage, manifest):
        flags.set(locations, storage.locate(manifest.own_index.path))
    return flags.get


def read_rows(
    storage: Storage,
    files: Sequence[DataFile],
    form: RowFormat,
    *,
    alive: Alive | None,
    chunk: int = CHUNK,
    first_segment: int = 0,
    part: int = 0,
    of: int = 1,
) -> Iterator[Rows]:
    """All rows that are alive (None: all rows), at most `chunk` at a time, in stored order; checksums are checked. Of
    these chunks every `of`-th, from number `part` on.

    Raises:
        CorruptStoreError: of the class that fits, naming the file.
    """
    number, chunks = first_segment, count()
    for file in files:
        with StoredReader(storage, file) as reader:
            for segment in file.segments:
                stored = SegmentReader(reader, segment, form)
                for start in range(0, segment.rows, chunk):
                    stop = min(start + chunk, segment.rows)
                    if next(chunks) % of != part:
                        continue
                    mask = None if alive is None else alive(number, start, stop)
                    if mask is None or bool(mask.all()):
                        yield stored.rows(start, stop)
                    elif bool(mask.any()):
                        yield stored.rows(start, stop).select(torch.from_numpy(mask))
                number += 1


def scratch_array(size: int, kind: type[np.generic], scratch: Path) -> NDArray:
    """Zeros, [size], in a temporary file that ends with the array."""
    if size == 0:
        return np.zeros(0, kind)
    with tempfile.TemporaryFile(dir=scratch) as file:
        return np.memmap(file, kind, "w+", shape=(size,))
