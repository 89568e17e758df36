"""What is left of an expired snapshot: its manifest's fields, and when it went.

A tombstone is put before the manifest is deleted, so that the data it names stay until readers and deltas that had
already opened the snapshot are done (`clean` waits an hour), and so that asking for the version says what became of it.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import NamedTuple

from embedding_store import times
from embedding_store.errors import MissingFileError
from embedding_store.format import documents
from embedding_store.format.manifest import Manifest
from embedding_store.storage.base import Storage

_NAME = re.compile(r"(\d{8,})\.json")


class Tombstone(NamedTuple):
    """An expired snapshot."""

    manifest: Manifest
    """As it was."""
    expired: int
    """When it was expired, ms since the epoch."""


def tombstone_path(version: int) -> str:
    """Where the tombstone of a version lies, relative to the series."""
    return f"expired/{version:08d}.json"


def tombstone_version(path: str) -> int | None:
    """The version whose tombstone lies at `path`; None for any other file."""
    match = _NAME.fullmatch(path.removeprefix("expired/"))
    return int(match[1]) if match and path.startswith("expired/") else None


def tombstones(storage: Storage) -> list[int]:
    """Versions that have a tombstone, ascending. One whose manifest still exists is about to go."""
    found = (tombstone_version(f"expired/{name}") for name in storage.names("expired"))
    return sorted(version for version in found if version is not None)


def read_tombstone(storage: Storage, version: int) -> Tombstone:
    """The tombstone of a version. Raises MissingFileError, or what Manifest.decode raises."""
    path = tombstone_path(version)
    data, where = storage.read(path), storage.locate(path)
    expired = documents.decode(data, "tombstone", where).integer("expired")
    return Tombstone(Manifest.decode(data, where, "tombstone"), expired)


def expired_at(storage: Storage, version: int) -> int | None:
    """When a version was expired, ms since the epoch; None if it was not."""
    with suppress(MissingFileError):
        return read_tombstone(storage, version).expired
    return None


def put_tombstone(storage: Storage, manifest: Manifest) -> None:
    """Say that a version is expired from now on. Raises FileExistsError if that has been said."""
    document = documents.encode("tombstone", {**manifest.fields(), "expired": times.now()})
    storage.put_new(tombstone_path(manifest.version), document)
