"""A snapshot's manifest: all that is known of it but the vectors. A snapshot exists exactly when its manifest does."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from embedding_store import documents
from embedding_store.documents import Fields
from embedding_store.dtypes import DTYPES
from embedding_store.errors import FileFormatError, NewerFormatError

INDEX_KINDS = ("sorted",)
_FILE_NAME = re.compile(r"manifests/(\d{8,})\.json")
_DATA_PATH = re.compile(r"(data/[a-z0-9-]+)/[a-z0-9][a-z0-9.-]*")


def manifest_path(version: int) -> str:
    """Where the manifest of a version lies, relative to the series."""
    return f"manifests/{version:08d}.json"


def manifest_version(path: str) -> int | None:
    """The version whose manifest lies at `path`; None for any other file."""
    match = _FILE_NAME.fullmatch(path)
    return int(match[1]) if match else None


def data_folder(path: str) -> str:
    """The folder `data/<uuid>` that one writer filled."""
    return path.rpartition("/")[0]


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Statistics over the vectors as they are stored."""

    mean_norm: float
    """Mean L2 norm; 0 without rows."""
    mean: tuple[float, ...]
    """Mean vector, [D]; zeros without rows."""
    min_id: int | None
    """Least id; None without rows."""
    max_id: int | None
    """Greatest id; None without rows."""


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file that a manifest names."""

    path: str
    """Relative to the series' folder."""
    bytes: int
    """Size."""
    checksum: str
    """Of the whole file."""


@dataclass(frozen=True, kw_only=True)
class DataFile(StoredFile):
    """An Arrow IPC file with some of the rows."""

    rows: int
    """At least 1."""


@dataclass(frozen=True, kw_only=True)
class IndexFile(StoredFile):
    """The file that leads from an id to its row."""

    kind: str
    """`sorted`: ids in ascending order, each with its row number."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One snapshot. Row numbers run through the data files in the order in which they are listed."""

    series: str
    """Name of the series."""
    version: int
    """1, 2, 3, ...: unique within the series, never reused."""
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
    rows: int
    """Number of ids."""
    statistics: Statistics
    """Statistics over all rows."""
    data: tuple[DataFile, ...]
    """The rows."""
    index: IndexFile
    """From ids to rows."""

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """All files but the manifest itself."""
        return (*self.data, self.index)

    @property
    def total_bytes(self) -> int:
        """Size of all files but the manifest itself."""
        return sum(file.bytes for file in self.files)

    def encode(self) -> bytes:
        """The manifest's file."""
        return documents.encode("manifest", asdict(self))

    @staticmethod
    def decode(data: bytes, path: str) -> Manifest:
        """Read a manifest's file; `path` is for messages.

        Raises:
            CorruptStoreError: of the class that fits (documents.decode); contradictions are a FileFormatError.
        """
        fields = documents.decode(data, "manifest", path)
        manifest = Manifest(
            series=fields.text("series"),
            version=fields.integer("version", least=1),
            as_of=fields.integer("as_of"),
            space=fields.text("space"),
            created=fields.integer("created"),
            dim=fields.integer("dim", least=1),
            dtype=fields.text("dtype"),
            rows=fields.integer("rows", least=0),
            statistics=_statistics(fields.object("statistics")),
            data=tuple(_data_file(entry) for entry in fields.objects("data")),
            index=_index_file(fields.object("index")),
        )
        manifest._check(path)
        return manifest

    def _check(self, path: str) -> None:
        if self.dtype not in DTYPES:
            raise NewerFormatError(path, f"dtype is {self.dtype!r}, this package knows {', '.join(DTYPES)}: upgrade")
        if self.index.kind not in INDEX_KINDS:
            known = ", ".join(INDEX_KINDS)
            raise NewerFormatError(path, f"index.kind is {self.index.kind!r}, this package knows {known}: upgrade")
        if sum(file.rows for file in self.data) != self.rows:
            raise FileFormatError(
                path, f"rows is {self.rows}, but its data files hold {sum(f.rows for f in self.data)}"
            )
        if len(self.statistics.mean) != self.dim:
            raise FileFormatError(path, f"statistics.mean has {len(self.statistics.mean)} values, dim is {self.dim}")
        for file in self.files:
            if not _DATA_PATH.fullmatch(file.path):  # a hostile manifest must not lead out of the series
                raise FileFormatError(path, f"names the file {file.path!r}, which is not data/<folder>/<name>")


def _statistics(fields: Fields) -> Statistics:
    return Statistics(
        mean_norm=fields.number("mean_norm"),
        mean=fields.numbers("mean"),
        min_id=fields.optional_integer("min_id"),
        max_id=fields.optional_integer("max_id"),
    )


def _data_file(fields: Fields) -> DataFile:
    return DataFile(**_stored_file(fields), rows=fields.integer("rows", least=1))


def _index_file(fields: Fields) -> IndexFile:
    return IndexFile(**_stored_file(fields), kind=fields.text("kind"))


def _stored_file(fields: Fields) -> dict[str, Any]:
    return {
        "path": fields.text("path"),
        "bytes": fields.integer("bytes", least=1),
        "checksum": fields.text("checksum"),
    }
