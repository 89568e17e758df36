"""One version of a series: immutable ids -> vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from embedding_store import times
from embedding_store.dtypes import DTYPES, decode
from embedding_store.errors import InvalidArgumentError, MissingFileError, VersionExpiredError
from embedding_store.format.files import mapped_file
from embedding_store.format.index import HEADER_BYTES, Header
from embedding_store.format.manifest import Manifest, Statistics
from embedding_store.history.tags import Tags
from embedding_store.history.tombstones import expired_at
from embedding_store.native.mapping import Mapping
from embedding_store.read.table import Table
from embedding_store.scan.index import IndexReader
from embedding_store.scan.rows import live_rows, read_rows, row_format
from embedding_store.scan.verify import verify as check_all
from embedding_store.storage.base import Storage

SCALE_STRIDE = 4  # bytes from one row's scale to the next one's


class Batch(NamedTuple):
    """Some rows of a snapshot."""

    ids: Tensor  # int64 [N]
    vectors: Tensor  # float32 [N, D]
    keys: pa.StringArray | None  # [N], series of text only


class Snapshot:
    """A published snapshot, got from a Series. Its manifest is in memory; the vectors are read by `load`."""

    def __init__(self, storage: Storage, manifest: Manifest) -> None:
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
    def schema(self) -> int:
        """Number of the series' schema that `dim` and `dtype` are of."""
        return self.manifest.schema

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
        """How vectors are stored."""
        return self.manifest.dtype

    @property
    def statistics(self) -> Statistics:
        """Mean norm, mean vector, least and greatest id."""
        return self.manifest.statistics

    @property
    def tags(self) -> tuple[str, ...]:
        """Names of the tags that point here now, read anew at each access."""
        return tuple(name for name, version in Tags(self._storage).all().items() if version == self.version)

    def load(
        self,
        device: torch.device | str = "cpu",
        *,
        verify: bool = False,
        gpu_bytes: int | None = None,
        hot_ids: Tensor | None = None,  # int64 [N]
    ) -> Table:
        """A table for lookups: mapped from the files on the CPU, copied to another device.

        Nothing is read but the index's header and the checksums. On the CPU each block of 64 KiB is checked when a
        lookup first touches it: changed bytes are an error then, never a wrong vector. A copy to a device checks all.

        Args:
            device: where lookups take place.
            verify: check everything now.
            gpu_bytes: keep only so many bytes of rows in the device's memory and the rest in pinned host memory.
            hot_ids: with `gpu_bytes`, ids whose rows should be in the device's memory, the most important one first.

        Raises:
            CorruptStoreError: of the class that fits, naming the file.
            VersionExpiredError: its files are gone because it was expired.
        """
        mapping, header = self._map()
        if verify:
            check_all(self._storage, self.manifest, mapping)
        layout = table_layout(self.manifest, mapping.starts, header)
        if torch.device(device).type == "cpu" and gpu_bytes is None:
            return Table(self.manifest, mapping.storage, layout, mapping=mapping)
        from embedding_store.read.tiered import TieredTable
        from embedding_store.read.upload import upload, upload_tiered  # not needed where only the CPU serves

        dtype, index_path = DTYPES[self.dtype], self._storage.locate(self.manifest.index.path)
        if gpu_bytes is None:
            copy = upload(mapping, layout, dim=self.dim, dtype=dtype, device=device, index_path=index_path)
            return Table(self.manifest, *copy)
        tiered = upload_tiered(
            mapping,
            layout,
            dim=self.dim,
            dtype=dtype,
            device=device,
            gpu_bytes=gpu_bytes,
            hot_ids=hot_ids,
            index_path=index_path,
        )
        return TieredTable(self.manifest, tiered)

    def verify(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Read everything: checksums, that Arrow finds the columns where the manifest says, and that index and data
        files agree on every id. `progress` is called with the bytes read and the bytes in all.

        Raises:
            CorruptStoreError: of the class that fits, naming the file.
            VersionExpiredError: its files are gone because it was expired.
        """
        check_all(self._storage, self.manifest, self._map()[0], progress)

    def batches(self, rows: int = 65_536) -> Iterator[Batch]:
        """All vectors, at most `rows` at a time, in stored order. Memory: one batch; what is read is checked.

        Raises:
            CorruptStoreError: of the class that fits, naming the file.
        """
        if rows < 1:
            raise InvalidArgumentError(f"rows is {rows}; use 1 or more")
        form = row_format(self.manifest)
        alive = live_rows(self._storage, self.manifest)
        for part in read_rows(self._storage, self.manifest.data, form, alive=alive, chunk=rows):
            keys = None if part.keys is None else part.keys.cast(pa.string())
            yield Batch(part.ids, decode(part.encoded, self.dim, form.dtype), keys)

    def _map(self) -> tuple[Mapping, Header]:
        """The files side by side, the index first, and the index's header."""
        try:
            with IndexReader(self._storage, self.manifest.index, self.rows) as index:
                header = index.header
            files = (self.manifest.index, *self.manifest.data)
            return Mapping.open([mapped_file(self._storage, file) for file in files]), header
        except MissingFileError:
            expired = expired_at(self._storage, self.version)
            if expired is None:
                raise
            when = times.to_text(expired)
            raise VersionExpiredError(f"version {self.version} of {self.series!r} was expired on {when}") from None

    def __repr__(self) -> str:
        return f"Snapshot({self.series!r}, version={self.version}, as_of={self.as_of}, rows={self.rows})"


def table_layout(manifest: Manifest, starts: Sequence[int], header: Header) -> Tensor:
    """Where a table's parts lie in its storage, int64 [8 + 4 * segments], see native/ops.py; `starts`: of the files."""
    first = [starts[0] + HEADER_BYTES, header.home_buckets, header.total_buckets, header.seed, len(manifest.segments)]
    numbers = [*first, SCALE_STRIDE, 0, 0]
    for file, start in zip(manifest.data, starts[1:], strict=True):
        for segment in file.segments:
            columns = (segment.vector, segment.scale, segment.offset)
            numbers += [*(-1 if column is None else start + column for column in columns), segment.rows]
    return torch.tensor(numbers, dtype=torch.int64)
