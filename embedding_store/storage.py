"""All access to the disk. What an object store must offer to take its place is what this class offers.

Paths are relative, with forward slashes. Nothing is ever changed in place: a file is put once (`create`, `put_new`) or,
for tags alone, replaced as a whole.
"""

from __future__ import annotations

import os
import shutil
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from embedding_store.documents import checksum_text
from embedding_store.errors import FileSizeError, MissingFileError


class Entry(NamedTuple):
    """A stored file, found by listing."""

    path: str
    """Relative to the storage's root."""
    modified: float
    """Seconds since the epoch."""


class Sink:
    """A new file being written: counts and checksums what goes through, as pyarrow's writers want it."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._crc = 0
        self.bytes = 0

    def write(self, data: bytes | memoryview) -> int:
        """Append `data`."""
        self._file.write(data)
        self._crc = zlib.crc32(data, self._crc)
        size = memoryview(data).nbytes
        self.bytes += size
        return size

    def flush(self) -> None:
        """Nothing: the file is flushed and synced once, at its end."""

    @property
    def checksum(self) -> str:
        """Checksum of all bytes so far."""
        return checksum_text(self._crc)


class LocalStorage:
    """A folder on a local (or POSIX network) disk with hard links."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def within(self, folder: str) -> LocalStorage:
        """The same storage seen from one of its folders."""
        return LocalStorage(self.root / folder)

    def locate(self, path: str) -> str:
        """The full path, for messages."""
        return str(self.root / path)

    def names(self, folder: str = "") -> list[str]:
        """Names of the files and folders directly in `folder`, sorted; none if it does not exist."""
        try:
            return sorted(name for name in os.listdir(self.root / folder) if not name.startswith("."))
        except FileNotFoundError:
            return []

    def entries(self, folder: str = "") -> list[Entry]:
        """All files below `folder`, unfinished ones included. A file deleted meanwhile is left out."""
        found = []
        for parent, _, names in os.walk(self.root / folder):
            for name in names:
                file = Path(parent, name)
                with suppress(FileNotFoundError):
                    found.append(Entry(file.relative_to(self.root).as_posix(), file.stat().st_mtime))
        return sorted(found)

    def exists(self, path: str) -> bool:
        """Whether the file is there."""
        return (self.root / path).is_file()

    def size(self, path: str) -> int:
        """Bytes of a file. Raises MissingFileError."""
        with self._missing(path):
            return (self.root / path).stat().st_size

    def read(self, path: str) -> bytes:
        """The whole of a file. Raises MissingFileError."""
        with self._missing(path):
            return (self.root / path).read_bytes()

    def map(self, path: str) -> Tensor:
        """A file mapped into memory, uint8 [bytes]. Raises MissingFileError, or FileSizeError for an empty file.

        The map is private: writing to it would change this process's copy of a page and never the file. A read-only
        map would be safer still, but torch takes it for undefined behaviour. No file descriptor stays open, of which
        a large snapshot would need more than a process may have.
        """
        size, where = self.size(path), self.locate(path)
        if size == 0:
            raise FileSizeError(where, "is empty: truncated; restore it from a copy")
        try:
            return torch.from_file(where, shared=False, size=size, dtype=torch.uint8)
        except RuntimeError as error:  # torch's way to say what open() or mmap() said
            if not self.exists(path):
                raise MissingFileError(where, "does not exist") from None
            raise OSError(f"{where}: cannot be mapped into memory ({error})") from None

    @contextmanager
    def create(self, path: str) -> Iterator[Sink]:
        """Stream a new file; at the end of the block its bytes are on the disk, its name only after `sync`."""
        target = self.root / path
        self._make_folder(target.parent)
        with open(target, "xb") as file:
            yield Sink(file)
            file.flush()
            os.fsync(file.fileno())

    def sync(self, folder: str) -> None:
        """Make the names in `folder` durable."""
        _sync(self.root / folder)

    def put_new(self, path: str, data: bytes) -> None:
        """Put-if-absent: after a return the file is there, whole and durable; FileExistsError if it was there before.

        Of several callers exactly one returns, and no reader ever sees a part of the file.
        """
        target = self.root / path
        temporary = self._write_temporary(target, data)
        try:
            os.link(temporary, target)  # unlike a rename, fails if the target exists
        finally:
            os.unlink(temporary)
        _sync(target.parent)

    def replace(self, path: str, data: bytes) -> None:
        """Put a file whether or not it is there; a reader sees the old one or the new one."""
        target = self.root / path
        os.replace(self._write_temporary(target, data), target)
        _sync(target.parent)

    def delete(self, path: str) -> None:
        """Delete a file; one that is gone already is fine."""
        with suppress(FileNotFoundError):
            os.unlink(self.root / path)

    def delete_folder(self, folder: str) -> None:
        """Delete a folder with all it holds; one that is gone already is fine."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self.root / folder)

    @contextmanager
    def _missing(self, path: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise MissingFileError(self.locate(path), "does not exist") from None

    def _write_temporary(self, target: Path, data: bytes) -> Path:
        self._make_folder(target.parent)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return temporary

    def _make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            self._make_folder(folder.parent)
            folder.mkdir(exist_ok=True)
            _sync(folder.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
