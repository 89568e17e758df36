"""A snapshot's manifest: all that is known of it but the vectors. A snapshot exists exactly when its manifest does."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from embedding_store.dtypes import DTYPES, MAX_DIM, Dtype
from embedding_store.errors import FileFormatError, NewerFormatError
from embedding_store.format import documents
from embedding_store.format.documents import Fields
from embedding_store.format.numbered import NumberedFiles
from embedding_store.native.layout import ROW_BITS
from embedding_store.storage.base import Storage

INDEX_KINDS = ("hash",)
ID_KINDS = ("int64", "text")
MAX_SEGMENTS = 1 << 23  # so that twice a location is still below 2^64
PIECE_BYTES = 65_536  # an index goes on in another file at multiples of this: where a mapping can put it
OVERLAYS_SINCE = 3  # version of the format
MANIFESTS = NumberedFiles("manifests", "manifest")
_DATA_PATH = re.compile(r"(data/[a-z0-9-]+)/[a-z0-9][a-z0-9.-]*")


def manifest_path(version: int) -> str:
    """Where the manifest of a version lies, relative to the series."""
    return MANIFESTS.path(version)


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Statistics over vectors as they are stored: of a whole snapshot all of them, of a delta those that it wrote."""

    rows: int
    """Number of vectors that `mean_norm` and `mean` are over."""
    mean_norm: float
    """Mean L2 norm; 0 without rows."""
    mean: tuple[float, ...]
    """Mean vector, [D]; zeros without rows."""
    min_id: int | None
    """Least of all ids of the snapshot, a delta's base included; None without rows."""
    max_id: int | None
    """Greatest of all ids; None without rows."""


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file that a manifest names. Beside it lies `<path>.crc`."""

    path: str
    """Relative to the series' folder."""
    bytes: int
    """Size."""
    checksum: str
    """Of the file `<path>.crc`, which holds a checksum of each 64 KiB block."""

    @property
    def crc_path(self) -> str:
        """The file with the blocks' checksums."""
        return f"{self.path}.crc"


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One record batch of a data file: where in the file its columns start, in bytes. None: no such column."""

    rows: int
    """At least 1."""
    vector: int
    """Vectors, one after the other; a multiple of 64."""
    id: int
    """int64 [rows]."""
    scale: int | None
    """float32 [rows], quantised dtypes only."""
    offset: int | None
    """float32 [rows], quantised dtypes only."""
    key: int | None
    """int64 [rows + 1], series of text only: where in `text` each key starts, and where the last one ends."""
    text: int | None
    """The keys in UTF-8, one after the other; series of text only."""


@dataclass(frozen=True, kw_only=True)
class DataFile(StoredFile):
    """An Arrow IPC file with some of the rows."""

    segments: tuple[Segment, ...]
    """Its record batches, at least one."""

    @property
    def rows(self) -> int:
        """Rows of all segments, dead ones included."""
        return sum(segment.rows for segment in self.segments)


@dataclass(frozen=True, kw_only=True)
class IndexFile(StoredFile):
    """The file that leads from an id to its location."""

    kind: str
    """`hash`: buckets of four entries."""
    continued: tuple[StoredFile, ...] = ()
    """The files that its bytes go on in, where several writers have written it."""

    @property
    def pieces(self) -> tuple[StoredFile, ...]:
        """All its files, in order."""
        return (self, *self.continued)


@dataclass(frozen=True, kw_only=True)
class Overlay(IndexFile):
    """The index of a delta that has no whole one: of the ids that were changed since the snapshot whose index it
    shares. An entry counts instead of that index's; one that leads to ABSENT is of an id that was deleted since."""

    entries: int
    """Ids that it has an entry of."""
    index_entries: int
    """Ids that the shared index has an entry of."""


