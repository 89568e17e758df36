"""Reading an index file in pieces: all its entries in order, or where some ids are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from embedding_store.errors import InvalidIndexError
from embedding_store.format.files import StoredReader
from embedding_store.format.index import (
    BUCKET_BYTES,
    EMPTY,
    HEADER_BYTES,
    SLOT,
    SLOTS,
    Header,
    Ids,
    Placement,
    Words,
    hash_ids,
    home,
    unhash,
)
from embedding_store.format.manifest import IndexFile, Manifest
from embedding_store.scan.sorter import Pairs, Sorter
from embedding_store.storage.base import Storage

CHUNK = 65_536  # slots read at once
_GAP = 1024  # buckets: ids closer together than this block are read together


def hashed_entries(storage: Storage, manifest: Manifest, chunk: int = CHUNK) -> Iterator[Pairs]:
    """(hash of seed 0, location) of all ids of a snapshot, by hash, some `chunk` at a time, checksums checked.

    Raises:
        CorruptStoreError: of the class that fits; InvalidIndexError: entries out of order.
    """
    with IndexReader(storage, manifest.index, manifest.rows) as index:
        if index.header.seed == 0:
            yield from index.entries(chunk)
            return
        sorter = Sorter(storage.scratch())
        for h, location in index.entries(chunk):
            sorter.add(Pairs(hash_ids(unhash(h, index.header.seed)), location))
    yield from sorter.merged()


class IndexReader:
    """One index file. Use it in a `with` block.

    Raises, when made, CorruptStoreError of the class that fits.
    """

    def __init__(self, storage: Storage, file: IndexFile, entries: int) -> None:
        """`entries`: how many its manifest says it has."""
        self._reader = StoredReader(storage, file)
        try:
            data = self._reader.read(0, HEADER_BYTES).tobytes() if file.bytes >= HEADER_BYTES else b"\0" * HEADER_BYTES
            self.header = Header.decode(data, file_bytes=file.bytes, entries=entries, path=self._reader.where)
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

    def find(
        self,
        ids: Ids,  # [N]
    ) -> Words:
        """Locations of these ids, uint64 [N], EMPTY where the index has none. Reads the parts of the file they are in.

        Raises:
            ChecksumError: the file's bytes have changed.
        """
        found = np.full(len(ids), EMPTY, np.uint64)
        h = hash_ids(ids, self.header.seed)
        order = np.argsort(h)
        h = h[order]
        first = home(h, self.header.home_buckets)
        cuts = np.flatnonzero((first[1:] - first[:-1] > _GAP) | (np.arange(1, len(first)) % CHUNK == 0)) + 1
        for start, stop in zip([0, *cuts.tolist()], [*cuts.tolist(), len(h)], strict=True):
            if stop > start:
                end = min(int(first[stop - 1]) + max(1, self.header.max_probe), self.header.total_buckets)
                entries, _ = self._read(int(first[start]), end)
                position = np.searchsorted(entries.h, h[start:stop])
                hit = np.append(entries.h, 0)[position] == h[start:stop]
                hit &= position < len(entries.h)
                found[order[start:stop][hit]] = entries.value[position[hit]]
        return found

    def _read(self, start: int, stop: int) -> tuple[Pairs, Ids]:
        """Entries of buckets start .. stop - 1, and their slots."""
        data = self._reader.read(HEADER_BYTES + start * BUCKET_BYTES, HEADER_BYTES + stop * BUCKET_BYTES)
        slots = data.view(SLOT)
        used = np.flatnonzero(slots["location"] != EMPTY)
        entries = slots[used]
        return Pairs(hash_ids(entries["id"].copy(), self.header.seed), entries["location"].copy()), used + start * SLOTS
