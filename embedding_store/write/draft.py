"""The files of a snapshot that is being written: rows, then duplicates settled, then the index or overlay."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress

import numpy as np
import pyarrow as pa
from torch import Tensor

from embedding_store.errors import DuplicateIdsError
from embedding_store.format.files import RowFormat, Rows
from embedding_store.format.index import ABSENT, EMPTY, Ids, Words, unhash
from embedding_store.format.manifest import ROW_BITS, DataFile, Manifest
from embedding_store.keys import check_same_keys
from embedding_store.scan.keys import read_keys
from embedding_store.scan.locations import Locations
from embedding_store.scan.rows import RowFlags, read_rows
from embedding_store.scan.sorter import PairFile, Pairs
from embedding_store.storage.base import Storage
from embedding_store.write.batches import BatchWriter
from embedding_store.write.content import Content, WrittenFiles, base_changes, write_content
from embedding_store.write.index import ONE, Operations, Settled, operations_of, settle
from embedding_store.write.sums import Sums

DUPLICATES = ("error", "last")


class Draft:
    """Takes rows and deletes; `finish` makes the index, or of a delta of few changes the overlay; or `settle` leaves
    that to others, where several drafts make one snapshot. Nothing refers to its files before a manifest does.

    Memory: two record batches and, while the index is built, some tens of MiB, whatever the number of rows.
    """

    def __init__(
        self,
        storage: Storage,
        form: RowFormat,
        *,
        base: Manifest | None,
        duplicates: str,
        rows_per_batch: int | None,
        prefix: str | None = None,
    ) -> None:
        """`prefix`: what the paths of its files begin with, in a folder that it shares; None: a folder of its own."""
        self._storage, self._form, self._base, self._duplicates = storage, form, base, duplicates
        self._rows_per_batch = rows_per_batch
        self._shared = prefix is not None
        self._prefix = prefix or f"data/{uuid.uuid4().hex}/"
        self.written = WrittenFiles(storage, self._prefix.rpartition("/")[0])
        self._first_segment = 0 if base is None else len(base.segments)
        self._located = None if base is None else Locations(storage, base)
        self._operations = self._new_operations()
        self._batches = self._new_batches(self._operations, first_file=0)
        self._deleted: list[tuple[Ids, int, pa.LargeStringArray]] = []  # series of text: ids, location, keys

    @property
    def rows(self) -> int:
        """Rows taken so far."""
        return self._batches.rows

    def append(self, rows: Rows) -> None:
        """Take some thousand rows. Raises HashCollisionError, or what the storage raises."""
        self._batches.append(rows)

    def delete(
        self,
        ids: Tensor,  # int64 [N]
        keys: pa.LargeStringArray | None,  # [N], series of text only
    ) -> None:
        """Take deletes. Raises HashCollisionError."""
        location, numbers = self._batches.next_location, ids.numpy().copy()
        if keys is not None:
            self._check_base_keys(numbers, keys)
            self._deleted.append((numbers, location, keys))
        self._operations.delete(numbers, location)

    def finish(self) -> Content:
        """Write what is left, settle duplicates, write the index or overlay; all is durable then, and was looked for.

        Raises:
            DuplicateIdsError, HashCollisionError; FileSizeError, MissingFileError: a file is gone or not whole.
        """
        files, settled = self.settle(base_changes(self._storage, self._base))
        scratch = self._operations.scratch
        return write_content(self._storage, self.written, files, settled, self.sums, self._base, scratch)

    def settle(self, base: tuple[Iterable[Pairs], int] = ((), 0)) -> tuple[list[DataFile], Settled]:
        """Write what is left and settle duplicates: the data files, durable but for their names, and what became of the
        ids. `base`: see write/index.py.

        Raises:
            DuplicateIdsError, HashCollisionError.
        """
        self._batches.close()
        settled = settle(self._operations, base)  # while the last files are written
        files = self._batches.finish()
        if settled.repeated.count:
            self._check_repeated(settled.repeated, files)
        if settled.lost.words:
            files, settled = self._without_lost(files, settled)
        if self._located is not None:
            self._located.close()
        return files, settled

    @property
    def sums(self) -> Sums:
        """Over the rows taken; after `settle`, those that stayed."""
        return self._batches.sums

    def discard(self) -> None:
        """Stop, and delete the files."""
        if self._located is not None:
            self._located.close()
        self._batches.abort()
        if not self._shared:
            self.written.discard()
            return
        with suppress(Exception):  # the error that led here matters more; `clean` takes what stays
            for entry in self._storage.entries(self.written.folder):
                if entry.path.startswith(self._prefix):
                    self._storage.delete(entry.path)

    def _new_operations(self) -> Operations:
        return Operations(self._storage.scratch(), first=self._first_segment << ROW_BITS)

    def _new_batches(self, operations: Operations, first_file: int) -> BatchWriter:
        def on_batch(rows: Rows, location: int) -> None:
            ids = rows.ids.numpy()
            if rows.keys is not None:
                self._check_base_keys(ids, rows.keys)
            operations.upsert(ids, location)

        return BatchWriter(
            self._storage,
            self._prefix,
            self._form,
            rows_per_batch=self._rows_per_batch,
            first_segment=self._first_segment,
            first_file=first_file,
            on_batch=on_batch,
        )

    def _check_base_keys(self, ids: Ids, keys: pa.LargeStringArray) -> None:
        """Raise HashCollisionError if the base has one of these ids under another key."""
        if self._base is None or self._located is None or not len(ids):
            return
        locations = self._located.find(ids)
        found = np.flatnonzero(locations != EMPTY)
        others = read_keys(self._storage, self._base.data, locations[found])
        check_same_keys(ids[found], keys.take(pa.array(found)), others)

    def _check_repeated(self, repeated: PairFile, files: list[DataFile]) -> None:
        """Raise HashCollisionError if ids are repeated under different keys, DuplicateIdsError unless the last wins."""
        count, shown = 0, np.empty(0, np.int64)
        for h, op in repeated:
            ids = unhash(h)
            if self._form.ids == "text":
                keys, same = self._keys_of(ids, op, files), np.flatnonzero(ids[1:] == ids[:-1])
                check_same_keys(ids[same], keys.take(pa.array(same)), keys.take(pa.array(same + 1)))
            distinct = np.unique(ids)
            count += len(distinct)
            shown = np.sort(np.append(shown, distinct))[:5]
        if self._duplicates == "error":
            names = ", ".join(map(str, shown.tolist())) + (", ..." if count > len(shown) else "")
            remedy = 'append or delete each id once, or write with duplicates="last"'
            raise DuplicateIdsError(f"{count} ids were appended more than once ({names}): {remedy}")

    def _keys_of(self, ids: Ids, op: Words, files: list[DataFile]) -> pa.LargeStringArray:
        """The keys with which these operations, [N], were asked for, [N]."""
        upsert, locations = (op & ONE).astype(bool), op >> ONE
        upserted = read_keys(self._storage, files, locations[upsert], first_segment=self._first_segment).to_pylist()
        deleted = {
            (id, location): key
            for ids, location, keys in self._deleted
            for id, key in zip(ids.tolist(), keys.to_pylist(), strict=True)
        }
        keys = np.empty(len(ids), object)
        keys[upsert] = upserted
        keys[~upsert] = [deleted[name] for name in zip(ids[~upsert].tolist(), locations[~upsert].tolist(), strict=True)]
        return pa.array(keys, pa.large_string())

    def _without_lost(self, files: list[DataFile], settled: Settled) -> tuple[list[DataFile], Settled]:
        """Write the data files anew without the rows that lost: other readers of the files must see each id once."""
        first = self._first_segment
        scratch, where = self._operations.scratch, self._storage.locate(self.written.folder)
        lost = RowFlags([s for file in files for s in file.segments], scratch, first_segment=first)
        for start in range(0, settled.lost.words, 1 << 16):
            lost.set(settled.lost.read(start, min(start + (1 << 16), settled.lost.words)), where)
        operations = self._new_operations()
        self._batches = self._new_batches(operations, first_file=self._batches.next_file)
        for rows in read_rows(self._storage, files, self._form, alive=lost.unset, first_segment=first):
            self._batches.append(rows)
        self._batches.close()
        base = PairFile(scratch)
        for pairs in self._base_part(settled.entries):
            base.append(pairs)
        settled = settle(operations, (operations_of(base), base.count))
        written = self._batches.finish()
        for file in files:
            self._storage.delete(file.path)
            self._storage.delete(file.crc_path)
        return written, settled

    def _base_part(self, entries: PairFile) -> Iterator[Pairs]:
        """The entries that lead into the base, or to no row."""
        for h, location in entries:
            old = (location < self._first_segment << ROW_BITS) | (location == ABSENT)
            yield Pairs(h[old], location[old])
