"""Dimension and dtype of a series, over time. Schema 1 is in series.json; each later one is a file, put if absent."""

from __future__ import annotations

from typing import NamedTuple

from embedding_store import times
from embedding_store.dtypes import DTYPES, dtype_named
from embedding_store.errors import InvalidArgumentError, NewerFormatError
from embedding_store.format.documents import Fields
from embedding_store.format.numbered import NumberedFiles
from embedding_store.storage.base import Storage

_FILES = NumberedFiles("schemas", "schema")


class Schema(NamedTuple):
    """How the snapshots that are written under it store their vectors."""

    number: int
    """1, 2, 3, ...; it never decreases with the version."""
    dim: int
    """D."""
    dtype: str
    """float32, float16, bfloat16, int8 or int4."""


def checked(number: int, dim: int, dtype: str) -> Schema:
    """A schema from what a caller asks for. Raises InvalidArgumentError naming the argument and its value."""
    dtype_named(dtype)
    if not isinstance(dim, int) or isinstance(dim, bool) or dim < 1:
        raise InvalidArgumentError(f"dim is {dim!r}; use 1 or more")
    return Schema(number, dim, dtype)


def newest_number(storage: Storage) -> int:
    """Number of the newest schema of a series."""
    return max(_FILES.numbers(storage), default=1)


def read(storage: Storage, number: int) -> Schema:
    """A schema with number 2 or more. Raises CorruptStoreError of the class that fits."""
    return from_fields(number, _FILES.read(storage, number))


def from_fields(number: int, fields: Fields) -> Schema:
    """The schema in a document. Raises CorruptStoreError of the class that fits."""
    schema = Schema(number, fields.integer("dim", least=1), fields.text("dtype"))
    if schema.dtype not in DTYPES:
        raise NewerFormatError(
            fields.path, f"dtype is {schema.dtype!r}, this package knows {', '.join(DTYPES)}: upgrade"
        )
    return schema


def put(storage: Storage, schema: Schema) -> None:
    """Make it the newest schema. Raises FileExistsError if there is one with its number."""
    _FILES.put(storage, schema.number, {"dim": schema.dim, "dtype": schema.dtype, "created": times.now()})
