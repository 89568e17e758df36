"""The history of one representation: its snapshots, the tags that point to them, and the writer of the next one."""

from __future__ import annotations

import time
from bisect import bisect_right
from datetime import datetime, timedelta

from embedding_store import documents, times
from embedding_store.dtypes import DTYPES
from embedding_store.errors import FileFormatError, InvalidArgumentError, NewerFormatError, VersionNotFoundError
from embedding_store.manifest import Manifest, data_folder
from embedding_store.snapshot import Snapshot, read_manifest, versions
from embedding_store.storage import LocalStorage
from embedding_store.tags import Tags
from embedding_store.writer import SnapshotWriter

DESCRIPTION = "series.json"
CLEAN_GRACE = timedelta(hours=1)
"""A writer that is alive leaves a file at least this often, while it is given rows (FLUSH_SECONDS in writer.py)."""


class Series:
    """One series, got from `EmbeddingStore.series` or `.create`."""

    def __init__(self, storage: LocalStorage, name: str) -> None:
        path = storage.locate(DESCRIPTION)
        fields = documents.decode(storage.read(DESCRIPTION), "series", path)
        self.name = fields.text("name")
        """Name of the series."""
        self.dim = fields.integer("dim", least=1)
        """D."""
        self.dtype = fields.text("dtype")
        """How vectors are stored; lookups give float32."""
        self.created = fields.integer("created")
        """When it was created, ms since the epoch."""
        if self.name != name:
            raise FileFormatError(path, f"name is {self.name!r}, its folder is {name!r}: a series cannot be renamed")
        if self.dtype not in DTYPES:
            raise NewerFormatError(path, f"dtype is {self.dtype!r}, this package knows {', '.join(DTYPES)}: upgrade")
        self._storage = storage
        self._tags = Tags(storage)
        self._manifests: dict[int, Manifest] = {}  # they never change

    def versions(self) -> list[int]:
        """All versions, ascending."""
        return versions(self._storage)

    def history(self) -> list[Snapshot]:
        """All snapshots, oldest first."""
        return [self._snapshot(version) for version in self.versions()]

    def latest(self) -> Snapshot:
        """The newest snapshot. Raises VersionNotFoundError if there is none yet."""
        found = self.versions()
        if not found:
            raise VersionNotFoundError(f"series {self.name!r} has no snapshot yet: write one")
        return self._snapshot(found[-1])

    def version(self, version: int) -> Snapshot:
        """The snapshot of this version. Raises VersionNotFoundError naming those that exist."""
        found = self.versions()
        if version not in found:
            raise VersionNotFoundError(f"series {self.name!r} has no version {version!r}; versions: {_spans(found)}")
        return self._snapshot(version)

    def as_of(self, timestamp: int | datetime) -> Snapshot:
        """The newest snapshot whose `as_of` is not later than `timestamp` (ms since the epoch, or an aware datetime).

        Raises:
            VersionNotFoundError: there is none; the message names the first one's time.
            InvalidTimeError: a naive datetime or another type.
        """
        wanted = times.to_milliseconds(timestamp, "timestamp")
        found = self.versions()
        position = bisect_right(found, wanted, key=lambda version: self._manifest(version).as_of)
        if position == 0:
            first = f"the first is as of {self._manifest(found[0]).as_of}" if found else "it has none yet"
            raise VersionNotFoundError(f"series {self.name!r} has no snapshot as of {wanted} or earlier; {first}")
        return self._snapshot(found[position - 1])

    def tagged(self, tag: str) -> Snapshot:
        """The snapshot a tag points to. Raises TagNotFoundError naming the tags that exist."""
        return self.version(self._tags.version(tag))

    def tags(self) -> dict[str, int]:
        """Tag -> version."""
        return self._tags.all()

    def tag(self, tag: str, version: int) -> None:
        """Point a tag, new or existing, to a version, at once for every reader.

        Raises:
            VersionNotFoundError: naming the versions that exist.
            InvalidArgumentError: the tag's name is not allowed.
        """
        self._tags.move(tag, self.version(version).version)

    def untag(self, tag: str) -> None:
        """Remove a tag; the snapshot stays. Raises TagNotFoundError naming the tags that exist."""
        self._tags.remove(tag)

    def rollback(self, tag: str, version: int | None = None) -> Snapshot:
        """Move a tag to an earlier version: to `version`, or to the one it named last before. Returns that snapshot.

        Raises:
            TagNotFoundError: no such tag, or it has named no earlier version.
            VersionNotFoundError: naming the versions that exist.
            InvalidArgumentError: `version` is not earlier than the present one.
        """
        if version is not None:
            self.version(version)
        return self.version(self._tags.roll_back(tag, version))

    def write(
        self, *, as_of: int | datetime, space: str, duplicates: str = "error", rows_per_file: int | None = None
    ) -> SnapshotWriter:
        """A writer of the next snapshot, for a `with` block; nothing is visible until the block ends cleanly.

        Args:
            as_of: event time up to which the vectors know the world: ms since the epoch or an aware datetime. Not
                earlier than the newest snapshot's; an equal one corrects it, and wins.
            space: the vector space, say "ctr-1". Vectors of two spaces must not be compared or averaged.
            duplicates: "error", or "last": of an id appended several times the last vector is kept.
            rows_per_file: rows of a data file and of the buffer in memory; None: 64 MiB worth of them.

        Raises:
            AsOfDecreasedError: naming both times; checked again when the block ends.
            InvalidTimeError, InvalidArgumentError: naming the argument and its value.
        """
        return SnapshotWriter(
            self._storage,
            series=self.name,
            dim=self.dim,
            dtype=DTYPES[self.dtype],
            as_of=times.to_milliseconds(as_of, "as_of"),
            space=space,
            duplicates=duplicates,
            rows_per_file=rows_per_file,
        )

    def clean(self, grace: timedelta = CLEAN_GRACE) -> list[str]:
        """Delete what writers that died left behind; returns the paths, relative to the series.

        A folder of data files goes if no manifest names it and nothing was written to it for `grace`.

        Raises:
            InvalidArgumentError: `grace` is less than an hour, the time for which a live writer may be silent.
            CorruptStoreError: a manifest cannot be read, so what it names is not known; nothing is deleted.
        """
        if grace < CLEAN_GRACE:
            raise InvalidArgumentError(f"grace is {grace}; use at least {CLEAN_GRACE}: a writer may be alive")
        before = time.time() - grace.total_seconds()
        entries = self._storage.entries()  # before the manifests are read: what is published in between is kept
        named = {data_folder(file.path) for s in self.history() for file in s.manifest.files}
        changed: dict[str, float] = {}
        for entry in entries:
            if entry.path.startswith("data/"):
                folder = data_folder(entry.path)
                changed[folder] = max(entry.modified, changed.get(folder, entry.modified))
        folders = [folder for folder, at in changed.items() if at < before and folder not in named]
        unfinished = [entry.path for entry in entries if entry.path.endswith(".tmp") and entry.modified < before]
        for folder in folders:
            self._storage.delete_folder(folder)
        for path in unfinished:
            self._storage.delete(path)
        return sorted(folders + unfinished)

    def _snapshot(self, version: int) -> Snapshot:
        return Snapshot(self._storage, self._manifest(version))

    def _manifest(self, version: int) -> Manifest:
        if version not in self._manifests:
            self._manifests[version] = read_manifest(self._storage, version)
        return self._manifests[version]

    def __repr__(self) -> str:
        return f"Series({self.name!r}, dim={self.dim}, dtype={self.dtype!r})"


def _spans(found: list[int]) -> str:
    """`1-4, 6`: versions for a message."""
    if not found:
        return "none yet"
    starts = [v for i, v in enumerate(found) if i == 0 or found[i - 1] != v - 1]
    stops = [v for i, v in enumerate(found) if i == len(found) - 1 or found[i + 1] != v + 1]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, stops, strict=True))
