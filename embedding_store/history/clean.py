"""Clean-up: deletes what writers that died left behind, and the data of snapshots that are gone.

A writer that was silent for long may still commit. So what was found in a listing is looked for once more right before
it is deleted, and the writer looks for its files once more after its commit: of the two at least one sees the other.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta

from embedding_store.errors import InvalidArgumentError, MissingFileError
from embedding_store.format.manifest import MANIFESTS, Manifest, read_manifest
from embedding_store.history import state
from embedding_store.history.tombstones import TOMBSTONES, read_tombstone
from embedding_store.history.versions import versions
from embedding_store.storage.base import Entry, Storage

CLEAN_GRACE = timedelta(hours=1)
"""A writer that is alive leaves a file at least this often (FILE_SECONDS in write/batches.py), and a reader that opened
a snapshot before it was expired has so long to load it."""


def clean(storage: Storage, grace: timedelta = CLEAN_GRACE) -> list[str]:
    """Delete what is not needed from the storage of one series; see Series.clean."""
    if grace < CLEAN_GRACE:
        raise InvalidArgumentError(f"grace is {grace}; use at least {CLEAN_GRACE}: a writer may be alive")
    before = time.time() - grace.total_seconds()
    # The order matters. Files first: what is published from here on is named by the manifests read next. Tombstones
    # last: a manifest that is gone by then has had its tombstone before.
    entries = storage.entries()
    needed = _Needed(storage)
    needed.look_for_manifests()
    needed.look_for_tombstones({entry.path for entry in entries if entry.modified < before}, before)
    deleted = []
    for folder in _quiet((entry for entry in entries if entry.path not in needed.paths), before):
        deleted += _clean_folder(storage, folder, needed, before)
    invalid = {MANIFESTS.path(version) for version in set(MANIFESTS.numbers(storage)) - set(versions(storage))}
    for path, modified in entries:
        if modified < before and (path in invalid or path.endswith(".tmp")):
            storage.delete(path)
            deleted.append(path)
    return sorted({*deleted, *state.prune(storage), *storage.delete_empty_folders(before)})


class _Needed:
    """Paths of data that a manifest names, or a young tombstone. They only become more."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._seen: set[int] = set()
        self.paths: set[str] = set()
        """Relative to the series."""

    def look_for_manifests(self) -> None:
        """Add what was published since the last look."""
        for version in set(versions(self._storage)) - self._seen:
            with suppress(MissingFileError):  # gone since it was listed: the tombstone names the same
                self._add(read_manifest(self._storage, version))
            self._seen.add(version)

    def look_for_tombstones(self, old: set[str], before: float) -> None:
        """Add what went since `before`; files in `old` were put earlier."""
        for version in TOMBSTONES.numbers(self._storage):
            if TOMBSTONES.path(version) not in old:
                tombstone = read_tombstone(self._storage, version)
                if tombstone.expired >= before * 1000:
                    self._add(tombstone.manifest)

    def _add(self, manifest: Manifest) -> None:
        self.paths |= {path for file in manifest.files for path in (file.path, file.crc_path)}


def _quiet(entries: Iterable[Entry], before: float) -> list[str]:
    """Folders of data/ in which nothing was written since `before`. A stray file in data/ itself is not ours."""
    changed: dict[str, float] = {}
    for entry in entries:
        parts = entry.path.split("/")
        if parts[0] == "data" and len(parts) > 2:
            folder = "/".join(parts[:2])
            changed[folder] = max(entry.modified, changed.get(folder, entry.modified))
    return [folder for folder, at in changed.items() if at < before]


def _clean_folder(storage: Storage, folder: str, needed: _Needed, before: float) -> list[str]:
    """Delete what is not needed of a folder, if it is quiet still; returns the paths."""
    needed.look_for_manifests()
    entries = storage.entries(folder)
    if not _quiet(entries, before):
        return []
    unneeded = {entry.path for entry in entries} - needed.paths
    if len(unneeded) == len(entries):
        storage.delete_folder(folder)
        return [folder]
    for path in unneeded:
        storage.delete(path)
    return list(unneeded)
