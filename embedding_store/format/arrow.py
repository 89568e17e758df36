"""Data files as Arrow IPC. pyarrow writes them; where it puts each column is noted, so that no reader needs Arrow."""

from __future__ import annotations

from functools import lru_cache

import pyarrow as pa
import torch
from torch import Tensor

from embedding_store.dtypes import Encoded
from embedding_store.errors import FileFormatError
from embedding_store.format.files import CheckedSink, RowFormat, Rows
from embedding_store.format.manifest import DataFile, Segment, column_bytes

VERSION = 2  # of data files: the format's version since which they are as they are
ALIGNMENT = 64  # of the vectors in the file: a cache line
_PADDING = 8  # bytes: columns of a record batch start at multiples of it
_ARROW_TYPES = {
    torch.float32: pa.float32(),
    torch.float16: pa.float16(),
    torch.bfloat16: pa.uint16(),  # Arrow has no bfloat16: its bits
    torch.uint8: pa.uint8(),
}


def data_schema(form: RowFormat) -> pa.Schema:
    """Columns of a data file; its metadata makes it readable without a manifest."""
    vector = pa.list_(_ARROW_TYPES[form.dtype.torch_dtype], form.dtype.width(form.dim))
    scales = [("scale", pa.float32()), ("offset", pa.float32())] if form.dtype.quantised else []
    keys = [("key", pa.large_string())] if form.ids == "text" else []
    columns = [("vector", vector), ("id", pa.int64()), *scales, *keys]
    metadata = {"embedding_store": str(VERSION), "dim": str(form.dim), "dtype": form.dtype.name}
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns], metadata)


class DataWriter:
    """Writes record batches into one file."""

    def __init__(self, sink: CheckedSink, form: RowFormat) -> None:
        self._sink, self._form = sink, form
        self._schema = data_schema(form)
        self._framing = _framing(form)
        self._writer = pa.ipc.new_file(sink, self._schema)
        self.segments: list[Segment] = []

    def write(self, rows: Rows) -> None:
        """Write N >= 1 rows as a record batch."""
        start = self._sink.bytes or self._framing[0]
        padding = next(p for p in range(0, ALIGNMENT, _PADDING) if (start + self._framing[1] + p) % ALIGNMENT == 0)
        self._writer.write_batch(_record_batch(rows, self._schema), custom_metadata=_pad(padding))
        places, position = {}, start + self._framing[1] + padding
        for name, size in column_bytes(len(rows.ids), self._form.dim, self._form.dtype, self._form.ids).items():
            places[name] = position
            position += size - size % -_PADDING
        optional = {name: places.get(name) for name in ("scale", "offset", "key", "text")}
        self.segments.append(Segment(rows=len(rows.ids), vector=places["vector"], id=places["id"], **optional))

    def close(self) -> None:
        """Write the footer."""
        self._writer.close()


def check_structure(
    file: DataFile,
    mapped: Tensor,  # uint8 [bytes]: the file
    form: RowFormat,
    where: str,
) -> None:
    """Raise FileFormatError unless Arrow finds in a data file what the manifest says, where it says."""
    schema = data_schema(form)
    try:
        reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped.numpy())))
        if not reader.schema.equals(schema, check_metadata=True):
            found, wanted = _one_line(reader.schema), _one_line(schema)
            raise FileFormatError(where, f"its columns are {found}; expected {wanted}")
        if reader.num_record_batches != len(file.segments):
            counts = f"{reader.num_record_batches} record batches, its manifest says {len(file.segments)}"
            raise FileFormatError(where, f"has {counts}")
        for number, segment in enumerate(file.segments):
            batch = reader.get_batch(number)
            batch.validate()
            _check_batch(batch, segment, mapped, f"{where}: record batch {number}")
    except (pa.ArrowException, OSError, ValueError) as error:
        raise FileFormatError(where, f"is not a readable Arrow IPC file ({error}): restore it") from None


def _check_batch(batch: pa.RecordBatch, segment: Segment, mapped: Tensor, where: str) -> None:
    if batch.num_rows != segment.rows:
        raise FileFormatError(where, f"has {batch.num_rows} rows, its manifest says {segment.rows}")
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        values = column.values if name == "vector" else column
        if column.null_count or values.null_count:
            raise FileFormatError(where, f"column {name} has nulls")
        places = [(name, values.buffers()[1])] + ([("text", values.buffers()[2])] if name == "key" else [])
        for place, buffer in places:
            expected = getattr(segment, place)
            if buffer is not None and buffer.size and buffer.address - mapped.data_ptr() != expected:
                raise FileFormatError(where, f"column {place} is not at {expected}, or compressed")


def _record_batch(rows: Rows, schema: pa.Schema) -> pa.RecordBatch:
    encoded = rows.encoded
    columns = [x for x in (encoded.vector, rows.ids, encoded.scale, encoded.offset) if x is not None]
    arrays = [_to_arrow(x, kind) for x, kind in zip(columns, schema.types, strict=False)]  # without the keys' type
    return pa.record_batch([*arrays, *([] if rows.keys is None else [rows.keys])], schema=schema)


def _to_arrow(column: Tensor, kind: pa.DataType) -> pa.Array:
    flat = column.contiguous().flatten().view(torch.uint8).numpy()
    element = kind.value_type if pa.types.is_fixed_size_list(kind) else kind
    values = pa.Array.from_buffers(element, column.numel(), [None, pa.py_buffer(flat)])
    return values if element == kind else pa.FixedSizeListArray.from_arrays(values, type=kind)


@lru_cache(maxsize=64)
def _framing(form: RowFormat) -> tuple[int, int]:
    """Bytes before the first record batch, and those of a record batch before its first column when it has no padding.

    Both depend on the columns alone. They are read off two batches of one row.
    """
    zero = torch.zeros(1, dtype=torch.int64)
    keys = pa.Array.from_buffers(pa.large_string(), 1, [None, pa.py_buffer(bytes(16)), pa.py_buffer(b"")])
    rows = Rows(zero, Encoded.empty(1, form.dim, form.dtype), keys if form.ids == "text" else None)
    schema, sink = data_schema(form), pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(_record_batch(rows, schema), custom_metadata=_pad(0))
        end = sink.tell()
        writer.write_batch(_record_batch(rows, schema), custom_metadata=_pad(0))
    data = sink.getvalue()
    reader = pa.ipc.open_file(data)
    first, second = (reader.get_batch(i).column(0).values.buffers()[1].address - data.address for i in range(2))
    return first - (second - end), second - end


def _pad(size: int) -> dict[str, str]:
    return {"padding": "." * size}


def _one_line(schema: pa.Schema) -> str:
    metadata = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
    return ", ".join(f"{field.name}: {field.type}" for field in schema) + f" with {metadata}"
