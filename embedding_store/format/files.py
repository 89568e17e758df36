"""The large files: written as a stream with a checksum a block beside them, read in pieces that are checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedding_store.dtypes import Dtype, Encoded
from embedding_store.errors import ChecksumError, FileFormatError, FileSizeError
from embedding_store.format.manifest import Segment, StoredFile
from embedding_store.native.mapping import BLOCK, MappedFile, crc32c, crc32c_blocks
from embedding_store.storage.base import Sink, Storage, is_named

Bytes = NDArray[np.uint8]
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class RowFormat:
    """What the rows of a data file look like."""

    dim: int
    """D."""
    dtype: Dtype
    """How vectors are stored."""
    ids: str
    """`int64` or `text`."""


class Rows(NamedTuple):
    """Some rows as they are stored."""

    ids: Tensor  # int64 [N]
    encoded: Encoded  # N rows
    keys: pa.LargeStringArray | None  # [N], series of text only

    def select(self, rows: Tensor) -> Rows:
        """A copy of these rows; `rows` bool [N]."""
        keys = None if self.keys is None else self.keys.filter(pa.array(rows.numpy()))
        return Rows(self.ids[rows], self.encoded.select(rows), keys)


class CheckedSink:
    """A new file being written, as pyarrow's writers want it: counts bytes and notes a checksum of each block."""

    closed = False

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._crcs: list[NDArray[np.uint32]] = []
        self._crc = 0  # of the block that is not full yet
        self.bytes = 0

    def write(self, data: bytes | memoryview) -> int:
        """Append `data`."""
        piece = np.frombuffer(data, np.uint8)
        self._sink.write(piece.data)
        size, filled = len(piece), self.bytes % BLOCK
        self.bytes += size
        if filled:
            self._crc = crc32c(piece[: BLOCK - filled], self._crc)
            if filled + size < BLOCK:
                return size
            self._end_block()
            piece = piece[BLOCK - filled :]
        whole = len(piece) - len(piece) % BLOCK
        if whole:
            self._crcs.append(crc32c_blocks(piece[:whole]))
        self._crc = crc32c(piece[whole:], self._crc)
        return size

    def flush(self) -> None:
        """Let the storage start on what was written so far."""
        self._sink.flush()

    def crcs(self) -> bytes:
        """The file's `.crc` file: uint32 little-endian a block, the last one shorter. After the last write."""
        if self.bytes % BLOCK:
            self._end_block()
        return b"".join(crcs.astype("<u4").tobytes() for crcs in self._crcs)

    def _end_block(self) -> None:
        self._crcs.append(np.array([self._crc], np.uint32))
        self._crc = 0


class NewFile:
    """A file that `create_checked` writes: its sink, and after the block what a manifest says of it."""

    def __init__(self, path: str, sink: CheckedSink) -> None:
        self.sink = sink
        self.stored = StoredFile(path=path, bytes=0, checksum="")


@contextmanager
def create_checked(storage: Storage, path: str) -> Iterator[NewFile]:
    """Stream a new file and put its `.crc` file beside it; at the end of the block both are durable."""
    with storage.create(path) as sink:
        new = NewFile(path, CheckedSink(sink))
        yield new
    crcs = new.sink.crcs()
    new.stored = StoredFile(path=path, bytes=new.sink.bytes, checksum=checksum(crcs))
    with storage.create(new.stored.crc_path) as sink:
        sink.write(crcs)


def checksum(crcs: bytes) -> str:
    """The checksum of a file, from the content of its `.crc` file."""
    return f"crc32c:{crc32c(np.frombuffer(crcs, np.uint8)):08x}"


