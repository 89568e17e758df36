"""Writing one snapshot: data files as rows come in, then the index, and the manifest last.

Nothing is visible before the manifest is put, and the manifest is put only if its version is still free. Of several
writers at once each gets a version of its own.
"""

from __future__ import annotations

import time
import uuid
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from embedding_store import files, times
from embedding_store.dtypes import Dtype, Encoded, decode, encode
from embedding_store.errors import (
    AsOfDecreasedError,
    DuplicateIdsError,
    FileSizeError,
    InvalidArgumentError,
    InvalidIdsError,
    InvalidVectorsError,
    WriterClosedError,
)
from embedding_store.manifest import DataFile, IndexFile, Manifest, Statistics, StoredFile, manifest_path
from embedding_store.snapshot import Snapshot, latest_manifest
from embedding_store.storage import LocalStorage

DUPLICATES = ("error", "last")
FILE_BYTES = 64 << 20  # of a data file, and of the writer's buffer
SLAB = 16_384  # rows converted at once: bounds temporary copies
FLUSH_SECONDS = 600.0  # a slow writer shows at least this often that it lives: see CLEAN_GRACE in series.py


class _Part(NamedTuple):
    """A data file written so far."""

    file: DataFile
    ids: Tensor  # int64 [rows]
    norm_sum: float
    vector_sum: Tensor  # float64 [D]


