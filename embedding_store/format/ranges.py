"""Pieces of a large file that is not wanted whole: of an object store only these come, and none into the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from embedding_store.errors import ChecksumError, FileSizeError
from embedding_store.format.files import Bytes, read_crcs
from embedding_store.format.manifest import StoredFile
from embedding_store.native.mapping import BLOCK, crc32c_blocks
from embedding_store.storage.base import Storage


class RangeReader:
    """Reads pieces of a stored file, each checked.

    Raises, when made, MissingFileError, FileSizeError or ChecksumError.
    """

    def __init__(self, storage: Storage, file: StoredFile) -> None:
        self._storage, self._file = storage, file
        self.where = storage.locate(file.path)
        """For messages."""
        self.bytes = file.bytes
        """Size of the file."""
        self._crcs = read_crcs(storage, file)
        self.bytes_read = 0
        """Of the file so far, whole blocks."""

    def read(self, start: int, stop: int) -> Bytes:
        """Bytes start .. stop - 1, read-only. Raises MissingFileError, FileSizeError or ChecksumError."""
        if stop <= start:
            return np.empty(0, np.uint8)
        first = start - start % BLOCK
        end = min(self._file.bytes, stop - stop % -BLOCK)
        tries = 2 if self._storage.copies else 1  # bytes may also change on their way
        for _ in range(tries):
            data = np.frombuffer(self._storage.read_range(self._file.path, first, end), np.uint8)
            self.bytes_read += len(data)
            if len(data) < end - first:
                raise FileSizeError(self.where, f"ends before byte {end}: truncated; restore it from a copy")
            wrong = np.flatnonzero(crc32c_blocks(data) != self._crcs[first // BLOCK : -(-end // BLOCK)])
            if not len(wrong):
                return data[start - first : stop - first]
        position = first + int(wrong[0]) * BLOCK
        raise ChecksumError(self.where, f"its bytes have changed, in the block at {position}: restore it from a copy")


class Reader(Protocol):
    """What reads pieces of a stored file."""

    where: str
    bytes: int

    def read(self, start: int, stop: int) -> Bytes: ...


class Joined:
    """Files one after the other, read as one."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        self._readers = readers
        self.where = readers[0].where
        """For messages: the first one's."""
        self.bytes = sum(reader.bytes for reader in readers)
        """Size of all."""

    def read(self, start: int, stop: int) -> Bytes:
        """Bytes start .. stop - 1, not to be written to. Raises what the readers raise."""
        parts = []
        for reader in self._readers:
            if start < reader.bytes and stop > 0:
                parts.append(reader.read(max(start, 0), min(stop, reader.bytes)))
            start, stop = start - reader.bytes, stop - reader.bytes
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.uint8), *parts])
