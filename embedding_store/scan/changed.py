"""Which ids may differ between two snapshots, found without reading either: what their histories have written since
they parted.

A delta lists its base's data files first, then those of the rows it upserts, and likewise files of the ids it deletes.
So of two snapshots that rest on the same files, whatever was folded into their indexes since, all that differs is in
the files that only one of them lists. A compaction writes all rows anew and says which version they are of: a snapshot
behind it differs from one before it by what it has written since, and by what that version differs from the other one.
Every id that either side has written is told, also one that came back to where it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from typing import TypeVar

import numpy as np

from embedding_store.errors import MissingFileError
from embedding_store.format.files import SegmentReader, StoredReader
from embedding_store.format.index import Ids, Words, hash_ids, unhash
from embedding_store.format.manifest import DataFile, Manifest, StoredFile
from embedding_store.history.tombstones import recorded
from embedding_store.scan.index import overlay_entries
from embedding_store.scan.rows import row_format
from embedding_store.scan.sorter import Pairs, Sorter
from embedding_store.storage.base import Storage

CHUNK = 65_536  # ids read at once

File = TypeVar("File", bound=StoredFile)


def changed_ids(storage: Storage, old: Manifest, new: Manifest) -> Iterator[Ids] | None:
    """Distinct ids, by hash, some at a time: all whose location or vector differs, and some that came back to what they
    were. None: only reading both snapshots can tell. Memory: some chunks.

    Raises:
        CorruptStoreError: of the class that fits, naming the file.
    """
    try:
        files = _written_apart(storage, old, new)
        if files is not None:
            return _distinct(storage, (hash_ids(ids) for file in files for ids in _ids(storage, new, file)))
    except MissingFileError:  # a version in between has expired, and its files are gone
        pass
    if old.index != new.index:
        return None
    overlays = (overlay_entries(storage, manifest) for manifest in (old, new))  # where deletes were left unsaid
    return _distinct(storage, (pairs.h for overlay in overlays for pairs in overlay))


def shared(ours: Sequence[File], theirs: Sequence[File]) -> int:
    """How many files, the first ones, are the same."""
    return sum(1 for _ in takewhile(lambda files: files[0] == files[1], zip(ours, theirs, strict=False)))


def deleted(storage: Storage, file: StoredFile) -> Iterator[Ids]:
    """The ids in a file of deletes. Raises CorruptStoreError of the class that fits."""
    with StoredReader(storage, file) as reader:
        for start in range(0, file.bytes, 8 * CHUNK):
            yield reader.read(start, min(start + 8 * CHUNK, file.bytes)).view(np.int64)


def _written_apart(storage: Storage, old: Manifest, new: Manifest) -> list[StoredFile] | None:
    """Files of all that either snapshot's history has written since they parted; None if that is not known."""
    files = list[StoredFile]()
    while not (old.data and new.data and old.data[0] == new.data[0]):
        # Of a compaction that both rest on, neither side's first is later than its own: the later one is undone first.
        if _folded_at(old) > _folded_at(new):
            old, new = new, old
        if new.folded is None or new.deletes is None:
            return None
        files += [*new.data[new.folded.files :], *new.deletes]
        new = recorded(storage, new.folded.version)
    if old.deletes is None or new.deletes is None:
        return None
    data, deletes = shared(old.data, new.data), shared(old.deletes, new.deletes)
    return [*files, *old.data[data:], *new.data[data:], *old.deletes[deletes:], *new.deletes[deletes:]]


def _folded_at(manifest: Manifest) -> int:
    return 0 if manifest.folded is None else manifest.folded.version


def _ids(storage: Storage, manifest: Manifest, file: StoredFile) -> Iterator[Ids]:
    """The ids that a file upserts, of which only their columns are read, or deletes. `manifest`: of the same form."""
    if not isinstance(file, DataFile):
        yield from deleted(storage, file)
        return
    with StoredReader(storage, file) as reader:
        for segment in file.segments:
            rows = SegmentReader(reader, segment, row_format(manifest))
            for start in range(0, segment.rows, CHUNK):
                yield rows.ids(start, min(start + CHUNK, segment.rows)).numpy()


def _distinct(storage: Storage, hashes: Iterable[Words]) -> Iterator[Ids]:
    """All is read before this returns."""
    sorter = Sorter(storage.scratch())
    for h in hashes:
        sorter.add(Pairs(h, np.zeros(len(h), np.uint64)))
    return (unhash(np.unique(h)) for h, _ in sorter.merged())
