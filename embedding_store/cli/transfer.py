"""Vectors in and out: Parquet and npy files into a snapshot, a snapshot into Parquet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedding_store.errors import InvalidArgumentError, InvalidIdsError, InvalidVectorsError
from embedding_store.read.snapshot import Snapshot
from embedding_store.series import Series
from embedding_store.storage.replacing import replacing
from embedding_store.store import EmbeddingStore

CHUNK = 65_536  # rows read, converted and written at once

Progress = Callable[[int, int], None]
"""Called with the rows done and the rows in all."""
Chunk = tuple[Any, np.ndarray]  # ids int64 [N] or a string array [N]; vectors float [N, D]


class VectorFiles:
    """Files of ids and vectors, opened and their columns checked; rows are read by `chunks`.

    Args:
        paths: Parquet files with an id and a vector column, or one `.npy` file of vectors, float [N, D].
        ids: for `.npy` vectors, the `.npy` file of their ids, int64 [N].
        id_column, vector_column: column names in Parquet files. Ids are integers or strings, vectors lists of floats of
            one length.

    Raises:
        InvalidArgumentError: a file or column that is not there or has another type.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        ids: Path | None = None,
        id_column: str = "id",
        vector_column: str = "vector",
    ) -> None:
        if not paths:
            raise InvalidArgumentError("paths is empty: name at least one .parquet file, or one .npy file")
        for path in [*paths, *([ids] if ids else [])]:
            if not path.is_file():
                raise InvalidArgumentError(f"{path} is not a file: name existing .parquet or .npy files")
        self._parts: list[_ParquetPart] | list[_NpyPart]
        if paths[0].suffix == ".npy":
            if len(paths) > 1 or ids is None:
                raise InvalidArgumentError(
                    f"{paths[0]}: give one .npy file of vectors and --ids, the .npy of their ids"
                )
            self._parts = [_NpyPart(paths[0], ids)]
        elif ids is not None:
            raise InvalidArgumentError(f"ids is {ids}, but {paths[0]} is not .npy: Parquet files hold their own ids")
        else:
            self._parts = [_ParquetPart(path, id_column, vector_column) for path in paths]
        kinds = {(part.dim, part.text) for part in self._parts}
        if len(kinds) > 1:
            found = "; ".join(f"{part.path}: dim {part.dim}, {part.id_kind} ids" for part in self._parts)
            raise InvalidArgumentError(f"the files differ: {found}. Import what belongs together")

    @property
    def dim(self) -> int:
        """D."""
        return self._parts[0].dim

    @property
    def id_kind(self) -> str:
        """`int64` or `text`, as for `store.create(..., ids=...)`."""
        return self._parts[0].id_kind

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(part.rows for part in self._parts)

    def chunks(self) -> Iterator[Chunk]:
        """Ids and vectors, at most `CHUNK` rows at a time.

        Raises:
            InvalidIdsError, InvalidVectorsError: naming file and row.
        """
        for part in self._parts:
            yield from part.chunks()


def import_vectors(
    series: Series,
    files: VectorFiles,
    *,
    as_of: int | datetime,
    space: str,
    duplicates: str = "error",
    progress: Progress = lambda done, total: None,
) -> Snapshot:
    """Write all rows of `files` as the next snapshot of `series`; nothing is visible unless all of them are taken.

    Raises:
        InvalidArgumentError: the dimension or the kind of ids is not the series'.
        StoreError: as `Series.write` and the writer raise it.
    """
    if files.dim != series.dim or files.id_kind != series.ids:
        has, wants = f"dim {files.dim}, {files.id_kind} ids", f"dim {series.dim}, {series.ids} ids"
        raise InvalidArgumentError(f"the files have {has}, series {series.name!r} {wants}: import into another series")
    with series.write(as_of=as_of, space=space, duplicates=duplicates) as writer:
        for ids, vectors in files.chunks():
            writer.append(ids, vectors)
            progress(writer.rows, files.rows)
    return writer.snapshot


def import_new_or_next(
    store: EmbeddingStore,
    name: str,
    files: VectorFiles,
    *,
    dtype: str,
    as_of: int | datetime,
    space: str,
    duplicates: str,
    progress: Progress,
) -> Snapshot:
    """As `import_vectors`; a series that does not exist is made, and stays only if the import succeeds."""
    made = name not in store.list()
    series = store.create(name, dim=files.dim, dtype=dtype, ids=files.id_kind) if made else store.series(name)
    try:
        return import_vectors(series, files, as_of=as_of, space=space, duplicates=duplicates, progress=progress)
    except BaseException:
        if made:
            store.drop_empty(name)
        raise


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    try:
        return pq.ParquetWriter(path, schema)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise InvalidArgumentError(f"{path.parent} takes no file ({reason}): choose another folder") from None


