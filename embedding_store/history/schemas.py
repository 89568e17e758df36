"""Dimension and dtype of a series, over time. Schema 1 is in series.json; each later one is a file, put if absent."""

from __future__ import annotations

import re
from typing import NamedTuple

from embedding_store import times
from embedding_store.dtypes import DTYPES, dtype_named
from embedding_store.errors import InvalidArgumentError, NewerFormatError
from embedding_store.format import documents
from embedding_store.format.documents import Fields
from embedding_store.storage.base import Storage

_NAME = re.compile(r"(\d{8,})\.json")


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
    found = (_NAME.fullmatch(name) for name in storage.names("schemas"))
    return max((int(match[1]) for match in found if match), default=1)


def read(storage: Storage, number: int) -> Schema:
    """A schema with number 2 or more. Raises CorruptStoreError of the class that fits."""
    path = _path(number)
    where = storage.locate(path)
    return from_fields(number, documents.decode(storage.read(path), "schema", where), where)


def from_fields(number: int, fields: Fields, where: str) -> Schema:
    """The schema in a document; `where` is for messages. Raises CorruptStoreError of the class that fits."""
    schema = Schema(number, fields.integer("dim", least=1), fields.text("dtype"))
    if schema.dtype not in DTYPES:
        raise NewerFormatError(where, f"dtype is {schema.dtype!r}, this package knows {', '.join(DTYPES)}: upgrade")
    return schema


def put(storage: Storage, schema: Schema) -> None:
    """Make it the newest schema. Raises FileExistsError if there is one with its number."""
    fields = {"dim": schema.dim, "dtype": schema.dtype, "created": times.now()}
    storage.put_new(_path(schema.number), documents.encode("schema", fields))


def _path(number: int) -> str:
    return f"schemas/{number:08d}.json"
