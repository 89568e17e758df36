"""Reading index files in pieces, all entries in order; and an overlay's over those of the index that it lies on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from embedding_store.errors import InvalidIndexError
from embedding_store.format.files import StoredReader
from embedding_store.format.index import (
    ABSENT,
    BUCKET_BYTES,
    EMPTY,
    HEADER_BYTES,
    SLOT,
    SLOTS,
    Header,
    Ids,
    Placement,
    hash_ids,
    unhash,
)
from embedding_store.format.manifest import IndexFile, Manifest, StoredFile
from embedding_store.format.ranges import Joined
from embedding_store.scan.sorter import Pairs, Sorter, in_step
from embedding_store.storage.base import Storage

CHUNK = 65_536  # slots read at once


def read_headers(storage: Storage, manifest: Manifest) -> list[Header]:
    """The headers of a snapshot's index and overlay, if it has one. Raises CorruptStoreError of the class that fits."""
    headers = []
    for file, entries in _files(manifest):
        with IndexReader(storage, file, entries) as index:
            headers.append(index.header)
    return headers


def hashed_entries(storage: Storage, manifest: Manifest, chunk: int = CHUNK) -> Iterator[Pairs]:
    """(hash of seed 0, location) of all ids of a snapshot, by hash, some `chunk` at a time, checksums checked.

    Raises:
        CorruptStoreError: of the class that fits; InvalidIndexError: entries out of order.
    """
    index, *overlay = (file_entries(storage, file, entries, chunk) for file, entries in _files(manifest))
    if not overlay:
        yield from index
        return
    count = 0
    for pairs in overlaid(index, *overlay):
        count += len(pairs.h)
        yield pairs
    if count != manifest.rows:
        where = storage.locate(manifest.own_index.path)
        raise InvalidIndexError(where, f"leaves {count} ids, its manifest says {manifest.rows} rows")


def overlay_entries(storage: Storage, manifest: Manifest, chunk: int = CHUNK) -> Iterator[Pairs]:
    """(hash of seed 0, location, or ABSENT) of the ids that a snapshot's overlay has an entry of, if it has one."""
    if manifest.overlay is not None:
        yield from file_entries(storage, manifest.overlay, manifest.overlay.entries, chunk)


def file_entries(storage: Storage, file: IndexFile, entries: int, chunk: int = CHUNK) -> Iterator[Pairs]:
    """As `hashed_entries`, of one file that has so many entries, as they stand there."""
    with IndexReader(storage, file, entries) as index:
        if index.header.seed == 0:
            yield from index.entries(chunk)
            return
        sorter = Sorter(storage.scratch())
        for h, location in index.entries(chunk):
            sorter.add(Pairs(hash_ids(unhash(h, index.header.seed)), location))
    yield from sorter.merged()


def overlaid(index: Iterable[Pairs], overlay: Iterable[Pairs]) -> Iterator[Pairs]:
    """(hash, location), by hash, of an index with an overlay on it, both by hash."""
    for below, above in in_step(index, overlay):
        if not len(above.h):
            yield below
            continue
        replaced = is_in(below.h, above.h)
        h, location = below.h[~replaced], below.value[~replaced]
        alive = above.value != ABSENT
        places = np.searchsorted(h, above.h[alive])
        yield Pairs(np.insert(h, places, above.h[alive]), np.insert(location, places, above.value[alive]))


def is_in(
    values: np.ndarray,  # [N]
    ascending: np.ndarray,  # [M]
) -> NDArray[np.bool_]:
    """Which values are among those that are sorted, bool [N]."""
    if not len(ascending):
        return np.zeros(len(values), bool)
    places = np.searchsorted(ascending, values)
    return ascending[np.minimum(places, len(ascending) - 1)] == values


def _files(manifest: Manifest) -> Iterator[tuple[IndexFile, int]]:
    """The files of a snapshot's indexes, and how many entries each has."""
    yield manifest.index, manifest.index_entries
    if manifest.overlay is not None:
        yield manifest.overlay, manifest.overlay.entries


class _Opened(Joined):
    """The files of an index, open."""

    def __init__(self, storage: Storage, files: Sequence[StoredFile]) -> None:
        with ExitStack() as opened:
            super().__init__([opened.enter_context(StoredReader(storage, file)) for file in files])
            self._opened = opened.pop_all()

    def __exit__(self, *error: object) -> None:
        self._opened.close()


class IndexReader:
    """One index file. Use it in a `with` block.

    Raises, when made, CorruptStoreError of the class that fits.
    """

    def __init__(self, storage: Storage, file: IndexFile, entries: int) -> None:
        """`entries`: how many its manifest says it has."""
        self._reader = _Opened(storage, file.pieces)
        size = self._reader.bytes
        try:
            data = self._reader.read(0, HEADER_BYTES).tobytes() if size >= HEADER_BYTES else b"\0" * HEADER_BYTES
            self.header = Header.decode(data, file_bytes=size, entries=entries, path=self._reader.where)
        except BaseException:
            self._reader.__exit__()
            raise

    def __enter__(self) -> IndexReader:
        return self

    def __exit__(self, *error: object) -> None:
        self._reader.__exit__()

    def entries(self, chunk: int = CHUNK) -> Iterator[Pairs]:
        """(hash of the file's own seed, location) of all entries, by hash, those of some `chunk` slots at a time.

        Raises:
            InvalidIndexError, ChecksumError: naming the file.
        """
        buckets, count, last = max(1, chunk // SLOTS), 0, -1
        placement, wrong = Placement(self.header.home_buckets), "its entries are not in their places"
        for start in range(0, self.header.total_buckets, buckets):
            pairs, slots = self._read(start, min(start + buckets, self.header.total_buckets))
            if len(pairs.h):
                in_order = int(pairs.h[0]) > last and bool((pairs.h[1:] > pairs.h[:-1]).all())
                if not in_order or not np.array_equal(placement.next(pairs.h), slots):
                    raise InvalidIndexError(self._reader.where, f"{wrong}: write the snapshot again")
                last, count = int(pairs.h[-1]), count + len(pairs.h)
                yield pairs
        if placement.header(count, self.header.seed) != self.header:
            raise InvalidIndexError(self._reader.where, f"has {count} entries, its header is {self.header}")

    def _read(self, start: int, stop: int) -> tuple[Pairs, Ids]:
        """Entries of buckets start .. stop - 1, and their slots."""
        data = self._reader.read(HEADER_BYTES + start * BUCKET_BYTES, HEADER_BYTES + stop * BUCKET_BYTES)
        slots = data.view(SLOT)
        used = np.flatnonzero(slots["location"] != EMPTY)
        entries = slots[used]
        return Pairs(hash_ids(entries["id"].copy(), self.header.seed), entries["location"].copy()), used + start * SLOTS