class SnapshotWriter:
    """Streams one snapshot, made by `Series.write`; use it in a `with` block.

    Memory: one data file's rows (64 MiB) and 8 bytes a row, at the end some 45 bytes a row while the index is sorted.
    """

    def __init__(
        self,
        storage: LocalStorage,
        *,
        series: str,
        dim: int,
        dtype: Dtype,
        as_of: int,
        space: str,
        duplicates: str = "error",
        rows_per_file: int | None = None,
    ) -> None:
        if not isinstance(space, str) or not space:
            raise InvalidArgumentError(f"space is {space!r}: name the vector space, say 'ctr-1'")
        if duplicates not in DUPLICATES:
            raise InvalidArgumentError(f"duplicates is {duplicates!r}; use one of {', '.join(DUPLICATES)}")
        if rows_per_file is not None and rows_per_file < 1:
            raise InvalidArgumentError(f"rows_per_file is {rows_per_file}; use 1 or more, or None for files of 64 MiB")
        self._storage = storage
        self._series, self._dim, self._dtype = series, dim, dtype
        self._as_of, self._space, self._duplicates = as_of, space, duplicates
        self._check_as_of(latest_manifest(storage))
        self._folder = f"data/{uuid.uuid4().hex}"
        self._rows_per_file = rows_per_file or max(1, FILE_BYTES // dtype.row_bytes(dim))
        self._buffer_ids = torch.empty(self._rows_per_file, dtype=torch.int64)
        self._buffer = Encoded.empty(self._rows_per_file, dim, dtype)
        self._buffered = 0
        self._flushed_at = time.monotonic()
        self._parts: list[_Part] = []
        self._id_range: tuple[int, int] | None = None
        self._state = "new"
        self._snapshot: Snapshot | None = None

    @property
    def rows(self) -> int:
        """Rows appended so far, duplicates included."""
        return sum(part.file.rows for part in self._parts) + self._buffered

    @property
    def snapshot(self) -> Snapshot:
        """What was published. Raises WriterClosedError before the block has ended cleanly."""
        if self._snapshot is None:
            raise WriterClosedError("nothing is published yet: the snapshot exists after the writer's `with` block")
        return self._snapshot

    def append(
        self,
        ids: Tensor | np.ndarray,  # int64 [N]
        vectors: Tensor | np.ndarray,  # float [N, D]
    ) -> None:
        """Add rows. Either all of them are taken or, with an error, none.

        Raises:
            InvalidIdsError: not int64 [N].
            InvalidVectorsError: not float [N, D], or a value that the series' dtype cannot hold: NaN, infinity or too
                large; the message names the id.
            WriterClosedError: outside the `with` block.
        """
        if self._state != "open":
            raise WriterClosedError(f"the writer is {self._state}: append inside `with series.write(...) as writer:`")
        ids, vectors = _checked(ids, vectors, self._dim, self._dtype)
        self._state = "broken"  # until all rows are taken: a full disk may cut them short
        start = 0
        while start < len(ids):
            count = min(SLAB, len(ids) - start, self._rows_per_file - self._buffered)
            self._buffer_ids[self._buffered : self._buffered + count].copy_(ids[start : start + count])
            self._buffer.copy_(self._buffered, encode(vectors[start : start + count], self._dtype))
            self._buffered += count
            start += count
            if self._buffered == self._rows_per_file or time.monotonic() - self._flushed_at > FLUSH_SECONDS:
                self._flush()
        self._state = "open"

    def __enter__(self) -> SnapshotWriter:
        if self._state != "new":
            raise WriterClosedError(f"the writer is {self._state}: a writer writes one snapshot, get another one")
        self._state = "open"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        state, self._state = self._state, "closed"
        try:
            if kind is None and state == "broken":
                raise WriterClosedError("an append failed half-way: nothing is published, write the snapshot again")
            if kind is None:
                self._flush()
                index = self._write_index()
                self._storage.sync(self._folder)
                self._check_files(index)
        except BaseException:
            self._discard()
            raise
        if kind is None:
            self._publish(index)
        else:
            self._discard()

    def _flush(self) -> None:
        """Write the buffered rows as a data file."""
        count, self._buffered = self._buffered, 0
        self._flushed_at = time.monotonic()
        if count:
            name = f"vectors-{len(self._parts):05d}.arrow"
            self._parts.append(self._write_part(name, self._buffer_ids[:count].clone(), self._buffer.slice(0, count)))

    def _write_part(self, name: str, ids: Tensor, encoded: Encoded) -> _Part:
        file = files.write_data(self._storage, f"{self._folder}/{name}", ids, encoded, self._dim, self._dtype)
        norm_sum, vector_sum = 0.0, torch.zeros(self._dim, dtype=torch.float64)
        for start in range(0, encoded.rows, SLAB):
            vectors = decode(encoded.slice(start, start + SLAB), self._dim, self._dtype)
            norm_sum += float(torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64).sum())
            vector_sum += vectors.sum(0, dtype=torch.float64)
        return _Part(file, ids, norm_sum, vector_sum)

    def _write_index(self) -> IndexFile:
        """Sort the ids, settle duplicates and write the index."""
        ids = torch.cat([part.ids for part in self._parts]) if self._parts else torch.empty(0, dtype=torch.int64)
        ids, rows = ids.sort(stable=True)  # equal ids stay in the order in which they were appended
        last = torch.ones(len(ids), dtype=torch.bool)
        torch.ne(ids[1:], ids[:-1], out=last[:-1])
        if not bool(last.all()):
            if self._duplicates == "error":
                repeated = ids[~last].unique()
                shown = ", ".join(map(str, repeated[:5].tolist())) + (", ..." if len(repeated) > 5 else "")
                remedy = 'append each id once, or write with duplicates="last"'
                raise DuplicateIdsError(f"{len(repeated)} ids were appended more than once ({shown}): {remedy}")
            keep = torch.zeros(len(ids), dtype=torch.bool)
            ids, rows = ids[last], rows[last]
            keep[rows] = True
            self._drop_rows(keep)
            rows = (keep.cumsum(0) - 1)[rows]
        self._id_range = (int(ids[0]), int(ids[-1])) if len(ids) else None
        return files.write_index(self._storage, f"{self._folder}/index.arrow", ids, rows)

    def _drop_rows(self, keep: Tensor) -> None:
        """Rewrite the data files without the rows that `keep`, bool [rows], leaves out: other readers of the files
        must see each id once."""
        parts: list[_Part] = []
        for part, kept in zip(self._parts, keep.split([part.file.rows for part in self._parts]), strict=True):
            if bool(kept.all()):
                parts.append(part)
                continue
            if bool(kept.any()):
                ids, encoded = files.read_data(self._storage, part.file, self._dim, self._dtype)
                name = part.file.path.rpartition("/")[2].replace(".arrow", "-distinct.arrow")
                parts.append(self._write_part(name, ids[kept], encoded.select(kept)))
            self._storage.delete(part.file.path)
        self._parts = parts

    def _check_files(self, index: IndexFile) -> None:
        """A writer that was silent for longer than the grace period may have been cleaned away."""
        written: list[StoredFile] = [*(part.file for part in self._parts), index]
        for file in written:
            size = self._storage.size(file.path)
            if size != file.bytes:
                raise FileSizeError(self._storage.locate(file.path), f"has {size} bytes, {file.bytes} were written")

    def _publish(self, index: IndexFile) -> None:
        """Put the manifest under the next free version: the moment at which the snapshot comes to exist.

        If putting fails in another way than by losing the race, whether the manifest exists is not known: the data
        stay, and `clean` decides.
        """
        while self._snapshot is None:
            try:
                latest = latest_manifest(self._storage)
                self._check_as_of(latest)
                manifest = self._manifest(1 if latest is None else latest.version + 1, index)
            except BaseException:
                self._discard()
                raise
            with suppress(FileExistsError):  # another writer was faster: the next version, if as_of still allows it
                self._storage.put_new(manifest_path(manifest.version), manifest.encode())
                self._snapshot = Snapshot(self._storage, manifest)

    def _manifest(self, version: int, index: IndexFile) -> Manifest:
        rows = sum(part.file.rows for part in self._parts)
        mean = sum((part.vector_sum for part in self._parts), torch.zeros(self._dim, dtype=torch.float64)) / max(
            rows, 1
        )
        least, greatest = self._id_range or (None, None)
        return Manifest(
            series=self._series,
            version=version,
            as_of=self._as_of,
            space=self._space,
            created=times.now(),
            dim=self._dim,
            dtype=self._dtype.name,
            rows=rows,
            statistics=Statistics(
                mean_norm=sum(part.norm_sum for part in self._parts) / max(rows, 1),
                mean=tuple(mean.tolist()),
                min_id=least,
                max_id=greatest,
            ),
            data=tuple(part.file for part in self._parts),
            index=index,
        )

    def _check_as_of(self, latest: Manifest | None) -> None:
        if latest is not None and self._as_of < latest.as_of:
            raise AsOfDecreasedError(
                f"as_of is {self._as_of} ({times.to_text(self._as_of)}), but version {latest.version} of "
                f"{self._series!r} is as of {latest.as_of} ({times.to_text(latest.as_of)}): as_of never decreases "
                f"within a series, write a backfill to a series of its own"
            )

    def _discard(self) -> None:
        with suppress(OSError):  # the error that led here matters more; `clean` takes what stays
            self._storage.delete_folder(self._folder)


