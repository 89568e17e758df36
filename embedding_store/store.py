"""The catalogue: which series a store has."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from embedding_store import times
from embedding_store.errors import (
    InvalidArgumentError,
    MissingDependencyError,
    MissingFileError,
    SeriesExistsError,
    SeriesNotFoundError,
)
from embedding_store.format import documents
from embedding_store.format.manifest import ID_KINDS
from embedding_store.history import schemas
from embedding_store.history.clean import CLEAN_GRACE
from embedding_store.history.tags import check_name
from embedding_store.read.series_reader import DESCRIPTION
from embedding_store.series import Series
from embedding_store.storage.base import Storage
from embedding_store.storage.local import LocalStorage, warn_of_network_disk

_TRIED = ".tried"  # no name of a series


class EmbeddingStore:
    """Versioned entity vectors in one folder or one prefix of a bucket, which is made when the first series is.
    A pickled one is its place, with no credentials.

    Args:
        path: a folder on a local disk, which a relative path means for good, or a URL: `s3://bucket/prefix`, `gs://`,
            `az://`, `file:///`. Object stores need the extra `objects`; endpoint, region and credentials come from the
            environment.
        cache: where an object store's files are kept once they are downloaded; None: in the user's cache folder.

    Raises:
        MissingDependencyError: a URL, and obstore is not installed.
        InvalidArgumentError: a URL that no object store has, or a file URL without a whole path.
    """

    def __init__(self, path: str | os.PathLike[str], cache: str | os.PathLike[str] | None = None) -> None:
        self._storage = _storage(os.fspath(path), None if cache is None else Path(cache))
        self.path = self._storage.root if isinstance(self._storage, LocalStorage) else None
        if self.path is not None:
            warn_of_network_disk(self.path)
        """The folder; None for an object store."""

    @property
    def location(self) -> str:
        """The folder or the URL."""
        return self._storage.locate("")

    def create(
        self, name: str, *, dim: int, dtype: str = "float32", ids: str = "int64", exist_ok: bool = False
    ) -> Series:
        """A new series of vectors of `dim` values, stored as float32, float16, bfloat16, int8 or int4.

        Args:
            ids: what entities are known by: "int64", or "text" for strings and UUIDs, of which a stable 64-bit hash is
                the id.
            exist_ok: a series that exists with the same dim, dtype and ids is returned as it is.

        Raises:
            SeriesExistsError: it exists, and `exist_ok` is not set or dim, dtype or ids differ.
            StorageAccessError: nothing can be put there, or the disk or server cannot put a file only if it is absent.
            InvalidArgumentError: naming the argument and its value.
        """
        check_name(name, "series name")
        dim = schemas.checked(1, dim, dtype).dim
        if ids not in ID_KINDS:
            raise InvalidArgumentError(f"ids is {ids!r}; use one of {', '.join(ID_KINDS)}")
        fields = {"name": name, "dim": dim, "dtype": dtype, "ids": ids, "created": times.now()}
        path = f"{name}/{DESCRIPTION}"
        if not self._storage.exists(path):
            self._storage.check_put_new(name)
            with suppress(FileExistsError):
                self._storage.put_new(path, documents.encode("series", fields))
                return self.series(name)
        series = self.series(name)
        if not exist_ok or (series.dim, series.dtype, series.ids) != (dim, dtype, ids):
            has = f"dim = {series.dim}, dtype = {series.dtype!r}, ids = {series.ids!r}"
            raise SeriesExistsError(f"series {name!r} exists with {has}: choose another name")
        return series

    def check_writable(self) -> None:
        """Raise what `create` would raise for the disk's or server's sake: StorageAccessError; nothing is left there.

        An object is put twice, and the second time must be refused; on a disk nothing is tried.
        """
        self._storage.check_put_new(_TRIED)

    def series(self, name: str) -> Series:
        """The series of this name. Raises SeriesNotFoundError, a KeyError, naming those that exist."""
        check_name(name, "series name")
        try:
            return Series(self._storage.within(name), name)
        except MissingFileError:
            known = ", ".join(self.list()) or "none"
            raise SeriesNotFoundError(f"no series {name!r} in {self.location}; series: {known}") from None

    def drop_empty(self, name: str) -> bool:
        """Let go of a series that has never had a snapshot; whether it was one. Nobody else may be writing to it."""
        empty = self.series(name).next_version == 1
        if empty:
            self._storage.delete(f"{name}/{DESCRIPTION}")  # first: without it there is no series
            self._storage.delete_folder(name)
        return empty

    def clean(self, grace: timedelta = CLEAN_GRACE) -> list[str]:
        """`Series.clean` of every series; returns the paths deleted, relative to the store."""
        return [f"{name}/{path}" for name in self.list() for path in self.series(name).clean(grace)]

    def list(self) -> list[str]:
        """Names of all series, sorted."""
        return [name for name in self._storage.names() if self._storage.exists(f"{name}/{DESCRIPTION}")]

    def __repr__(self) -> str:
        return f"EmbeddingStore({self.location!r})"


def _storage(path: str, cache: Path | None) -> Storage:
    if path.startswith("file://"):
        parts = urlsplit(path)
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise InvalidArgumentError(f"path is {path!r}: a file URL holds a whole path, file:///folder/store")
        return LocalStorage(Path(url2pathname(parts.path)))
    if "://" not in path:
        return LocalStorage(Path(path))
    try:
        from embedding_store.storage import objects  # only here: obstore is an optional extra
    except ImportError:
        remedy = "object stores need obstore: pip install 'recsys-derm[objects]'"
        raise MissingDependencyError(f"path is {path!r}: {remedy}") from None
    return objects.ObjectStorage(path, cache or objects.default_cache())
