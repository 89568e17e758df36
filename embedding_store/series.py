"""The history of one representation: its snapshots, the tags that point to them, and the writer of the next one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta

import torch
from torch import Tensor

from embedding_store import times
from embedding_store.dtypes import DTYPES
from embedding_store.errors import (
    FileFormatError,
    InvalidArgumentError,
    MissingFileError,
    NewerFormatError,
    SchemaChangedError,
    TagMovedError,
    VersionExpiredError,
    VersionNotFoundError,
)
from embedding_store.format import documents
from embedding_store.format.manifest import ID_KINDS, Manifest, read_manifest, versions
from embedding_store.history import clean as cleaning
from embedding_store.history import expire as expiry
from embedding_store.history import schemas
from embedding_store.history.clean import CLEAN_GRACE
from embedding_store.history.tags import ANY, Move, Tags
from embedding_store.history.tombstones import Tombstone, expired_at, read_tombstone, tombstones
from embedding_store.read.point_in_time import OpenTables, PointInTime
from embedding_store.read.snapshot import Snapshot
from embedding_store.scan import diff as comparison
from embedding_store.scan.diff import Diff
from embedding_store.storage.base import Storage
from embedding_store.write import compact
from embedding_store.write.writer import SnapshotWriter

DESCRIPTION = "series.json"


class Series:
    """One series, got from `EmbeddingStore.series` or `.create`."""

    def __init__(self, storage: Storage, name: str) -> None:
        path = storage.locate(DESCRIPTION)
        fields = documents.decode(storage.read(DESCRIPTION), "series", path)
        self.name = fields.text("name")
        """Name of the series."""
        self.ids = fields.text("ids")
        """What its entities are known by: "int64", or "text" for strings and UUIDs."""
        self.created = fields.integer("created")
        """When it was created, ms since the epoch."""
        if self.name != name:
            raise FileFormatError(path, f"name is {self.name!r}, its folder is {name!r}: a series cannot be renamed")
        if self.ids not in ID_KINDS:
            raise NewerFormatError(path, f"ids is {self.ids!r}, this package knows {', '.join(ID_KINDS)}: upgrade")
        self._storage = storage
        newest = schemas.newest_number(storage)
        first = schemas.from_fields(1, fields, path)
        self._schema = first if newest == 1 else schemas.read(storage, newest)
        self._tags = Tags(storage)
        self._manifests: dict[int, Manifest] = {}  # they never change
        self.open_tables = OpenTables()  # of lookup_as_of

    @property
    def schema(self) -> int:
        """Number of the newest schema, when this handle was made: 1 as created, one more with each `evolve`."""
        return self._schema.number

    @property
    def dim(self) -> int:
        """D of the newest schema; a snapshot has its own."""
        return self._schema.dim

    @property
    def dtype(self) -> str:
        """How the newest schema stores vectors; a snapshot has its own. Lookups give float32 unless told otherwise."""
        return self._schema.dtype

    def evolve(self, *, dim: int | None = None, dtype: str | None = None) -> Series:
        """The series under a new schema: snapshots written from now on have another dimension or dtype, earlier ones
        keep theirs. Handles and writers made before can still read, but write no more.

        Raises:
            InvalidArgumentError: naming the argument and its value, or saying that nothing would change.
            SchemaChangedError: the series has another schema by now than this handle.
        """
        wanted = schemas.checked(
            self.schema + 1, self.dim if dim is None else dim, self.dtype if dtype is None else dtype
        )
        if (wanted.dim, wanted.dtype) == (self.dim, self.dtype):
            raise InvalidArgumentError(f"dim is {self.dim} and dtype {self.dtype!r} already: nothing to evolve")
        self._check_schema()
        try:
            schemas.put(self._storage, wanted)
        except FileExistsError:
            raise self._schema_error(wanted.number) from None
        return Series(self._storage, self.name)

    def versions(self) -> list[int]:
        """All versions that exist, ascending; those that were expired are in `expired`."""
        return versions(self._storage)

    def history(self) -> list[Snapshot]:
        """All snapshots that exist, oldest first."""
        return [Snapshot(self._storage, manifest) for manifest in self._history()]

    def expired(self) -> list[Tombstone]:
        """What is known of the snapshots that were expired, oldest first: `.manifest` as it was, and `.expired`."""
        gone = sorted(set(tombstones(self._storage)) - set(self.versions()))
        return [read_tombstone(self._storage, version) for version in gone]

    def latest(self) -> Snapshot:
        """The newest snapshot. Raises VersionNotFoundError if there is none yet."""
        while True:
            found = self.versions()
            if not found:
                raise VersionNotFoundError(f"series {self.name!r} has no snapshot yet: write one")
            with suppress(VersionExpiredError):  # since it was listed, so there is a newer one
                return self._snapshot(found[-1])

    def version(self, version: int) -> Snapshot:
        """The snapshot of this version.

        Raises:
            VersionExpiredError: it was expired; says when.
            VersionNotFoundError: naming those that exist.
        """
        found = self.versions()
        if version in found:
            return self._snapshot(version)
        if isinstance(version, int) and version > 0:
            self._check_expired(version, f"; versions: {_spans(found)}")
        raise VersionNotFoundError(f"series {self.name!r} has no version {version!r}; versions: {_spans(found)}")

    def as_of(self, timestamp: int | datetime) -> Snapshot:
        """The newest snapshot whose `as_of` is not later than `timestamp` (ms since the epoch, or an aware datetime).

        Only snapshots that exist count: where those of that time were expired, it is an earlier one.

        Raises:
            VersionNotFoundError: there is none; the message names the first one's time.
            InvalidTimeError: a naive datetime, another type, or a number that reads as seconds, microseconds or
                nanoseconds; one beyond 4e18 asks for the newest.
        """
        wanted = times.to_milliseconds(timestamp, "timestamp")
        while True:
            found = self.versions()
            try:
                position = bisect_right(found, wanted, key=lambda version: self._manifest(version).as_of)
                if position:
                    return self._snapshot(found[position - 1])
                first = f"the first is as of {self._manifest(found[0]).as_of}" if found else "it has none yet"
            except VersionExpiredError:  # since it was listed
                continue
            raise VersionNotFoundError(f"series {self.name!r} has no snapshot as of {wanted} or earlier; {first}")

    def lookup_as_of(
        self,
        ids: Tensor,  # int64 [...]
        timestamps: Tensor,  # int64 [...], ms since the epoch
        delay_ms: int = 0,
        out_dtype: torch.dtype = torch.float32,
        *,
        space: str | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # [..., D], bool [...], int64 [...]
        """Each id's vector as it could be read at its time: from the newest snapshot with `as_of` + delay <= timestamp.

        A later version with an equal `as_of` is a correction, and wins. Only snapshots that exist count: where those of
        that time were expired, it is an earlier one. Tables are opened when first needed and stay open with the series,
        up to OPEN_TABLES of them.

        Args:
            ids: on the CPU; of a series of text `hash_keys(keys)`.
            timestamps: when each vector is read.
            delay_ms: how long after its `as_of` a snapshot can be read; 0 or more.
            out_dtype: float32, float16 or bfloat16.
            space: read snapshots of this space only, as if there were no others.

        Returns:
            vectors [..., D], zero where not found; found bool [...]; versions int64 [...], the snapshot that was looked
            in, 0 where the time sees none.

        Raises:
            SpaceMismatchError: the times see snapshots of several spaces, and `space` is not given.
            SchemaChangedError: they see a snapshot of another dimension than the series has now.
            InvalidIdsError, InvalidArgumentError: naming the argument and its value.
            InvalidTimeError: timestamps that read as seconds, microseconds or nanoseconds, as `as_of` has it.
            CorruptStoreError: a snapshot cannot be read; of the class that fits, naming the file.
        """
        snapshots = [snapshot for snapshot in self.history() if space in (None, snapshot.space)]
        return PointInTime(snapshots, self.dim, self.open_tables).lookup(ids, timestamps, delay_ms, out_dtype)

    def tagged(self, tag: str) -> Snapshot:
        """The snapshot a tag points to. Raises TagNotFoundError naming the tags that exist."""
        version = self._tags.version(tag)
        while True:
            try:
                return self.version(version)
            except VersionNotFoundError:
                before, version = version, self._tags.version(tag)
                if version == before:  # else it was moved, and then the version expired
                    raise

    def tags(self) -> dict[str, int]:
        """Tag -> version."""
        return self._tags.all()

    def moves(self, tag: str) -> list[Move]:
        """The moves of a tag, oldest first: `.number`, `.version` (None: removed), `.moved`. `clean` keeps 100 of them.

        Raises:
            TagNotFoundError: there was never such a tag.
        """
        return self._tags.moves(tag)

    def tag(self, tag: str, version: int, *, expected: int | None = ANY) -> None:
        """Point a tag, new or existing, to a version, at once for every reader. Of two callers the later one counts.

        Args:
            expected: move it only if it points to this version, None: only if it does not exist.

        Raises:
            VersionNotFoundError: naming the versions that exist; VersionExpiredError if it was expired.
            TagMovedError: it does not point to `expected`.
            InvalidArgumentError: the tag's name is not allowed.
        """
        self._point(tag, self.version(version).version, expected)

    def untag(self, tag: str) -> None:
        """Remove a tag; the snapshot stays. Raises TagNotFoundError naming the tags that exist."""
        self._tags.version(tag)
        self._tags.move(tag, None)

    def rollback(self, tag: str, version: int | None = None) -> Snapshot:
        """Move a tag to an earlier version: to `version`, or to the one it named last before. Returns that snapshot.

        Raises:
            TagNotFoundError: no such tag, or it has named no earlier version that exists.
            TagMovedError: somebody else moved it at the same time.
            VersionNotFoundError: naming the versions that exist.
            InvalidArgumentError: `version` is not earlier than the present one.
        """
        if version is None:
            present, version = self._tags.earlier(tag, self.versions())
        else:
            present = self._tags.version(tag)
            if self.version(version).version >= present:
                raise InvalidArgumentError(
                    f"version is {version}, tag {tag!r} is at {present}: a rollback goes to an earlier one, or use tag"
                )
        self._point(tag, version, present)
        return self.version(version)

    def write(
        self,
        *,
        as_of: int | datetime,
        space: str,
        duplicates: str = "error",
        base: int | Snapshot | None = None,
        rows_per_batch: int | None = None,
    ) -> SnapshotWriter:
        """A writer of the next snapshot, for a `with` block; nothing is visible until the block ends cleanly.

        Args:
            as_of: event time up to which the vectors know the world: ms since the epoch or an aware datetime, before
                October 2096. Numbers that read as seconds (1e9 up to 1e11) are refused, smaller ones may count
                anything. Not earlier than the newest snapshot's; an equal one corrects it, and wins.
            space: the vector space, say "ctr-1". Vectors of two spaces must not be compared or averaged.
            duplicates: "error", or "last": of an id appended several times the last vector is kept.
            base: write a delta: the snapshot (or its version) on which what is appended and deleted are changes. It is
                read as if it were whole.
            rows_per_batch: rows of a record batch and of the buffer in memory; None: some 32 MiB worth of them.

        Raises:
            AsOfDecreasedError: naming both times; checked again when the block ends.
            SchemaChangedError: the series has a newer schema than this handle, or than `base`.
            InvalidTimeError, InvalidArgumentError: naming the argument and its value.
        """
        self._check_schema()
        snapshot = self.version(base) if isinstance(base, int) else base
        if snapshot is not None and snapshot.series != self.name:
            raise InvalidArgumentError(f"base is {snapshot!r}, not a snapshot of series {self.name!r}")
        return SnapshotWriter(
            self._storage,
            series=self.name,
            schema=self.schema,
            dim=self.dim,
            dtype=DTYPES[self.dtype],
            ids=self.ids,
            as_of=times.to_stored(as_of, "as_of"),
            space=space,
            duplicates=duplicates,
            base=None if snapshot is None else snapshot.manifest,
            rows_per_batch=rows_per_batch,
        )

    def compact(self) -> Snapshot:
        """Fold the newest snapshot, a delta, into a whole one: a new version with the same `as_of` and space.

        One that is whole already is returned as it is.
        """
        newest = self.latest()
        return newest if newest.manifest.base is None else compact.compact(self._storage, newest.manifest)

    def diff(
        self, old: int | Snapshot, new: int | Snapshot, *, progress: Callable[[int, int], None] | None = None
    ) -> Diff:
        """What changed from one version to another: see Diff. `progress` is called with rows done and to do."""
        first, second = (self.version(s) if isinstance(s, int) else s for s in (old, new))
        return comparison.diff(first, second, progress)

    def expire(
        self,
        *,
        keep_last: int | None = None,
        older_than: timedelta | datetime | int | None = None,
        dry_run: bool = True,
    ) -> list[Snapshot]:
        """Let go of old snapshots that all the given rules allow; never of the newest, nor of tagged ones.

        They can be asked for no more, but say what became of them (`expired`); tables that are loaded keep serving.
        `clean` frees the space from an hour later on; `freed_bytes` says how much.

        Args:
            keep_last: keep so many of the newest.
            older_than: keep what was published (`manifest.created`) less than so long ago, or at that time or later.
            dry_run: only say which.

        Returns:
            Those that went, or would, oldest first; with them any that a run that died had begun to expire.

        Raises:
            InvalidArgumentError: no rule is given, or one that cannot be.
        """
        history = self._history()
        existing = [manifest.version for manifest in history]
        chosen = expiry.candidates(
            history,
            tagged=self.tags().values(),
            unfinished=expiry.unfinished(self._storage, existing),
            keep_last=keep_last,
            before=expiry.published_before(older_than),
        )
        found = [manifest for manifest in history if manifest.version in chosen]
        gone = found if dry_run else expiry.carry_out(self._storage, found, existing)
        return [Snapshot(self._storage, manifest) for manifest in gone]

    def freed_bytes(self, snapshots: Sequence[Snapshot]) -> int:
        """Bytes that expiring these snapshots frees: a file counts once, and not if another snapshot needs it."""
        history = {manifest.version: manifest for manifest in self._history()}
        history |= {snapshot.version: snapshot.manifest for snapshot in snapshots}
        return expiry.freed_bytes(list(history.values()), {snapshot.version for snapshot in snapshots})

    def clean(self, grace: timedelta = CLEAN_GRACE) -> list[str]:
        """Delete what is not needed any more; returns the paths, relative to the series.

        That is data that no manifest names and nothing was written beside for `grace`, unless a snapshot that was
        expired less than `grace` ago names them; and moves of a tag beyond the newest 100.

        Raises:
            InvalidArgumentError: `grace` is less than an hour, the time for which a live writer may be silent.
            CorruptStoreError: a manifest cannot be read, so what it names is not known; nothing is deleted.
        """
        return cleaning.clean(self._storage, grace)

    def _point(self, tag: str, version: int, expected: int | None) -> None:
        """Move a tag to a version that exists; history/expire.py has the other side."""
        before = self._tags.move(tag, version, expected=expected)
        try:
            self._check_expired(version, ", while the tag was moved to it")
        except VersionExpiredError:
            with suppress(TagMovedError):
                self._tags.move(tag, before, expected=version)
            raise

    def _snapshot(self, version: int) -> Snapshot:
        return Snapshot(self._storage, self._manifest(version))

    def _history(self) -> list[Manifest]:
        """Manifests of all versions that exist, oldest first."""
        found = []
        for version in self.versions():
            with suppress(VersionExpiredError):  # since it was listed
                found.append(self._manifest(version))
        return found

    def _manifest(self, version: int) -> Manifest:
        if version not in self._manifests:
            try:
                self._manifests[version] = read_manifest(self._storage, version)
            except MissingFileError:
                self._check_expired(version)
                raise
        return self._manifests[version]

    def _check_expired(self, version: int, details: str = "") -> None:
        at = expired_at(self._storage, version)
        if at is not None:
            when = times.to_text(at)
            raise VersionExpiredError(f"version {version} of series {self.name!r} was expired at {when}{details}")

    def _check_schema(self) -> None:
        newest = schemas.newest_number(self._storage)
        if newest != self.schema:
            raise self._schema_error(newest)

    def _schema_error(self, newest: int) -> SchemaChangedError:
        by_now = f"series {self.name!r} has schema {newest} by now, this handle has {self.schema}"
        return SchemaChangedError(f"{by_now}: open it again")

    def __repr__(self) -> str:
        return f"Series({self.name!r}, dim={self.dim}, dtype={self.dtype!r})"


def _spans(found: list[int]) -> str:
    """`1-4, 6`: versions for a message."""
    if not found:
        return "none yet"
    starts = [v for i, v in enumerate(found) if i == 0 or found[i - 1] != v - 1]
    stops = [v for i, v in enumerate(found) if i == len(found) - 1 or found[i + 1] != v + 1]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, stops, strict=True))
