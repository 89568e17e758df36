"""Reading all of a snapshot: every byte is as it was written, and index, data files and manifest agree."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from embedding_store.errors import InvalidIndexError
from embedding_store.format.arrow import check_structure
from embedding_store.format.files import SegmentReader, StoredReader
from embedding_store.format.index import Ids, unhash
from embedding_store.format.manifest import Manifest
from embedding_store.native.mapping import Mapping
from embedding_store.scan.changed import deleted
from embedding_store.scan.index import hashed_entries
from embedding_store.scan.rows import CHUNK, RowFlags, row_format, scratch_array
from embedding_store.storage.base import Storage


def verify(
    storage: Storage,
    manifest: Manifest,
    mapping: Mapping,  # of the index, then the data files, then the overlay; the files of deletes it leaves out
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Check the files of a snapshot; `progress` is called with the bytes read and the bytes in all.

    Memory: some chunks; two temporary files hold 9 bytes a stored row.

    Raises:
        CorruptStoreError: of the class that fits, naming the file.
    """
    mapping.check(progress)
    form = row_format(manifest)
    for file, start in zip(manifest.data, mapping.starts[len(manifest.index.pieces) :], strict=False):
        check_structure(file, mapping.storage[start : start + file.bytes], form, storage.locate(file.path))
    where = storage.locate(manifest.own_index.path)
    flags = RowFlags(manifest.segments, storage.scratch())
    expected: Ids = scratch_array(manifest.stored_rows, np.int64, storage.scratch())
    for h, locations in hashed_entries(storage, manifest):
        flags.set(locations, where)
        expected[flags.positions(locations, where)] = unhash(h)
    first, number = 0, 0
    for file in manifest.data:
        with StoredReader(storage, file) as reader:
            for segment in file.segments:
                part = SegmentReader(reader, segment, form)
                for start in range(0, segment.rows, CHUNK):
                    stop = min(start + CHUNK, segment.rows)
                    found = part.ids(start, stop).numpy()
                    wrong = (found != expected[first + start : first + stop]) & flags.get(number, start, stop)
                    if bool(wrong.any()):
                        row = int(np.flatnonzero(wrong)[0])
                        led, name = int(expected[first + start + row]), f"row {start + row} of segment {number}"
                        message = f"leads from id {led} to {name} in {file.path}, which is id {int(found[row])}"
                        raise InvalidIndexError(where, f"{message}: write the snapshot again")
                first, number = first + segment.rows, number + 1
    for deletes in manifest.deletes or ():
        for _ in deleted(storage, deletes):  # which checks its blocks
            pass
