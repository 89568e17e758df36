"""A store on a disk: files put by hard link, listed and read as they are.

The disk is a local one, or of a file system that keeps a deleted file for who has it open, on whatever host, as POSIX
asks. Tables are mapped: a file that is truncated, or deleted by another client of NFS, ends the process that reads it.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from embedding_store.errors import FileFormatError, MissingFileError, StorageAccessError
from embedding_store.storage.base import Entry, Sink, check_size

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_MOUNTS = Path("/proc/self/mounts")
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "fuse.sshfs"}  # whose deleted files are gone for other clients


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
    """A folder on a local disk with hard links; the methods are those of Storage."""

    copies = False

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def within(self, folder: str) -> LocalStorage:
        return LocalStorage(self.root / folder)

    def locate(self, path: str) -> str:
        return str(self.root / path)

    def names(self, folder: str = "") -> list[str]:
        with suppress(MissingFileError), self._errors(folder):
            return sorted(name for name in os.listdir(self.root / folder) if not name.startswith("."))
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
        with self._errors(path):
            return self._stat(path).st_size

    def read(self, path: str) -> bytes:
        with self._errors(path):
            self._stat(path)
            return (self.root / path).read_bytes()

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        with self._errors(path), open(self.root / path, "rb", buffering=0) as file:
            pieces, position = list[bytes](), start
            while position < stop and (piece := os.pread(file.fileno(), stop - position, position)):
                pieces.append(piece)
                position += len(piece)
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def local(self, path: str, size: int, crcs: NDArray[np.uint32]) -> Path:
        check_size(self, path, self.size(path), size)
        return self.root / path

    def scratch(self) -> Path:
        return Path(tempfile.gettempdir())

    @contextmanager
    def create(self, path: str) -> Iterator[Sink]:
        target = self.root / path
        with self._open_new(target) as file:
            yield _DiskSink(file)
            file.flush()
            os.fsync(file.fileno())

    def sync(self, folder: str) -> None:
        sync_folder(self.root / folder)

    def put_new(self, path: str, data: bytes) -> None:
        target = self.root / path
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        file = self._open_new(temporary)
        try:
            with file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            _link(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(target.parent)

    def check_put_new(self, folder: str) -> None:
        """Nothing: a file system never replaces a file by a link."""

    def delete(self, path: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self.root / path)

    def delete_folder(self, folder: str) -> None:
        with suppress(FileNotFoundError):
            shutil.rmtree(self.root / folder)

    def delete_empty_folders(self, before: float) -> list[str]:
        deleted = []
        for parent, _, _ in os.walk(self.root, topdown=False):
            with suppress(OSError):  # it is not empty, or gone
                if parent != str(self.root) and os.stat(parent).st_mtime < before:
                    os.rmdir(parent)
                    deleted.append(Path(parent).relative_to(self.root).as_posix())
        return deleted

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        """The system's errors as those that Storage promises."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError):
            raise MissingFileError(self.locate(path), "does not exist") from None
        except OSError as error:  # a link that leads to itself, no right to read, a broken disk
            raise StorageAccessError(f"{self.locate(path)}: {error.strerror}: mend it, or restore it") from error

    def _stat(self, path: str) -> os.stat_result:
        """Of a regular file: reading a pipe or a device may never end."""
        found = (self.root / path).stat()
        if not stat.S_ISREG(found.st_mode):
            raise FileFormatError(self.locate(path), "is a folder, a pipe or a device, not a file: restore it")
        return found

    def _open_new(self, path: Path) -> BinaryIO:
        while True:
            with suppress(FileNotFoundError):  # the folder was deleted as an empty one
                self._make_folder(path.parent)
                return open(path, "xb")

    def _make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            self._make_folder(folder.parent)
            try:
                folder.mkdir(exist_ok=True)
            except FileExistsError:  # which a caller would take for a file that somebody else has put
                message = "is a file, a pipe or a dead link, not a folder: move it"
                raise FileFormatError(str(folder), message) from None
            sync_folder(folder.parent)


def warn_of_network_disk(folder: Path) -> None:
    """Warn if a folder lies on a network disk whose deleted files are gone for readers on other hosts."""
    kinds: dict[str, str] = {}
    with suppress(OSError, UnicodeDecodeError):  # no such file but on Linux: then it is not known
        for line in _MOUNTS.read_text().splitlines():
            point, kind = line.split()[1:3]
            kinds[re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point)] = kind
    folder = folder.resolve()
    nearest = next((kinds[str(parent)] for parent in (folder, *folder.parents) if str(parent) in kinds), None)
    if nearest in _NETWORK:
        danger = "a table whose files another host deletes or truncates ends the process that reads it"
        message = f"{folder} lies on a network disk ({nearest}): {danger}; share a store through an object store"
        warnings.warn(message, stacklevel=3)


def _link(temporary: Path, target: Path) -> None:
    """Give a file its name, unless that exists. Unlike a rename, a link never replaces."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        with suppress(FileNotFoundError):
            if os.path.samefile(temporary, target):  # this very call made it: a network lost the first answer
                return
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        reason = f"its file system makes no hard links ({error.strerror}), without which two writers could publish one"
        remedy = "use a local disk that has them (ext4, xfs, ...), or an object store"
        raise StorageAccessError(f"{target}: {reason} version: {remedy}") from error


def sync_folder(folder: Path) -> None:
    """Return when the names in it are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
