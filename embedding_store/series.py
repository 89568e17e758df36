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
    NewerFormatError,
    SchemaChangedError,
    VersionExpiredError,
    VersionNotFoundError,
)
from embedding_store.format import documents
from embedding_store.format.manifest import ID_KINDS
from embedding_store.history import clean as cleaning
from embedding_store.history import expire as expiry
from embedding_store.history import refusals, schemas
from embedding_store.history.clean import CLEAN_GRACE
from embedding_store.history.state import Move
from embedding_store.history.tags import ANY, Tags, pointed
from embedding_store.history.tombstones import TOMBSTONES, Tombstone, read_tombstone
from embedding_store.history.versions import Versions
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
        first = schemas.from_fields(1, fields)
        self._schema = first if newest == 1 else schemas.read(storage, newest)
        self._versions = Versions(storage, name)
        self._tags = Tags(self._versions)
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

    def versions(self, *, refused: bool = True) -> list[int]:
        """All versions that exist, ascending; those that are gone are in `expired`. `refused`: the refused ones too."""
        without = set() if refused else set(refusals.REFUSALS.numbers(self._storage))
        return [version for version in self._versions.numbers() if version not in without]

    def history(self, *, refused: bool = True) -> list[Snapshot]:
        """All snapshots that exist, oldest first; `refused`: those that were refused too."""
        return [
            Snapshot(self._storage, manifest) for manifest in self._versions.history(self.versions(refused=refused))
        ]

    def expired(self) -> list[Tombstone]:
        """What is known of the snapshots that were expired or retracted, oldest first: `.manifest` as it was,
        `.expired`, when it went, and `.retracted`."""
        gone = sorted(set(TOMBSTONES.numbers(self._storage)) - set(self.versions()))
        return [read_tombstone(self._storage, version) for version in gone]

    def latest(self, *, refused: bool = True) -> Snapshot:
        """The newest snapshot; with `refused=False` the newest that was not refused.

        Raises:
            VersionNotFoundError: there is none yet, or all were refused.
        """
        while True:
            found = self.versions(refused=refused)
            if not found:
                which = "has no snapshot yet: write one" if refused else "has no snapshot that was not refused"
                raise VersionNotFoundError(f"series {self.name!r} {which}")
            with suppress(VersionExpiredError):  # since it was listed
                return self._snapshot(found[-1])

    def version(self, version: int) -> Snapshot:
        """The snapshot of this version, refused or not.

        Raises:
            VersionExpiredError: it was expired; says when. VersionRetractedError: it was retracted.
            VersionNotFoundError: naming those that exist.
        """
        return Snapshot(self._storage, self._versions.find(version))

    def as_of(self, timestamp: int | datetime, *, refused: bool = False) -> Snapshot:
        """The newest snapshot whose `as_of` is not later than `timestamp` (ms since the epoch, or an aware datetime).

        Only snapshots that exist count, and that were not refused, unless `refused` says that these count too.

        Raises:
            VersionNotFoundError: there is none; the message names the first one's time.
            InvalidTimeError: a naive datetime or another type.
        """
        wanted = times.to_milliseconds(timestamp, "timestamp")
        while True:
            found = self.versions(refused=refused)
            try:
                position = bisect_right(found, wanted, key=lambda version: self._versions.listed(version).as_of)
                if position:
                    return self._snapshot(found[position - 1])
                first = f"the first is as of {self._versions.listed(found[0]).as_of}" if found else "it has none yet"
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
        refused: bool = False,
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
            refused: read those that were refused too, else it is as if there were none.

        Returns:
            vectors [..., D], zero where not found; found bool [...]; versions int64 [...], the snapshot that was looked
            in, 0 where the time sees none.

        Raises:
            SpaceMismatchError: the times see snapshots of several spaces, and `space` is not given.
            SchemaChangedError: they see a snapshot of another dimension than the series has now.
            InvalidIdsError, InvalidArgumentError: naming the argument and its value.
            CorruptStoreError: a snapshot cannot be read; of the class that fits, naming the file.
        """
        snapshots = [snapshot for snapshot in self.history(refused=refused) if space in (None, snapshot.space)]
        return PointInTime(snapshots, self.dim, self.open_tables).lookup(ids, timestamps, delay_ms, out_dtype)

    def tagged(self, tag: str) -> Snapshot:
        """The snapshot a tag points to. Raises TagNotFoundError naming the tags that exist."""
        while True:
            with suppress(VersionExpiredError):  # the tag was moved, and then the version expired
                return self.version(self._tags.version(tag))

    def tags(self) -> dict[str, int]:
        """Tag -> version."""
        return pointed(self._storage)

    def moves(self, tag: str) -> list[Move]:
        """The moves of a tag, oldest first: `.number`, `.version` (None: removed), `.moved`. The newest 100 are kept.

        Raises:
            TagNotFoundError: there was never such a tag.
        """
        return self._tags.moves(tag)

    def tag(self, tag: str, version: int, *, expected: int | None = ANY) -> None:
        """Point a tag, new or existing, to a version, at once for every reader. Of two callers the later one counts.

        Args:
            expected: move it only if it points to this version, None: only if it does not exist.

        Raises:
            VersionNotFoundError: naming the versions that exist; VersionExpiredError if it is gone.
            TagMovedError: it does not point to `expected`.
            InvalidArgumentError: the tag's name is not allowed.
        """
        self._tags.move(tag, version, expected=expected)

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
            present, version = self._tags.earlier(tag)
        else:
            present = self._tags.version(tag)
            if self.version(version).version >= present:
                raise InvalidArgumentError(
                    f"version is {version}, tag {tag!r} is at {present}: a rollback goes to an earlier one, or use tag"
                )
        self._tags.move(tag, version, expected=present)
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
            as_of: event time up to which the vectors know the world: ms since the epoch or an aware datetime. Not
                earlier than the newest snapshot's; an equal one corrects it, and wins.
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
            as_of=times.to_milliseconds(as_of, "as_of"),
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
        """Let go of old snapshots that all the given rules allow; never of the newest, nor of the newest that was not
        refused, nor of tagged ones.

        They can be asked for no more, but say what became of them (`expired`); tables that are loaded keep serving.
        `clean` frees the space from an hour later on; `freed_bytes` says how much.

        Args:
            keep_last: keep so many of the newest.
            older_than: keep what was published (`manifest.created`) less than so long ago, or at that time or later.
            dry_run: only say which.

        Returns:
            Those that went, or would, oldest first.

        Raises:
            InvalidArgumentError: no rule is given, or one that cannot be.
        """
        before = expiry.published_before(older_than)
        gone = expiry.expire(self._versions, keep_last=keep_last, before=before, dry_run=dry_run)
        return [Snapshot(self._storage, manifest) for manifest in gone]

    def retract(self, version: int) -> None:
        """Take back the newest version, which should never have gone out: say its `as_of` was wrong.

        It can be asked for no more, and its number is not used again; the next version may have an earlier `as_of`. A
        LiveTable that follows the newest version goes back to the one before; tables that are loaded keep serving.

        Raises:
            InvalidArgumentError: it is not the newest, or a tag, which the message names, points to it.
            VersionNotFoundError: naming the versions that exist; VersionExpiredError if it is gone already.
        """
        expiry.retract(self._versions, version)

    def refuse(self, version: int, reasons: Sequence[str]) -> None:
        """Mark a version as unfit, for good: `as_of` and `lookup_as_of` leave it out from now on, and so does a
        LiveTable that follows no tag. All else stays as it is: `version`, `tagged`, `history` and `latest` give it,
        its `refused` says the reasons, the next version comes after it, and it expires as any other.

        A version that is refused already keeps its first reasons.

        Raises:
            InvalidArgumentError: `reasons` is empty, or holds something other than texts.
            VersionNotFoundError: naming the versions that exist; VersionExpiredError if it is gone.
        """
        refusals.refuse(self._storage, self.version(version).version, reasons)

    def freed_bytes(self, snapshots: Sequence[Snapshot]) -> int:
        """Bytes that expiring these snapshots frees: a file counts once, and not if another snapshot needs it."""
        history = {manifest.version: manifest for manifest in self._versions.history()}
        history |= {snapshot.version: snapshot.manifest for snapshot in snapshots}
        return expiry.freed_bytes(list(history.values()), {snapshot.version for snapshot in snapshots})

    def clean(self, grace: timedelta = CLEAN_GRACE) -> list[str]:
        """Delete what is not needed any more; returns the paths, relative to the series.

        That is data that no manifest names and nothing was written beside for `grace`, unless a snapshot that went
        less than `grace` ago names them; unfinished files and empty folders of that age; and old files of tags.

        Raises:
            InvalidArgumentError: `grace` is less than an hour, the time for which a live writer may be silent.
            CorruptStoreError: a manifest cannot be read, so what it names is not known; nothing is deleted.
        """
        return cleaning.clean(self._storage, grace)

    def _snapshot(self, version: int) -> Snapshot:
        return Snapshot(self._storage, self._versions.listed(version))

    def _check_schema(self) -> None:
        if (newest := schemas.newest_number(self._storage)) != self.schema:
            raise self._schema_error(newest)

    def _schema_error(self, newest: int) -> SchemaChangedError:
        by_now = f"series {self.name!r} has schema {newest} by now, this handle has {self.schema}"
        return SchemaChangedError(f"{by_now}: open it again")

    def __repr__(self) -> str:
        return f"Series({self.name!r}, dim={self.dim}, dtype={self.dtype!r})"