@dataclass(frozen=True, kw_only=True)
class Folded:
    """Of a snapshot that rests on a compacted one: what was compacted."""

    version: int
    """Its ids and vectors are those of the compacted snapshot."""
    files: int
    """So many data files, the first ones, hold them."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One snapshot. Segments are numbered from 0 through the data files in the order in which they are listed."""

    series: str
    """Name of the series."""
    version: int
    """1, 2, 3, ...: unique within the series, never reused."""
    schema: int
    """Version of the series' schema, which `dim` and `dtype` are of."""
    as_of: int
    """Event time up to which the vectors know the world, ms."""
    space: str
    """Vectors of two spaces must not be compared or averaged."""
    created: int
    """When the writer finished, ms."""
    dim: int
    """D."""
    dtype: str
    """How vectors are stored."""
    ids: str
    """`int64`, or `text`: hashes of the keys that are stored beside them."""
    base: int | None
    """Version that a delta was written on; None: a whole snapshot."""
    rows: int
    """Number of ids."""
    stored_rows: int
    """Rows in the data files; those that no index entry leads to are dead."""
    statistics: Statistics
    """Statistics over the vectors."""
    data: tuple[DataFile, ...]
    """The rows: a delta's base's files first, as its manifest lists them."""
    index: IndexFile
    """From all ids to their locations; with an overlay, from those of the snapshot that it was written with."""
    overlay: Overlay | None = None
    """What has changed since then, in a delta of few changes."""
    deletes: tuple[StoredFile, ...] | None = ()
    """Ids, int64, that deltas deleted from what they were written on: a delta's base's files first, as its manifest
    lists them, then its own, if it deletes any; a whole snapshot has none. None: not known, of writers before these."""
    folded: Folded | None = None
    """What the whole snapshot that this one is, or rests on, was compacted from; None: nothing, or not known."""

    @property
    def indexes(self) -> tuple[IndexFile, ...]:
        """The index and, if there is one, the overlay."""
        return (self.index,) if self.overlay is None else (self.index, self.overlay)

    @property
    def own_index(self) -> IndexFile:
        """The file that no other snapshot has: what this one is known by."""
        return self.indexes[-1]

    @property
    def index_entries(self) -> int:
        """Ids that `index` has an entry of."""
        return self.rows if self.overlay is None else self.overlay.index_entries

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """All files but the manifest itself; a `.crc` file lies beside each."""
        return (*self.data, *(piece for index in self.indexes for piece in index.pieces), *(self.deletes or ()))

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The segments of all data files, in order."""
        return tuple(segment for file in self.data for segment in file.segments)

    @property
    def total_bytes(self) -> int:
        """Size of all files but the manifest itself and the `.crc` files."""
        return sum(file.bytes for file in self.files)

    @cached_property
    def content(self) -> str:
        """A digest of its files' sizes and checksums: what tells it from another snapshot of the same version."""
        files = "\n".join(f"{file.bytes} {file.checksum}" for file in self.files)
        return f"blake2b:{hashlib.blake2b(files.encode(), digest_size=16).hexdigest()}"

    def fields(self) -> dict[str, Any]:
        """The keys of the manifest's file, in order."""
        fields = asdict(self)
        for index in (fields["index"], fields["overlay"] or {}):
            if not index.get("continued"):
                index.pop("continued", None)
        return fields

    def encode(self) -> bytes:
        """The manifest's file."""
        return documents.encode("manifest", self.fields())

    @staticmethod
    def decode(data: bytes, path: str) -> Manifest:
        """Read a manifest's file; `path` is for messages.

        Raises:
            CorruptStoreError: of the class that fits (documents.decode); contradictions are a FileFormatError.
        """
        return Manifest.from_fields(documents.decode(data, "manifest", path))

    @staticmethod
    def from_fields(fields: Fields) -> Manifest:
        """The manifest in a document that has its keys. Raises CorruptStoreError of the class that fits."""
        manifest = Manifest(
            series=fields.text("series"),
            version=fields.integer("version", least=1),
            schema=fields.integer("schema", least=1),
            as_of=fields.integer("as_of"),
            space=fields.text("space"),
            created=fields.integer("created"),
            dim=fields.integer("dim", least=1),
            dtype=fields.text("dtype"),
            ids=fields.text("ids"),
            base=fields.optional_integer("base", least=1),
            rows=fields.integer("rows", least=0),
            stored_rows=fields.integer("stored_rows", least=0),
            statistics=_statistics(fields.object("statistics")),
            data=tuple(_data_file(entry) for entry in fields.objects("data")),
            index=_index_file(fields.object("index")),
            overlay=_overlay(fields),
            deletes=_deletes(fields),
            folded=_folded(fields),
        )
        manifest._check(fields.path)
        return manifest

    def _check(self, path: str) -> None:
        for key, value, known in [
            ("dtype", self.dtype, tuple(DTYPES)),
            ("ids", self.ids, ID_KINDS),
            ("index.kind", self.index.kind, INDEX_KINDS),
            ("overlay.kind", self.own_index.kind, INDEX_KINDS),
        ]:
            if value not in known:
                raise NewerFormatError(path, f"{key} is {value!r}, this package knows {', '.join(known)}: upgrade")
        if self.dim > MAX_DIM:
            raise FileFormatError(path, f"dim is {self.dim}, vectors have at most {MAX_DIM} values")
        stored = sum(file.rows for file in self.data)
        if stored != self.stored_rows or self.rows > stored or (self.base is None and self.rows < stored):
            counts = f"rows is {self.rows}, stored_rows is {self.stored_rows}, base is {self.base}"
            raise FileFormatError(path, f"{counts}, but its data files hold {stored} rows")
        if self.overlay is not None:
            most = self.overlay.entries + self.overlay.index_entries
            if self.base is None or self.rows > most:
                counts = f"overlay has {self.overlay.entries} entries on {self.overlay.index_entries}"
                raise FileFormatError(path, f"{counts}, but rows is {self.rows}, base is {self.base}")
        for file in self.deletes or ():
            if self.base is None or file.bytes % 8:
                raise FileFormatError(path, f"deletes names {file.bytes} bytes of int64 ids, base is {self.base}")
        if self.folded is not None and not (self.folded.version < self.version and self.folded.files <= len(self.data)):
            counts = f"version is {self.version}, with {len(self.data)} data files"
            raise FileFormatError(path, f"folded is version {self.folded.version}, {self.folded.files} files; {counts}")
        if self.base is not None and self.base >= self.version:
            raise FileFormatError(path, f"base is {self.base}, version is {self.version}: a base is an earlier version")
        if len(self.statistics.mean) != self.dim:
            raise FileFormatError(path, f"statistics.mean has {len(self.statistics.mean)} values, dim is {self.dim}")
        for file in self.files:
            if not _DATA_PATH.fullmatch(file.path):  # a hostile manifest must not lead out of the series
                raise FileFormatError(path, f"names the file {file.path!r}, which is not data/<folder>/<name>")
        for index in self.indexes:
            if any(piece.bytes % PIECE_BYTES for piece in index.pieces[:-1]):
                sizes = [piece.bytes for piece in index.pieces]
                raise FileFormatError(
                    path, f"{index.path} goes on behind {sizes} bytes, not at multiples of {PIECE_BYTES}"
                )
        for i, file in enumerate(self.data):
            for j, segment in enumerate(file.segments):
                self._check_segment(segment, file, f"data[{i}].segments[{j}]", path)

    def _check_segment(self, segment: Segment, file: DataFile, name: str, path: str) -> None:
        """No column may lie outside of its file: native code reads where the manifest says."""
        expected = column_bytes(segment.rows, self.dim, DTYPES[self.dtype], self.ids)
        if segment.rows >= 1 << ROW_BITS:
            raise FileFormatError(path, f"{name}.rows is {segment.rows}; a segment has fewer than 2^{ROW_BITS}")
        for column in ("vector", "id", "scale", "offset", "key", "text"):
            start, size = getattr(segment, column), expected.get(column)
            if (start is None) != (size is None):
                raise FileFormatError(path, f"{name}.{column} is {start}, which {self.dtype}, {self.ids} cannot have")
            if start is not None and size is not None and start + size > file.bytes:
                raise FileFormatError(path, f"{name}.{column} ends beyond the {file.bytes} bytes of {file.path}")
        if segment.vector % 64 or any((getattr(segment, column) or 0) % 8 for column in expected):
            raise FileFormatError(
                path, f"{name}: vector starts at {segment.vector}, expected multiples of 64, others of 8"
            )


