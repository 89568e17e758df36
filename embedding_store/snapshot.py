"""One version of a series: immutable ids -> vectors."""

from __future__ import annotations

import torch

from embedding_store import files
from embedding_store.dtypes import Dtype, Encoded, dtype_named
from embedding_store.errors import FileFormatError, InvalidIndexError
from embedding_store.manifest import DataFile, Manifest, Statistics, manifest_path, manifest_version
from embedding_store.storage import LocalStorage
from embedding_store.table import Table
from embedding_store.tags import Tags


class Snapshot:
    """A published snapshot, got from a Series. Its manifest is in memory; the vectors are read by `load`."""

    def __init__(self, storage: LocalStorage, manifest: Manifest) -> None:
        self._storage = storage
        self.manifest = manifest

    @property
    def series(self) -> str:
        """Name of the series."""
        return self.manifest.series

    @property
    def version(self) -> int:
        """1, 2, 3, ..."""
        return self.manifest.version

    @property
    def as_of(self) -> int:
        """Event time up to which the vectors know the world, ms since the epoch."""
        return self.manifest.as_of

    @property
    def space(self) -> str:
        """Vectors of two spaces must not be compared or averaged."""
        return self.manifest.space

    @property
    def rows(self) -> int:
        """Number of ids."""
        return self.manifest.rows

    @property
    def dim(self) -> int:
        """D."""
        return self.manifest.dim

    @property
    def dtype(self) -> str:
        """How vectors are stored; lookups give float32."""
        return self.manifest.dtype

    @property
    def statistics(self) -> Statistics:
        """Mean norm, mean vector, least and greatest id."""
        return self.manifest.statistics

    @property
    def tags(self) -> tuple[str, ...]:
        """Names of the tags that point here now, read anew at each access."""
        return tuple(name for name, version in Tags(self._storage).all().items() if version == self.version)

    def load(self, device: torch.device | str = "cpu", *, verify: bool = False) -> Table:
        """A table for lookups: mapped from the files on the CPU, copied elsewhere.

        Always checked: that every file is there, with its size, magic, columns and row count, and all of the index
        (checksum, order, bounds), which costs a fraction of a millisecond a megabyte of index. The vectors' checksums
        are left to `verify=True`: it reads every byte, where a mapped table reads the rows it is asked for.

        Raises:
            CorruptStoreError: of the class that fits, naming the file.
        """
        if verify:
            self.verify()
        dtype = dtype_named(self.dtype)
        index_ids, index_rows = files.read_index(self._storage, self.manifest.index, self.rows)
        segments = [files.read_data(self._storage, file, self.dim, dtype)[1] for file in self.manifest.data]
        if torch.device(device).type == "cpu":
            return Table(self, index_ids, index_rows, segments)
        vectors = _gathered(segments, self.rows, self.dim, dtype, device)
        return Table(self, index_ids.to(device), index_rows.to(device), [vectors])

    def verify(self) -> None:
        """Read everything: checksum of every file, and that index and data files agree on every id.

        Raises:
            CorruptStoreError: of the class that fits, naming the file.
        """
        index_ids, index_rows = files.read_index(self._storage, self.manifest.index, self.rows)
        ids_by_row = torch.empty_like(index_ids)
        ids_by_row[index_rows] = index_ids
        if not torch.equal(ids_by_row[index_rows], index_ids):
            where = self._storage.locate(self.manifest.index.path)
            raise InvalidIndexError(where, "points to a row twice: write the snapshot again")
        start = 0
        for file in self.manifest.data:
            self._verify_data(file, ids_by_row[start : start + file.rows])
            start += file.rows

    def _verify_data(self, file: DataFile, indexed: torch.Tensor) -> None:
        files.verify_checksum(self._storage, file)
        ids, _ = files.read_data(self._storage, file, self.dim, dtype_named(self.dtype))
        if not torch.equal(ids, indexed):
            row = int((ids != indexed).nonzero()[0])
            where = self._storage.locate(self.manifest.index.path)
            message = f"leads from id {int(indexed[row])} to row {row} of {file.path}, which is id {int(ids[row])}"
            raise InvalidIndexError(where, f"{message}: write the snapshot again")

    def __repr__(self) -> str:
        return f"Snapshot({self.series!r}, version={self.version}, as_of={self.as_of}, rows={self.rows})"


def versions(storage: LocalStorage) -> list[int]:
    """Versions that exist in a series' storage, ascending."""
    found = (manifest_version(f"manifests/{name}") for name in storage.names("manifests"))
    return sorted(version for version in found if version is not None)


def read_manifest(storage: LocalStorage, version: int) -> Manifest:
    """The manifest of a version. Raises MissingFileError, or what Manifest.decode raises."""
    path = manifest_path(version)
    manifest = Manifest.decode(storage.read(path), storage.locate(path))
    if manifest.version != version:
        raise FileFormatError(storage.locate(path), f"version is {manifest.version}, its name says {version}")
    return manifest


def latest_manifest(storage: LocalStorage) -> Manifest | None:
    """The manifest of the newest version; None before the first."""
    found = versions(storage)
    return read_manifest(storage, found[-1]) if found else None


def _gathered(segments: list[Encoded], rows: int, dim: int, dtype: Dtype, device: torch.device | str) -> Encoded:
    """All segments as one on `device`, without a second copy on the host."""
    vectors = Encoded.empty(rows, dim, dtype, device)
    start = 0
    for segment in segments:
        vectors.copy_(start, segment)
        start += segment.rows
    return vectors
