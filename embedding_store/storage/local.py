"""A store on a disk: files put by hard link, listed and read as they are."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from embedding_store.errors import MissingFileError
from embedding_store.storage.base import Entry, Sink, check_size


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
        with self._open_new(target) as file:
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

    def delete_empty_folders(self, before: float) -> list[str]:
        deleted = []
        for parent, _, _ in os.walk(self.root, topdown=False):
            with suppress(OSError):  # it is not empty, or gone
                if parent != str(self.root) and os.stat(parent).st_mtime < before:
                    os.rmdir(parent)
                    deleted.append(Path(parent).relative_to(self.root).as_posix())
        return deleted

    @contextmanager
    def _missing(self, path: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise MissingFileError(self.locate(path), "does not exist") from None

    def _write_temporary(self, target: Path, data: bytes) -> Path:
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        with self._open_new(temporary) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return temporary

    def _open_new(self, path: Path) -> BinaryIO:
        while True:
            with suppress(FileNotFoundError):  # the folder was deleted as an empty one
                self._make_folder(path.parent)
                return open(path, "xb")

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