def read_manifest(storage: Storage, version: int) -> Manifest:
    """The manifest of a version. Raises MissingFileError, or what Manifest.decode raises."""
    fields = MANIFESTS.read(storage, version)
    manifest = Manifest.from_fields(fields)
    if manifest.version != version:
        raise FileFormatError(fields.path, f"version is {manifest.version}, its name says {version}")
    return manifest


def column_bytes(rows: int, dim: int, dtype: Dtype, ids: str) -> dict[str, int]:
    """Bytes of each column of a segment; of `text`, whose length only `key` tells, 0."""
    sizes = {"vector": rows * dtype.width(dim) * dtype.torch_dtype.itemsize, "id": 8 * rows}
    if dtype.quantised:
        sizes |= {"scale": 4 * rows, "offset": 4 * rows}
    if ids == "text":
        sizes |= {"key": 8 * (rows + 1), "text": 0}
    return sizes


def _statistics(fields: Fields) -> Statistics:
    return Statistics(
        rows=fields.integer("rows", least=0),
        mean_norm=fields.number("mean_norm"),
        mean=fields.numbers("mean"),
        min_id=fields.optional_integer("min_id"),
        max_id=fields.optional_integer("max_id"),
    )


def _data_file(fields: Fields) -> DataFile:
    return DataFile(**_stored_file(fields), segments=tuple(map(_segment, fields.objects("segments"))))


