"""All access to stored files: what a store needs of a disk or an object store, and the local disk.

Paths are relative to the storage's root, with forward slashes. Nothing is ever changed in place or replaced: a file is
put once, whole (`create`, `put_new`), and one day deleted. Object stores are in object_storage.py.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from embedding_store.errors import FileSizeError, MissingFileError


class Entry(NamedTuple):
    """A stored file, found by listing."""

    path: str
    """Relative to the storage's root."""
    modified: float
    """Seconds since the epoch."""


class Storage(Protocol):
    """What the store needs of a disk or an object store. Nothing here asks for a rename, a lock or an append."""

    def within(self, folder: str) -> Storage:
        """The same storage seen from one of its folders."""
        ...

    def locate(self, path: str) -> str:
        """The full path or URL, for messages."""
        ...

    def names(self, folder: str = "") -> list[str]:
        """Names of the files and folders directly in `folder`, sorted; none if it does not exist."""
        ...

    def entries(self, folder: str = "") -> list[Entry]:
        """All files below `folder`, unfinished ones included, sorted. A file deleted meanwhile is left out."""
        ...

    def exists(self, path: str) -> bool:
        """Whether the file is there."""
        ...

    def size(self, path: str) -> int:
        """Bytes of a file. Raises MissingFileError."""
        ...

    def read(self, path: str) -> bytes:
        """The whole of a small file. Raises MissingFileError."""
        ...

    def local(self, path: str, size: int) -> Path:
        """A local file with the content of a file of `size` bytes: itself, or a copy in the cache.

        Raises:
            MissingFileError: it does not exist.
            FileSizeError: it has another size.
        """
        ...

    def create(self, path: str) -> AbstractContextManager[Sink]:
        """Stream a new file; at the end of the block its bytes are durable. On a local disk its name is so only after
        `sync`; on an object store the file appears at the end of the block, and with an error not at all."""
        ...

    def sync(self, folder: str) -> None:
        """Make the names in `folder` durable."""
        ...

    def put_new(self, path: str, data: bytes) -> None:
        """Put-if-absent: after a return the file is there, whole and durable; FileExistsError if it was there before.

        Of several callers exactly one returns, and no reader ever sees a part of the file.
        """
        ...

    def delete(self, path: str) -> None:
        """Delete a file; one that is gone already is fine."""
        ...

    def delete_folder(self, folder: str) -> None:
        """Delete a folder with all it holds; one that is gone already is fine."""
        ...

    def scratch(self) -> Path:
        """A local folder for files that are needed for a while, with room for as much as is being written."""
        ...


class WritableFile(Protocol):
    """What a Sink writes to."""

    def write(self, data: bytes | memoryview, /) -> int:
        """Append bytes."""
        ...


class Sink:
    """A new file being written, in the form that pyarrow's writers want: counts what goes through."""

    closed = False

    def __init__(self, file: WritableFile) -> None:
        self._file = file
        self.bytes = 0

    def write(self, data: bytes | memoryview) -> int:
        """Append `data`, any contiguous buffer; returns its bytes."""
        view = memoryview(data)
        if view.nbytes:  # a view of no values of a wider type cannot be cast
            view = view.cast("B")
            self._file.write(view)
            self.bytes += view.nbytes
        return view.nbytes

    def flush(self) -> None:
        """Say that this is a good moment to start moving what was written; nothing is durable before the end."""


class _DiskSink(Sink):
    """Starts the disk's work while the next rows are encoded, so that the fsync at the end has little left to do."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._descriptor = file.fileno()
        self._started = 0

    def flush(self) -> None:
        if hasattr(os, "posix_fadvise"):  # of pages that are not yet written it starts the writing, and does not wait
            length, start = self.bytes - self._started, self._started
            os.posix_fadvise(self._descriptor, start, length, os.POSIX_FADV_DONTNEED)
            self._started = self.bytes


class LocalStorage:
    """A folder on a local (or POSIX network) disk with hard links; the methods are those of Storage."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def within(self, folder: str) -> LocalStorage:
        return LocalStorage(self.root / folder)

    def locate(self, path: str) -> str:
        return str(self.root / path)

    def names(self, folder: str = "") -> list[str]:
        try:
            return sorted(name for name in os.listdir(self.root / folder) if not name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def entries(self, folder: str = "") -> list[Entry]:
        found = []
        for parent, _, names in os.walk(self.root / folder):
            for name in names:
                file = Path(parent, name)
                with suppress(FileNotFoundError):
                    found.append(Entry(file.relative_to(self.root).as_posix(), file.stat().st_mtime))
        return sorted(found)

    def exists(self, path: str) -> bool:
        return (self.root / path).is_file()

    def size(self, path: str) -> int:
        with self._missing(path):
            return (self.root / path).stat().st_size

    def read(self, path: str) -> bytes:
        with self._missing(path):
            return (self.root / path).read_bytes()

    def local(self, path: str, size: int) -> Path:
        check_size(self, path, self.size(path), size)
        return self.root / path

    def scratch(self) -> Path:
        return Path(tempfile.gettempdir())

    @contextmanager
    def create(self, path: str) -> Iterator[Sink]:
        target = self.root / path
        self._make_folder(target.parent)
        with open(target, "xb") as file:
            yield _DiskSink(file)
            file.flush()
            os.fsync(file.fileno())

    def sync(self, folder: str) -> None:
        _sync(self.root / folder)

    def put_new(self, path: str, data: bytes) -> None:
        target = self.root / path
        temporary = self._write_temporary(target, data)
        try:
            os.link(temporary, target)  # unlike a rename, fails if the target exists
        finally:
            os.unlink(temporary)
        _sync(target.parent)

    def delete(self, path: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self.root / path)

    def delete_folder(self, folder: str) -> None:
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


def check_size(storage: Storage, path: str, actual: int, size: int) -> None:
    """Raise FileSizeError unless a file of `size` bytes has so many."""
    if actual != size:
        where = storage.locate(path)
        raise FileSizeError(where, f"has {actual} bytes, its manifest says {size}: restore it from a copy")


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