def _checked(ids: Tensor | np.ndarray, vectors: Tensor | np.ndarray, dim: int, dtype: Dtype) -> tuple[Tensor, Tensor]:
    """ids int64 [N] and vectors float [N, D] as tensors, known to fit."""
    ids, vectors = _tensor(ids), _tensor(vectors)
    if ids.dtype != torch.int64 or ids.dim() != 1:
        raise InvalidIdsError(f"ids are {ids.dtype} {list(ids.shape)}: give int64 [N], say ids.to(torch.int64)")
    if not vectors.is_floating_point() or tuple(vectors.shape) != (len(ids), dim):
        wanted = f"float [{len(ids)}, {dim}]"
        raise InvalidVectorsError(f"vectors are {vectors.dtype} {list(vectors.shape)}: give {wanted}, one row an id")
    if len(ids) == 0:
        return ids, vectors
    least, greatest = (float(x) for x in torch.aminmax(vectors))
    if not (-dtype.limit <= least and greatest <= dtype.limit):  # NaN is neither
        row = int((~(vectors.abs() <= dtype.limit)).any(1).nonzero()[0])
        value = float(vectors[row][~(vectors[row].abs() <= dtype.limit)][0])
        reason = f"{dtype.name} holds finite values up to {dtype.limit:.6g}"
        raise InvalidVectorsError(f"the vector of id {int(ids[row])} (row {row}) holds {value}: {reason}")
    return ids, vectors


def _tensor(array: Tensor | np.ndarray) -> Tensor:
    if isinstance(array, np.ndarray):
        return torch.from_numpy(np.require(array, requirements=["C", "W"]))  # torch takes no read-only or strided array
    return torch.as_tensor(array).detach()