def _segment(fields: Fields) -> Segment:
    return Segment(
        rows=fields.integer("rows", least=1),
        vector=fields.integer("vector", least=0),
        id=fields.integer("id", least=0),
        scale=fields.optional_integer("scale", least=0),
        offset=fields.optional_integer("offset", least=0),
        key=fields.optional_integer("key", least=0),
        text=fields.optional_integer("text", least=0),
    )


def _index_file(fields: Fields) -> IndexFile:
    continued = tuple(StoredFile(**_stored_file(piece)) for piece in fields.optional_objects("continued"))
    return IndexFile(**_stored_file(fields), kind=fields.text("kind"), continued=continued)


def _overlay(fields: Fields) -> Overlay | None:
    """None: the index is whole, as all were before version 3."""
    if fields.integer("format_version", least=1) < OVERLAYS_SINCE or fields.null("overlay"):
        return None
    overlay = fields.object("overlay")
    return Overlay(
        **vars(_index_file(overlay)),
        entries=overlay.integer("entries", least=0),
        index_entries=overlay.integer("index_entries", least=0),
    )


def _deletes(fields: Fields) -> tuple[StoredFile, ...] | None:
    if not fields.given("deletes"):
        return () if fields.null("base") else None
    return tuple(StoredFile(**_stored_file(entry)) for entry in fields.objects("deletes"))


def _folded(fields: Fields) -> Folded | None:
    if not fields.given("folded"):
        return None
    folded = fields.object("folded")
    return Folded(version=folded.integer("version", least=1), files=folded.integer("files", least=0))


def _stored_file(fields: Fields) -> dict[str, Any]:
    return {
        "path": fields.text("path"),
        "bytes": fields.integer("bytes", least=1),
        "checksum": fields.checksum("checksum"),
    }
