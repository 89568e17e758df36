"""The catalogue: which series a store has."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

from embedding_store import documents, times
from embedding_store.dtypes import dtype_named
from embedding_store.errors import InvalidArgumentError, MissingFileError, SeriesExistsError, SeriesNotFoundError
from embedding_store.series import CLEAN_GRACE, DESCRIPTION, Series
from embedding_store.storage import LocalStorage
from embedding_store.tags import check_name


class EmbeddingStore:
    """Versioned entity vectors in one folder. The folder is made when the first series is."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if "://" in os.fspath(path):
            raise InvalidArgumentError(
                f"path is {os.fspath(path)!r}; object stores are not supported yet, use a folder"
            )
        self.path = Path(path)
        """The store's folder."""
        self._storage = LocalStorage(self.path)

    def create(self, name: str, *, dim: int, dtype: str = "float32", exist_ok: bool = False) -> Series:
        """A new series of vectors of `dim` values, stored as float32, float16, bfloat16, int8 or int4.

        With `exist_ok` a series that exists with the same dim and dtype is returned as it is.

        Raises:
            SeriesExistsError: it exists, and `exist_ok` is not set or dim or dtype differ.
            InvalidArgumentError: naming the argument and its value.
        """
        check_name(name, "series name")
        dtype_named(dtype)
        if not isinstance(dim, int) or isinstance(dim, bool) or dim < 1:
            raise InvalidArgumentError(f"dim is {dim!r}; use 1 or more")
        fields = {"name": name, "dim": dim, "dtype": dtype, "created": times.now()}
        try:
            self._storage.put_new(f"{name}/{DESCRIPTION}", documents.encode("series", fields))
        except FileExistsError:
            series = self.series(name)
            if not exist_ok or (series.dim, series.dtype) != (dim, dtype):
                has = f"dim = {series.dim}, dtype = {series.dtype!r}"
                raise SeriesExistsError(f"series {name!r} exists with {has}: choose another name") from None
            return series
        return self.series(name)

    def series(self, name: str) -> Series:
        """The series of this name. Raises SeriesNotFoundError, a KeyError, naming those that exist."""
        check_name(name, "series name")
        try:
            return Series(self._storage.within(name), name)
        except MissingFileError:
            known = ", ".join(self.list()) or "none"
            raise SeriesNotFoundError(f"no series {name!r} in {self.path}; series: {known}") from None

    def clean(self, grace: timedelta = CLEAN_GRACE) -> list[str]:
        """`Series.clean` of every series; returns the paths deleted, relative to the store."""
        return [f"{name}/{path}" for name in self.list() for path in self.series(name).clean(grace)]

    def list(self) -> list[str]:
        """Names of all series, sorted."""
        return [name for name in self._storage.names() if self._storage.exists(f"{name}/{DESCRIPTION}")]

    def __repr__(self) -> str:
        return f"EmbeddingStore({str(self.path)!r})"
