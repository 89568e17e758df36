"""All access to stored files: what a store needs of a disk or an object store.

Paths are relative to the storage's root, with forward slashes. Nothing is ever changed in place or replaced: a file is
put once, whole (`create`, `put_new`), and one day deleted. The disk is in local.py, object stores are in objects.py.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from embedding_store.errors import FileSizeError


class Entry(NamedTuple):
    """A stored file, found by listing."""

    path: str
    """Relative to the storage's root."""
    modified: float
    """Seconds since the epoch."""


class Storage(Protocol):
    """What the store needs of a disk or an object store. Nothing here asks for a rename, a lock or an append.

    What cannot be done for want of the bucket, the network or a right is a StorageAccessError, whatever the method.
    """

    copies: bool
    """Whether `local` gives copies: delete one whose bytes have changed, and the next `local` fetches another."""

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

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """Bytes start .. stop - 1 of a file, fewer if it ends before; of an object store no others are fetched. They
        are not checked. Raises MissingFileError."""
        ...

    def local(self, path: str, size: int, crcs: NDArray[np.uint32]) -> Path:
        """A local file with the content of a file of `size` bytes: itself, or a copy in the cache.

        Args:
            crcs: CRC-32C of each of its blocks. What is copied is checked on its way; what is there already is not.

        Raises:
            MissingFileError: it does not exist.
            FileSizeError: it has another size.
            ChecksumError: it was fetched twice, and its bytes are not those that were written.
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

    def check_put_new(self, folder: str) -> None:
        """Raise StorageAccessError if `put_new` would replace a file in this folder, because a server ignores what it
        is asked. To be called before the first file is put there."""
        ...

    def delete(self, path: str) -> None:
        """Delete a file; one that is gone already is fine."""
        ...

    def delete_folder(self, folder: str) -> None:
        """Delete a folder with all it holds; one that is gone already is fine."""
        ...

    def delete_empty_folders(self, before: float) -> list[str]:
        """Delete the folders without a file that have not changed since `before`, seconds since the epoch; returns
        their paths. An object store has no folders."""
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


def is_named(file: int, path: Path) -> bool:
    """Whether `path` still leads to the file of this descriptor: it may be deleted, or another have taken its name."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file), os.stat(path))
    return False


def check_size(storage: Storage, path: str, actual: int, size: int) -> None:
    """Raise FileSizeError unless a file of `size` bytes has so many."""
    if actual != size:
        where = storage.locate(path)
        raise FileSizeError(where, f"has {actual} bytes, its manifest says {size}: restore it from a copy")
