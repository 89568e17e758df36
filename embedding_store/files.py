"""The large files: Arrow IPC with one uncompressed record batch each, written as a stream and read as a memory map."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from embedding_store.documents import FORMAT_VERSION, checksum
from embedding_store.dtypes import Dtype, Encoded
from embedding_store.errors import ChecksumError, FileFormatError, FileSizeError, InvalidIndexError
from embedding_store.manifest import DataFile, IndexFile, StoredFile
from embedding_store.storage import LocalStorage

_ARROW_TYPES = {
    torch.float32: pa.float32(),
    torch.float16: pa.float16(),
    torch.bfloat16: pa.uint16(),  # Arrow has no bfloat16: its bits
    torch.uint8: pa.uint8(),
    torch.int64: pa.int64(),
}
_PADDING = 64  # bytes: Arrow aligns buffers to 8 or 64


def data_schema(dim: int, dtype: Dtype) -> pa.Schema:
    """Columns of a data file; its metadata makes it readable without a manifest."""
    vector = pa.list_(_ARROW_TYPES[dtype.torch_dtype], dtype.width(dim))
    scales = [("scale", pa.float32()), ("offset", pa.float32())] if dtype.quantised else []
    columns = [("id", pa.int64()), ("vector", vector), *scales]
    metadata = {"embedding_store": str(FORMAT_VERSION), "dim": str(dim), "dtype": dtype.name}
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns], metadata)


INDEX_SCHEMA = pa.schema(
    [pa.field("id", pa.int64(), nullable=False), pa.field("row", pa.int64(), nullable=False)],
    {"embedding_store": str(FORMAT_VERSION)},
)


def write_data(
    storage: LocalStorage,
    path: str,
    ids: Tensor,  # int64 [N]
    encoded: Encoded,  # N rows
    dim: int,
    dtype: Dtype,
) -> DataFile:
    """Write a data file of N >= 1 rows and make its bytes durable."""
    columns = [x for x in (ids, encoded.vector, encoded.scale, encoded.offset) if x is not None]
    size, crc = _write(storage, path, columns, data_schema(dim, dtype))
    return DataFile(path=path, rows=len(ids), bytes=size, checksum=crc)


def read_data(storage: LocalStorage, file: DataFile, dim: int, dtype: Dtype) -> tuple[Tensor, Encoded]:
    """The ids and the vectors of a data file, memory-mapped. Raises CorruptStoreError of the class that fits."""
    ids, vector, *scales = _read(storage, file, file.rows, data_schema(dim, dtype))
    return ids, Encoded(vector, *scales)


def write_index(
    storage: LocalStorage,
    path: str,
    ids: Tensor,  # int64 [N], ascending, distinct
    rows: Tensor,  # int64 [N], where each lies
) -> IndexFile:
    """Write the index file and make its bytes durable."""
    size, crc = _write(storage, path, [ids, rows], INDEX_SCHEMA)
    return IndexFile(kind="sorted", path=path, bytes=size, checksum=crc)


def read_index(storage: LocalStorage, file: IndexFile, rows: int) -> tuple[Tensor, Tensor]:
    """Ids in ascending order and their row numbers, int64 [rows] each, memory-mapped and checked in full.

    Raises:
        CorruptStoreError: of the class that fits; InvalidIndexError for an order or a row number that cannot be.
    """
    verify_checksum(storage, file)
    ids, row_numbers = _read(storage, file, rows, INDEX_SCHEMA)
    where = storage.locate(file.path)
    if not bool((ids[1:] > ids[:-1]).all()):
        raise InvalidIndexError(where, "its ids are not in ascending order, each once: write the snapshot again")
    if rows:
        least, greatest = (int(x) for x in torch.aminmax(row_numbers))
        if least < 0 or greatest >= rows:
            span = f"{least} .. {greatest}"
            raise InvalidIndexError(where, f"points to rows {span} of {rows}: write the snapshot again")
    return ids, row_numbers


def verify_checksum(storage: LocalStorage, file: StoredFile) -> None:
    """Read a file in full. Raises MissingFileError, FileSizeError or ChecksumError."""
    actual = checksum(_map(storage, file).numpy().data)
    if actual != file.checksum:
        message = f"checksum is {actual}, its manifest says {file.checksum}: its bytes have changed, restore it"
        raise ChecksumError(storage.locate(file.path), message)


def _write(storage: LocalStorage, path: str, columns: list[Tensor], schema: pa.Schema) -> tuple[int, str]:
    arrays = [_to_arrow(column, field.type) for column, field in zip(columns, schema, strict=True)]
    with storage.create(path) as sink:
        with pa.ipc.new_file(sink, schema) as writer:
            writer.write_batch(pa.record_batch(arrays, schema=schema))
        return sink.bytes, sink.checksum


def _to_arrow(column: Tensor, kind: pa.DataType) -> pa.Array:
    flat = column.contiguous().flatten().view(torch.uint8).numpy() if column.numel() else np.empty(0, np.uint8)
    element = kind.value_type if pa.types.is_fixed_size_list(kind) else kind
    values = pa.Array.from_buffers(element, column.numel(), [None, pa.py_buffer(flat)])
    return values if element == kind else pa.FixedSizeListArray.from_arrays(values, type=kind)


def _read(storage: LocalStorage, file: StoredFile, rows: int, schema: pa.Schema) -> list[Tensor]:
    """The columns as tensors over the mapped file, without a copy."""
    where = storage.locate(file.path)
    mapped = _map(storage, file)
    try:
        reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped.numpy())))
        if not reader.schema.equals(schema, check_metadata=True):
            found, wanted = _one_line(reader.schema), _one_line(schema)
            raise FileFormatError(where, f"its columns are {found}; expected {wanted}")
        if reader.num_record_batches != 1:
            raise FileFormatError(where, f"has {reader.num_record_batches} record batches, expected 1")
        batch = reader.get_batch(0)
        batch.validate()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise FileFormatError(where, f"is not a readable Arrow IPC file ({error}): restore it") from None
    if batch.num_rows != rows:
        raise FileFormatError(where, f"has {batch.num_rows} rows, its manifest says {rows}")
    return _to_tensors(batch, mapped, where)


def _map(storage: LocalStorage, file: StoredFile) -> Tensor:  # uint8 [bytes]
    mapped = storage.map(file.path)
    if len(mapped) != file.bytes:
        where = storage.locate(file.path)
        raise FileSizeError(where, f"has {len(mapped)} bytes, its manifest says {file.bytes}: restore it from a copy")
    return mapped


def _to_tensors(
    batch: pa.RecordBatch,
    mapped: Tensor,  # uint8 [bytes]: the file that holds the batch
    where: str,
) -> list[Tensor]:
    tensors = []
    end = None
    for column in batch.columns:
        listed = pa.types.is_fixed_size_list(column.type)
        values = column.values if listed else column
        shape = (len(column), column.type.list_size) if listed else (len(column),)
        dtype = next(dtype for dtype, kind in _ARROW_TYPES.items() if kind == values.type)
        count = math.prod(shape)
        if count == 0:
            tensors.append(torch.empty(shape, dtype=dtype))
            continue
        buffer = values.buffers()[1]
        start = -1 if buffer is None else buffer.address - mapped.data_ptr()
        # Columns follow each other with little padding: a flipped address shows even if it lies within the file.
        placed = start >= 0 and start % dtype.itemsize == 0 and (end is None or 0 <= start - end < _PADDING)
        end = start + count * dtype.itemsize
        if not placed or end > len(mapped) or len(values) != count or column.null_count or values.null_count:
            raise FileFormatError(where, f"a column of {column.type} is compressed, has nulls or is not in its place")
        tensors.append(mapped[start:end].view(dtype).view(shape))
    return tensors


def _one_line(schema: pa.Schema) -> str:
    metadata = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
    return ", ".join(f"{field.name}: {field.type}" for field in schema) + f" with {metadata}"