def read_crcs(storage: Storage, file: StoredFile) -> NDArray[np.uint32]:
    """The checksums of a file's blocks, themselves checked. Raises MissingFileError, FileSizeError or ChecksumError."""
    where, data = storage.locate(file.crc_path), storage.read(file.crc_path)
    expected = 4 * -(-file.bytes // BLOCK)
    if len(data) != expected:
        raise FileSizeError(where, f"has {len(data)} bytes, expected {expected}: restore it from a copy")
    if checksum(data) != file.checksum:
        message = f"checksum is {checksum(data)}, its manifest says {file.checksum}: its bytes have changed, restore it"
        raise ChecksumError(where, message)
    return np.frombuffer(data, "<u4")


def mapped_file(storage: Storage, file: StoredFile) -> MappedFile:
    """What `Mapping.open` wants of a stored file. Raises MissingFileError, FileSizeError or ChecksumError."""
    crcs = read_crcs(storage, file)
    return MappedFile(str(storage.local(file.path, file.bytes, crcs)), file.bytes, crcs)


def healed(storage: Storage, read: Callable[[], Result]) -> Result:
    """What `read`, which maps files, gives: tried anew for each whose copy in the cache had changed and is deleted by
    now. Raises what it raises."""
    tried: set[str] = set()
    while True:
        try:
            return read()
        except ChecksumError as error:
            if not storage.copies or error.path in tried:
                raise
            tried.add(error.path)


class StoredReader:
    """Reads pieces of a stored file; what it returns has been checked. Use it in a `with` block.

    It reads and does not map: of a damaged or shrinking disk a read tells with an error, a mapping by ending the
    process; and what it returns is a copy that was checked, not pages that were checked when they were last read. So it
    serves what walks through whole files (`verify` of what may be broken, `batches`, writers); a Mapping serves what
    reads rows here and there, again and again.

    A copy in the cache whose bytes have changed is fetched anew, once. Raises, when made, MissingFileError,
    FileSizeError or ChecksumError.
    """

    def __init__(self, storage: Storage, file: StoredFile) -> None:
        self._storage, self._path = storage, file.path
        self.where = storage.locate(file.path)
        """For messages."""
        self.bytes = file.bytes
        """Size of the file."""
        self._crcs = read_crcs(storage, file)
        self._local, self._file = self._open()

    def __enter__(self) -> StoredReader:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def read(self, start: int, stop: int) -> Bytes:
        """A copy of bytes start .. stop - 1. Raises FileSizeError or ChecksumError."""
        try:
            return self._read(start, stop)
        except (FileSizeError, ChecksumError):
            if not self._storage.copies:
                raise
        if is_named(self._file.fileno(), self._local):
            self._local.unlink(missing_ok=True)
        self._file.close()
        self._local, self._file = self._open()
        return self._read(start, stop)

    def words(self, start: int, count: int, dtype: torch.dtype) -> Tensor:
        """A copy of `count` elements from byte `start` on."""
        return torch.from_numpy(self.read(start, start + count * dtype.itemsize)).view(dtype)

    def _open(self) -> tuple[Path, BinaryIO]:
        local = self._storage.local(self._path, self.bytes, self._crcs)
        return local, open(local, "rb", buffering=0)

    def _read(self, start: int, stop: int) -> Bytes:
        if stop <= start:
            return np.empty(0, np.uint8)
        first = start - start % BLOCK
        data = np.empty(min(self.bytes, stop - stop % -BLOCK) - first, np.uint8)
        self._file.seek(first)
        filled = 0
        while filled < len(data):
            count = self._file.readinto(data[filled:].data)  # type: ignore[attr-defined]
            if not count:
                raise FileSizeError(str(self._local), f"ends before byte {stop}: truncated; restore it from a copy")
            filled += count
        wrong = np.flatnonzero(crc32c_blocks(data) != self._crcs[first // BLOCK :][: -(-len(data) // BLOCK)])
        if len(wrong):
            position = first + int(wrong[0]) * BLOCK
            message = f"its bytes have changed, in the block at {position}: restore it from a copy"
            raise ChecksumError(str(self._local), message)
        return data[start - first : stop - first]


class SegmentReader:
    """Reads rows of one segment."""

    def __init__(self, reader: StoredReader, segment: Segment, form: RowFormat) -> None:
        self._reader, self._segment = reader, segment
        self._width, self._dtype = form.dtype.width(form.dim), form.dtype

    def rows(self, start: int, stop: int) -> Rows:
        """A copy of rows start .. stop - 1. Raises ChecksumError or FileFormatError."""
        count, segment, stored = stop - start, self._segment, self._dtype.torch_dtype
        vector = self._reader.words(segment.vector + start * self._width * stored.itemsize, count * self._width, stored)
        scales = [
            self._reader.words(column + 4 * start, count, torch.float32)
            for column in (segment.scale, segment.offset)
            if column is not None
        ]
        encoded = Encoded(vector.view(count, self._width), *scales)
        return Rows(self.ids(start, stop), encoded, None if segment.key is None else self.keys(start, stop))

    def ids(self, start: int, stop: int) -> Tensor:
        """Their ids, int64 [stop - start]."""
        return self._reader.words(self._segment.id + 8 * start, stop - start, torch.int64)

    def keys(self, start: int, stop: int) -> pa.LargeStringArray:
        """Their keys, large_string [stop - start]. The series is one of text."""
        assert self._segment.key is not None
        assert self._segment.text is not None
        offsets = self._reader.words(self._segment.key + 8 * start, stop - start + 1, torch.int64).numpy()
        if offsets[0] < 0 or bool((offsets[1:] < offsets[:-1]).any()):
            raise FileFormatError(self._reader.where, "has keys that end before they start: write the snapshot again")
        first, end = (self._segment.text + int(offset) for offset in offsets[[0, -1]])
        if end > self._reader.bytes:
            raise FileFormatError(self._reader.where, "has keys that end behind the file: write the snapshot again")
        return text_array(offsets - offsets[0], self._reader.read(first, end), self._reader.where)


def text_array(offsets: NDArray[np.int64], text: Bytes, where: str) -> pa.LargeStringArray:
    """Keys by where each starts in `text`, [N + 1], as Arrow has them. Raises FileFormatError unless they are UTF-8."""
    keys = pa.Array.from_buffers(pa.large_string(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(text)])
    try:
        keys.validate(full=True)
    except pa.ArrowInvalid as error:
        raise FileFormatError(where, f"has keys that are not UTF-8 ({error})") from None
    return keys