def export_parquet(snapshot: Snapshot, path: Path, *, progress: Progress = lambda done, total: None) -> None:
    """Write a snapshot as one Parquet file: `id` int64, `vector` float32 lists; text ids too, as `key`. Stored order.

    The file appears when it is whole. Memory: one chunk.

    Raises:
        InvalidArgumentError: there is something at `path` already, or no folder to put it into.
        CorruptStoreError: of the class that fits, naming the file.
    """
    if path.exists():
        raise InvalidArgumentError(f"{path} exists: choose another name, or delete it first")
    if not path.parent.is_dir():
        raise InvalidArgumentError(f"{path.parent} is not a folder: make it first")
    columns = [("id", pa.int64()), *([("key", pa.string())] if snapshot.manifest.ids == "text" else [])]
    schema = pa.schema([*columns, ("vector", pa.list_(pa.float32(), snapshot.dim))])
    done = 0
    with replacing(path) as temporary, _writer(temporary, schema) as writer:
        for rows in snapshot.batches(CHUNK):
            flat = pa.array(rows.vectors.reshape(-1).numpy())
            keys = [] if rows.keys is None else [rows.keys]
            arrays = [pa.array(rows.ids.numpy()), *keys, pa.FixedSizeListArray.from_arrays(flat, snapshot.dim)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
            done += len(rows.ids)
            progress(done, snapshot.rows)


class _ParquetPart:
    """One Parquet file."""

    def __init__(self, path: Path, id_column: str, vector_column: str) -> None:
        self.path = path
        self._columns = (id_column, vector_column)
        try:
            self._file = pq.ParquetFile(path)
        except (pa.ArrowException, OSError) as error:
            raise InvalidArgumentError(f"{path} is not a readable Parquet file ({error})") from None
        schema = self._file.schema_arrow
        for name in self._columns:
            if name not in schema.names:
                raise InvalidArgumentError(f"{path} has no column {name!r}; its columns: {', '.join(schema.names)}")
        ids, vectors = schema.field(id_column).type, schema.field(vector_column).type
        self.text = pa.types.is_string(ids) or pa.types.is_large_string(ids)
        if not self.text and not pa.types.is_integer(ids):
            raise InvalidArgumentError(f"{path}: column {id_column!r} is {ids}; ids are integers or strings")
        lists = pa.types.is_fixed_size_list(vectors) or pa.types.is_list(vectors) or pa.types.is_large_list(vectors)
        if not lists or not pa.types.is_floating(vectors.value_type):
            raise InvalidArgumentError(f"{path}: column {vector_column!r} is {vectors}; vectors are lists of floats")
        self.rows = self._file.metadata.num_rows
        self.dim = vectors.list_size if pa.types.is_fixed_size_list(vectors) else self._first_length()

    @property
    def id_kind(self) -> str:
        """`int64` or `text`."""
        return "text" if self.text else "int64"

    def chunks(self) -> Iterator[Chunk]:
        """Rows in the file's order."""
        start = 0
        for batch in self._file.iter_batches(batch_size=CHUNK, columns=list(self._columns)):
            ids, vectors = (batch.column(name) for name in self._columns)
            self._check(ids.is_valid(), start, InvalidIdsError, "has no id")
            self._check(vectors.is_valid(), start, InvalidVectorsError, "has no vector")
            if not pa.types.is_fixed_size_list(vectors.type):
                lengths = pc.equal(pc.list_value_length(vectors), self.dim)
                self._check(lengths, start, InvalidVectorsError, f"has a vector of another length than {self.dim}")
            values = vectors.flatten()
            if values.null_count:
                row = start + int(values.is_null().to_numpy(zero_copy_only=False).argmax()) // self.dim
                raise InvalidVectorsError(
                    f"{self.path}: row {row} has a vector with a null in it: fill or leave it out"
                )
            yield self._ids(ids, start), values.to_numpy(zero_copy_only=False).reshape(-1, self.dim)
            start += len(batch)

    def _ids(self, ids: pa.Array, start: int) -> Any:
        if self.text:
            return ids
        try:
            return ids.cast(pa.int64()).to_numpy()
        except pa.ArrowInvalid as error:  # uint64 beyond int64
            message = (
                f"rows {start} to {start + len(ids) - 1} have an id beyond int64 ({error}): map your ids into int64"
            )
            raise InvalidIdsError(f"{self.path}: {message}") from None

    def _check(self, valid: pa.Array, start: int, error: type[Exception], what: str) -> None:
        if not _all_valid(valid):
            row = start + int(np.argmin(valid.fill_null(False).to_numpy(zero_copy_only=False)))
            raise error(f"{self.path}: row {row} {what}: fill or leave it out")

    def _first_length(self) -> int:
        for batch in self._file.iter_batches(batch_size=1, columns=[self._columns[1]]):
            first = batch.column(0)[0].as_py()
            if first:
                return len(first)
        message = "its vector column has no fixed length and its first row no vector: the dimension cannot be told"
        raise InvalidArgumentError(f"{self.path}: {message}")


class _NpyPart:
    """Two `.npy` files: vectors and ids, mapped."""

    text = False
    id_kind = "int64"

    def __init__(self, path: Path, ids: Path) -> None:
        self.path = path
        self._vectors, self._ids = (_load_npy(file) for file in (path, ids))
        if self._vectors.ndim != 2 or self._vectors.dtype.kind != "f" or self._vectors.shape[1] == 0:
            raise InvalidArgumentError(
                f"{path} holds {self._vectors.dtype} {list(self._vectors.shape)}: save float [N, D]"
            )
        if self._ids.shape != self._vectors.shape[:1] or self._ids.dtype != np.int64:
            wanted = f"save int64 [{len(self._vectors)}]"
            raise InvalidArgumentError(f"{ids} holds {self._ids.dtype} {list(self._ids.shape)}: {wanted}")
        self.rows, self.dim = self._vectors.shape

    def chunks(self) -> Iterator[Chunk]:
        """Rows in the file's order."""
        for start in range(0, self.rows, CHUNK):
            stop = start + CHUNK
            yield np.array(self._ids[start:stop]), np.array(self._vectors[start:stop])


def _all_valid(valid: pa.Array) -> bool:
    """Whether a Boolean array holds no false and no null."""
    return valid.null_count == 0 and valid.true_count == len(valid)


def _load_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InvalidArgumentError(f"{path} is not a readable .npy file ({error})") from None
