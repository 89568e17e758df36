"""What can be asked of a series: its versions, which of them is of a time or a tag, and vectors as of many times."""

from __future__ import annotations

from bisect import bisect_right
from contextlib import suppress
from datetime import datetime

import torch
from torch import Tensor

from embedding_store import times
from embedding_store.errors import FileFormatError, NewerFormatError, VersionExpiredError, VersionNotFoundError
from embedding_store.format import documents
from embedding_store.format.manifest import ID_KINDS
from embedding_store.history import refusals, schemas
from embedding_store.history.state import Move
from embedding_store.history.tags import Tags, pointed
from embedding_store.history.tombstones import TOMBSTONES, Tombstone, read_tombstone
from embedding_store.history.versions import Versions, next_version
from embedding_store.read.open_tables import OpenTables
from embedding_store.read.point_in_time import PointInTime
from embedding_store.read.snapshot import Snapshot
from embedding_store.storage.base import Storage

DESCRIPTION = "series.json"


class SeriesReader:
    """The reading half of a Series."""

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
        self.open_tables = OpenTables()  # of lookups as of a time, on the CPU

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

    def versions(self, *, refused: bool = True) -> list[int]:
        """All versions that exist, ascending; those that are gone are in `expired`. `refused`: the refused ones too."""
        without = set() if refused else set(refusals.REFUSALS.numbers(self._storage))
        return [version for version in self._versions.numbers() if version not in without]

    @property
    def next_version(self) -> int:
        """The number that the next snapshot will get, unless another writer is faster: one that was never used."""
        return next_version(self._storage)

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
            InvalidTimeError: a naive datetime, another type, or a number that reads as seconds, microseconds or
                nanoseconds; one beyond 4e18 asks for the newest.
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

    def point_in_time(
        self,
        *,
        space: str | None = None,
        refused: bool = False,
        device: torch.device | str | None = None,
        gpu_bytes: int | None = None,
    ) -> PointInTime:
        """What `lookup_as_of` and `lookup_history_as_of` look up in, for many lookups in the snapshots that exist now,
        which are listed here once; and on a GPU, where versions are loaded when first needed.

        Args:
            space, refused: as of `lookup_as_of`.
            device: where tables lie and results are; None: the CPU, where tables are those of the two calls.
            gpu_bytes: of the device's memory for all tables that are open: see OpenTables.

        Raises:
            InvalidArgumentError, NativeLibraryError: as OpenTables.
        """
        snapshots = [snapshot for snapshot in self.history(refused=refused) if space in (None, snapshot.space)]
        if device is None and gpu_bytes is None:
            return PointInTime(snapshots, self.dim, self.open_tables)
        return PointInTime(snapshots, self.dim, device=device, gpu_bytes=gpu_bytes)

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
            ids: on the CPU (on a GPU see `point_in_time`); of a series of text `hash_keys(keys)`.
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
            InvalidTimeError: timestamps that read as seconds, microseconds or nanoseconds, as `as_of` has it.
            CorruptStoreError: a snapshot cannot be read; of the class that fits, naming the file.
        """
        return self.point_in_time(space=space, refused=refused).lookup(ids, timestamps, delay_ms, out_dtype)

    def lookup_history_as_of(
        self,
        ids: Tensor,  # int64 [...]
        timestamps: Tensor,  # int64 [...], ms since the epoch
        k: int,
        delay_ms: int = 0,
        out_dtype: torch.dtype = torch.float32,
        *,
        space: str | None = None,
        refused: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:  # [..., k, D], bool [..., k], int64 [..., k]
        """Each id's vectors in the last k snapshots that could be read at its time, newest first.

        Which can be read is as in `lookup_as_of`; of several with an equal `as_of` the last, a correction, stands for
        all, and takes one of the k places. The places are those of the k newest snapshots, not of the k newest that
        hold the id: one that does not leaves its place empty. Only snapshots that some id sees in a place are opened.

        Args:
            k: 1 .. 4096; may be more than there are snapshots.
            ids, timestamps, delay_ms, out_dtype, space, refused: as in `lookup_as_of`.

        Returns:
            vectors [..., k, D], zero where `mask` is False; mask bool [..., k], there is a snapshot for this place and
            it holds the id; ages int64 [..., k], ms from its `as_of` to the timestamp, 0 where `mask` is False and
            int64's largest where it is more than that.

        Raises:
            As `lookup_as_of`, of all snapshots in a place of some id; InvalidArgumentError also for `k`.
        """
        return self.point_in_time(space=space, refused=refused).lookup_history(ids, timestamps, k, delay_ms, out_dtype)

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

    def _snapshot(self, version: int) -> Snapshot:
        return Snapshot(self._storage, self._versions.listed(version))
