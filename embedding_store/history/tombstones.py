"""What is left of a snapshot that is gone: its manifest's fields, when it went, and why.

A tombstone is put before the manifest is deleted, and stays for good: the data it names stay until readers and deltas
that had already opened the snapshot are done (`clean` waits an hour), asking for the version says what became of it,
and its number is never used again. A snapshot is gone when its manifest is, not before.
"""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

from embedding_store import times
from embedding_store.errors import FileFormatError, MissingFileError, VersionExpiredError, VersionRetractedError
from embedding_store.format.manifest import Manifest, manifest_path, read_manifest
from embedding_store.format.numbered import NumberedFiles
from embedding_store.storage.base import Storage

TOMBSTONES = NumberedFiles("expired", "tombstone")


class Tombstone(NamedTuple):
    """A snapshot that was expired or retracted."""

    manifest: Manifest
    """As it was."""
    expired: int
    """When it went, ms since the epoch."""
    retracted: bool
    """It should never have gone out; False: it was old."""

    def error(self, details: str = "") -> VersionExpiredError:
        """What to raise when somebody asks for the snapshot."""
        what = f"version {self.manifest.version} of series {self.manifest.series!r} was"
        when = f"at {times.to_text(self.expired)}{details}"
        if self.retracted:
            return VersionRetractedError(f"{what} retracted {when}")
        return VersionExpiredError(f"{what} expired {when}")


def read_tombstone(storage: Storage, version: int) -> Tombstone:
    """The tombstone of a version. Raises MissingFileError, or what Manifest.from_fields raises."""
    fields = TOMBSTONES.read(storage, version)
    return Tombstone(Manifest.from_fields(fields), fields.integer("expired"), fields.boolean("retracted", absent=False))


def recorded(storage: Storage, version: int) -> Manifest:
    """The manifest of a version, whether it exists still or is gone. Raises MissingFileError, or CorruptStoreError of
    the class that fits."""
    try:
        manifest = read_tombstone(storage, version).manifest
    except MissingFileError:
        return read_manifest(storage, version)
    if manifest.version != version:
        where = storage.locate(TOMBSTONES.path(version))
        raise FileFormatError(where, f"version is {manifest.version}, its name says {version}")
    return manifest


def exists(storage: Storage, version: int) -> bool:
    """Whether a version exists, of which there are a manifest and a tombstone.

    They are of one snapshot while it is being buried. If they are not, a writer that stalled has put a manifest under
    the number of a snapshot that is gone: it does not count, whether the writer lives to take it back or not.
    """
    with suppress(MissingFileError):
        return same(read_manifest(storage, version), read_tombstone(storage, version).manifest)
    return False


def same(one: Manifest, other: Manifest) -> bool:
    """Whether two manifests are of the same snapshot: each has an index, or an overlay, of its own."""
    return one.own_index.path == other.own_index.path


def gone(storage: Storage, version: int) -> Tombstone | None:
    """The tombstone of a version that is gone; None if it exists or never did."""
    with suppress(MissingFileError):
        tombstone = read_tombstone(storage, version)
        return None if exists(storage, version) else tombstone
    return None


def bury(storage: Storage, manifest: Manifest, *, retracted: bool = False) -> None:
    """Make a snapshot gone. May be done twice, by several at once, and again where a run died half-way."""
    with suppress(FileExistsError):
        TOMBSTONES.put(storage, manifest.version, {**manifest.fields(), "expired": times.now(), "retracted": retracted})
    storage.delete(manifest_path(manifest.version))
