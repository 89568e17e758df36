"""The history of one representation: its snapshots, the tags that point to them, and the writer of the next one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from embedding_store import times
from embedding_store.arguments import integer
from embedding_store.dtypes import DTYPES
from embedding_store.errors import (
    FragmentError,
    InvalidArgumentError,
    MissingFileError,
    SchemaChangedError,
)
from embedding_store.format.files import RowFormat
from embedding_store.format.manifest import Manifest
from embedding_store.history import clean as cleaning
from embedding_store.history import expire as expiry
from embedding_store.history import refusals, schemas
from embedding_store.history.clean import CLEAN_GRACE
from embedding_store.history.tags import ANY
from embedding_store.read.series_reader import SeriesReader
from embedding_store.read.snapshot import Snapshot
from embedding_store.scan import diff as comparison
from embedding_store.scan.diff import Diff
from embedding_store.storage.base import Storage
from embedding_store.write import compact
from embedding_store.write.commit import check_planned
from embedding_store.write.fragments import Fragment, SharedDraft, checked, new_draft, part_of
from embedding_store.write.pieces import IndexPiece, write_piece
from embedding_store.write.together import commit_fragments
from embedding_store.write.writer import FragmentWriter, SnapshotWriter


class Series(SeriesReader):
    """One series, got from `EmbeddingStore.series` or `.create`. A pickled one is its place, and is opened anew."""

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

    def tag(self, tag: str, version: int, *, expected: int | None = ANY) -> None:
        """Point a tag, new or existing, to a version, at once for every reader. Of two callers the later one counts.

        Args:
            expected: move it only if it points to this version, None: only if it does not exist.

        Raises:
            VersionNotFoundError: naming the versions that exist; VersionExpiredError if it is gone.
            TagMovedError: it does not point to `expected`.
            InvalidArgumentError: the tag's name is not allowed.
        """
        self._tags.move(tag, integer(version, "version"), expected=expected)

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
        self._tags.move(tag, integer(version, "version"), expected=present)
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
                read as if it were whole, and costs what it changes: see write/overlay.py.
            rows_per_batch: rows of a record batch and of the buffer in memory; None: some 32 MiB worth of them.

        Raises:
            AsOfDecreasedError: naming both times; checked again when the block ends.
            SchemaChangedError: the series has a newer schema than this handle, or than `base`.
            InvalidTimeError, InvalidArgumentError: naming the argument and its value.
        """
        return SnapshotWriter(
            self._storage,
            self._form,
            series=self.name,
            schema=self.schema,
            as_of=times.to_stored(as_of, "as_of"),
            space=space,
            duplicates=duplicates,
            base=self._base(base),
            rows_per_batch=rows_per_batch,
        )

    def draft(
        self, *, parts: int, as_of: int | datetime, space: str, base: int | Snapshot | None = None
    ) -> SharedDraft:
        """The draft of a snapshot that `parts` writers make together: send it to each, who writes one `fragment`, and
        give these to `commit`. Whatever dies meanwhile, nothing is visible before, and `clean` takes what it left.

            draft = series.draft(parts=8, as_of=day_end, space="ctr-1")  # once
            with series.fragment(draft, part=3) as writer:               # on each worker
                writer.append(ids, vectors)
            series.commit(draft, fragments)                              # once: `writer.fragment` of each

        Args:
            parts: how many fragments, 1 or more.
            as_of, space, base: as of `write`.

        Raises:
            as `write`.
        """
        draft = new_draft(
            self._form,
            parts=parts,
            series=self.name,
            schema=self.schema,
            as_of=times.to_stored(as_of, "as_of"),
            space=space,
            base=(manifest := self._base(base)),
        )
        check_planned(
            self._storage, series=self.name, schema=self.schema, as_of=draft.as_of, space=space, base=manifest
        )
        return draft

    def fragment(
        self, draft: SharedDraft, part: int, *, duplicates: str = "error", rows_per_batch: int | None = None
    ) -> FragmentWriter:
        """A writer of one part of a draft, for a `with` block, on any machine. Parts may hold any ids, each in one of
        them. A part may be written again, if its first writer is gone: the fragment that is committed counts.

        Args:
            part: 0 .. draft.parts - 1.
            duplicates, rows_per_batch: as of `write`; within the part.

        Raises:
            FragmentError: a draft of another series.
            SchemaChangedError, VersionExpiredError, InvalidArgumentError: as `write`.
        """
        base = self._of_draft(draft)
        return FragmentWriter(
            self._storage, draft, part, base=base, duplicates=duplicates, rows_per_batch=rows_per_batch
        )

    def index_piece(self, draft: SharedDraft, fragments: Sequence[Fragment], part: int) -> IndexPiece | None:
        """One part's piece of the index of a whole snapshot, which else the commit writes alone: call it with all
        fragments for each part, on any machine, and give what it returns to `commit`. None: there is nothing to share,
        of few ids or in a delta.

        Raises:
            FragmentError, DuplicateIdsError, CorruptStoreError: as `commit`.
            InvalidIdsError: ids that were made to collide.
        """
        self._of_draft(draft)
        return write_piece(self._storage, draft, checked(draft, fragments), part_of(draft, part))

    def commit(
        self, draft: SharedDraft, fragments: Sequence[Fragment], pieces: Sequence[IndexPiece | None] = ()
    ) -> Snapshot:
        """Publish the snapshot that these fragments are, in any order; one process does it, when all are written.

        Args:
            pieces: what `index_piece` gave of each part. Without them the index is written here.

        After an error of the first two classes the fragments stay, to be committed with others; after one of the next
        line they are deleted.

        Raises:
            FragmentError: a part is missing or there twice, or a fragment is of another draft, series or schema.
            DuplicateIdsError: an id is in several fragments.
            AsOfDecreasedError, SchemaChangedError, VersionExpiredError: others have published meanwhile.
            MissingFileError, FileSizeError, ChecksumError: a fragment's file is gone, or not as it was written.
        """
        written = [piece for piece in pieces if piece is not None]
        return commit_fragments(self._storage, draft, fragments, written, self._of_draft(draft))

    def compact(self) -> Snapshot:
        """Fold the newest snapshot, a delta, into a whole one: a new version with the same `as_of` and space.

        One that is whole already is returned as it is.
        """
        newest = self.latest()
        return newest if newest.manifest.base is None else compact.compact(self._storage, newest.manifest)

    def diff(
        self, old: int | Snapshot, new: int | Snapshot, *, progress: Callable[[int, int], None] | None = None
    ) -> Diff:
        """What changed from one version to another: see Diff. `progress` is called with rows done and to do.

        Of deltas, folded or compacted in between or not, it costs what both sides have written since they parted: the
        blocks of 64 KiB that these ids and vectors lie in. Whole snapshots that were written apart are read whole, and
        those with an expired version between them. On an object store a file that a block is read of comes into the
        cache whole.

        Raises:
            InvalidArgumentError: a snapshot of another series.
            VersionNotFoundError, VersionExpiredError; CorruptStoreError: of the class that fits.
        """
        first, second = (s if isinstance(s, Snapshot) else self.version(s) for s in (old, new))
        for name, snapshot in (("old", first), ("new", second)):
            if snapshot.series != self.name:
                raise InvalidArgumentError(f"{name} is {snapshot!r}, not a snapshot of series {self.name!r}")
        try:
            return comparison.diff(self._storage, first.manifest, second.manifest, progress)
        except MissingFileError:
            for snapshot in (first, second):
                self.version(snapshot.version)  # says what became of it
            raise

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

    @property
    def _form(self) -> RowFormat:
        return RowFormat(dim=self.dim, dtype=DTYPES[self.dtype], ids=self.ids)

    def _base(self, base: int | Snapshot | None) -> Manifest | None:
        """What a delta is to be written on, now."""
        self._check_schema()
        snapshot = base if base is None or isinstance(base, Snapshot) else self.version(base)
        if snapshot is not None and snapshot.series != self.name:
            raise InvalidArgumentError(f"base is {snapshot!r}, not a snapshot of series {self.name!r}")
        return None if snapshot is None else snapshot.manifest

    def _of_draft(self, draft: SharedDraft) -> Manifest | None:
        """The base of a draft of this series."""
        if draft.series != self.name:
            raise FragmentError(f"the draft is of series {draft.series!r}, this one is {self.name!r}")
        return self._base(draft.base)

    def _check_schema(self) -> None:
        if (newest := schemas.newest_number(self._storage)) != self.schema:
            raise self._schema_error(newest)

    def _schema_error(self, newest: int) -> SchemaChangedError:
        by_now = f"series {self.name!r} has schema {newest} by now, this handle has {self.schema}"
        return SchemaChangedError(f"{by_now}: open it again")

    def __reduce__(self) -> tuple[type[Series], tuple[Storage, str]]:
        return Series, (self._storage, self.name)

    def __repr__(self) -> str:
        return f"Series({self.name!r}, dim={self.dim}, dtype={self.dtype!r})"
