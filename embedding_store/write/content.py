"""From operations that are settled to what a manifest says: the index of a whole snapshot, or a delta's overlay."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embedding_store.format.files import create_checked
from embedding_store.format.manifest import (
    ROW_BITS,
    DataFile,
    IndexFile,
    Manifest,
    Overlay,
    Statistics,
    StoredFile,
    read_manifest,
)
from embedding_store.history.versions import versions
from embedding_store.native.mapping import BLOCK
from embedding_store.scan.index import file_entries, overlaid, overlay_entries
from embedding_store.scan.locations import Locations
from embedding_store.scan.sorter import PairFile, Pairs, Spill
from embedding_store.storage.base import Storage, check_size
from embedding_store.write.index import Settled, operations_of, write_index
from embedding_store.write.overlay import Changes, changes
from embedding_store.write.sums import Sums

CHUNK = 1 << 18  # ids written at once


@dataclass(frozen=True)
class Content:
    """What a manifest says of the files."""

    data: tuple[DataFile, ...]
    """The base's files first."""
    index: IndexFile
    """Of all ids; with an overlay the base's."""
    overlay: Overlay | None
    """Of the ids that were changed since then."""
    deletes: tuple[StoredFile, ...] | None
    """The base's files first; None: the base's are not known."""
    rows: int
    """Ids."""
    statistics: Statistics
    """Means over the rows that were written, ids over all."""


class WrittenFiles:
    """The files of a snapshot that no manifest names yet, in a folder of their own."""

    def __init__(self, storage: Storage, folder: str, prefix: str = "") -> None:
        self._storage = storage
        self.folder = folder
        """Relative to the series."""
        self.prefix = prefix
        """What the index's name begins with; empty where nobody else can commit what is in the folder."""
        self.named: tuple[StoredFile, ...] = ()
        """Those that the manifest is to name."""

    def check(self) -> None:
        """Make sure that all is there still: a writer that was silent for long may have been cleaned away. Raises
        FileSizeError or MissingFileError."""
        for file in self.named:
            for path, size in ((file.path, file.bytes), (file.crc_path, 4 * -(-file.bytes // BLOCK))):
                check_size(self._storage, path, self._storage.size(path), size)

    def discard(self) -> None:
        """Delete them; not where a commit before this one has published them, whether or not its caller knows."""
        with suppress(Exception):  # the error that led here matters more; `clean` takes what stays
            if not (self.prefix and self._are_published()):
                self._storage.delete_folder(self.folder)

    def _are_published(self) -> bool:
        published = (read_manifest(self._storage, version) for version in versions(self._storage))
        return any(file.path.startswith(f"{self.folder}/") for manifest in published for file in manifest.files)


def base_changes(storage: Storage, base: Manifest | None) -> tuple[Iterable[Pairs], int]:
    """What a base's overlay has, as operations; and how many these are."""
    if base is None or base.overlay is None:
        return (), 0
    return operations_of(overlay_entries(storage, base)), base.overlay.entries


def write_content(
    storage: Storage,
    written: WrittenFiles,
    files: Sequence[DataFile],
    settled: Settled,
    sums: Sums,
    base: Manifest | None,
    scratch: Path,
) -> Content:
    """Write the index or overlay beside the data files; all is durable then, and was looked for.

    Raises:
        FileSizeError, MissingFileError: a file is gone or not whole.
    """
    if base is None:
        index = _new_index(storage, written, files, settled.entries, scratch)
        return Content(
            tuple(files), index, None, (), settled.entries.count, sums.statistics(settled.min_id, settled.max_id)
        )
    located = Locations(storage, base)
    after = changes(base, located, settled, first=len(base.segments) << ROW_BITS, scratch=scratch)
    located.close()
    deletes = () if base.deletes is None else _own_deletes(storage, written, after.deleted)
    index, overlay = _delta_index(storage, written, (*files, *deletes), after, base, scratch)
    statistics = sums.statistics(after.min_id, after.max_id)
    known = None if base.deletes is None else (*base.deletes, *deletes)
    return Content((*base.data, *files), index, overlay, known, after.rows, statistics)


def _own_deletes(storage: Storage, written: WrittenFiles, deleted: Spill) -> tuple[StoredFile, ...]:
    """The file of the ids that a delta deletes, if it deletes any."""
    if not deleted.words:
        return ()
    with create_checked(storage, f"{written.folder}/{written.prefix}deletes.ids") as new:
        for start in range(0, deleted.words, CHUNK):
            new.sink.write(deleted.read(start, min(start + CHUNK, deleted.words)).view(np.uint8).data)
            new.sink.flush()
    return (new.stored,)


def _delta_index(
    storage: Storage, written: WrittenFiles, files: Sequence[StoredFile], after: Changes, base: Manifest, scratch: Path
) -> tuple[IndexFile, Overlay | None]:
    """The base's index under an overlay, or folded with it."""
    if after.fit(base.index_entries):
        index = _new_index(storage, written, files, after.entries, scratch, "overlay.hash")
        return base.index, Overlay(**vars(index), entries=after.entries.count, index_entries=base.index_entries)
    folded = PairFile(scratch)
    for pairs in overlaid(file_entries(storage, base.index, base.index_entries), after.entries):
        folded.append(pairs)
    return _new_index(storage, written, files, folded, scratch), None


def _new_index(
    storage: Storage,
    written: WrittenFiles,
    files: Sequence[StoredFile],
    entries: PairFile,
    scratch: Path,
    name: str = "index.hash",
) -> IndexFile:
    with create_checked(storage, f"{written.folder}/{written.prefix}{name}") as new:
        write_index(new.sink, entries, scratch)
    index = IndexFile(**vars(new.stored), kind="hash")
    storage.sync(written.folder)
    written.named = (*files, index)
    written.check()
    return index
