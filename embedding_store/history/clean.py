"""Clean-up: deletes what writers that died left behind, and the data of snapshots that were expired."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta

from embedding_store.errors import InvalidArgumentError, MissingFileError
from embedding_store.format.manifest import Manifest, data_folder, read_manifest, versions
from embedding_store.history.tags import Tags
from embedding_store.history.tombstones import read_tombstone, tombstone_version, tombstones
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
    needed = _needed(storage, entries, before)
    in_use = {data_folder(path) for path in needed}
    changed: dict[str, float] = {}
    for folder, entry in _data(entries):
        changed[folder] = max(entry.modified, changed.get(folder, entry.modified))
    quiet = {folder for folder, at in changed.items() if at < before}
    folders = quiet - in_use
    files = {entry.path for folder, entry in _data(entries) if folder in quiet & in_use and entry.path not in needed}
    files |= {entry.path for entry in entries if entry.path.endswith(".tmp") and entry.modified < before}
    for folder in folders:
        storage.delete_folder(folder)
    for path in files:
        storage.delete(path)
    return sorted([*folders, *files, *Tags(storage).prune()])


def _data(entries: list[Entry]) -> Iterator[tuple[str, Entry]]:
    """The files in folders of data/, each with its folder. A stray file in data/ itself is not ours to delete."""
    for entry in entries:
        parts = entry.path.split("/")
        if parts[0] == "data" and len(parts) > 2:
            yield "/".join(parts[:2]), entry


def _needed(storage: Storage, entries: list[Entry], before: float) -> set[str]:
    """Paths that a manifest names, or a tombstone since `before`."""
    needed: set[str] = set()
    for version in versions(storage):
        try:
            needed |= _paths(read_manifest(storage, version))
        except MissingFileError:  # expired since it was listed: the tombstone names the same
            continue
    old = {tombstone_version(entry.path) for entry in entries if entry.modified < before}
    for version in set(tombstones(storage)) - old:
        tombstone = read_tombstone(storage, version)
        if tombstone.expired >= before * 1000:
            needed |= _paths(tombstone.manifest)
    return needed


def _paths(manifest: Manifest) -> set[str]:
    return {path for file in manifest.files for path in (file.path, file.crc_path)}
