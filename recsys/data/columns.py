"""Which Arrow types a schema's columns may have, and the one form of each that the rest of the reader works on.

Writers differ: pandas stores a column without a value as `null`, Polars writes `large_list`, Spark `int32`. Here all of
them become int64, string, float32, or lists of these, so that files of several writers may lie in one folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa

from recsys.data.errors import DataError
from recsys.data.schema import Schema
from recsys.mistakes import collecting, meant, tell

INTEGER = pa.int64()
STRING = pa.string()
NUMBER = pa.float32()
NULL = pa.null()

_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_STRINGS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_NUMBERS = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)

# For each element type, the canonical types it may take; the first one stands in where all values are null.
_ELEMENTS = {
    "int64": (INTEGER,),
    "an integer or a string": (INTEGER, STRING),
    "a number": (NUMBER,),
}


@dataclass(frozen=True)
class Column:
    """One use that a schema makes of a column."""

    name: str
    """Column name in the files."""
    role: str
    """Who asks for it: `feature 'hour' (id)`."""
    element: str
    """A key of `_ELEMENTS`."""
    is_list: bool = False
    """A list of such elements a row."""
    optional: bool = False
    """The files may lack it."""

    @property
    def wanted(self) -> str:
        """The type in words."""
        return f"a list of {self.element}" if self.is_list else self.element

    @property
    def default(self) -> pa.DataType:
        """The canonical type of a column that holds nothing but nulls."""
        element = _ELEMENTS[self.element][0]
        return pa.list_(element) if self.is_list else element

    def canonical(self, found: pa.DataType) -> pa.DataType | None:
        """The canonical type that `found` is read as; one of nulls where it has no values; None if it does not fit."""
        if pa.types.is_null(found):
            return pa.list_(NULL) if self.is_list else NULL
        if not self.is_list:
            return self._element(found)
        if not any(check(found) for check in _LISTS):
            return None
        element = self._element(found.value_type)
        return None if element is None else pa.list_(element)

    def _element(self, found: pa.DataType) -> pa.DataType | None:
        if pa.types.is_dictionary(found):
            found = found.value_type
        if pa.types.is_null(found):
            return NULL
        allowed = _ELEMENTS[self.element]
        if self.element == "int64":  # a time in seconds would fit into an int32: only int64 can hold milliseconds
            return INTEGER if found == INTEGER else None
        if INTEGER in allowed and pa.types.is_integer(found):
            return INTEGER
        if STRING in allowed and any(check(found) for check in _STRINGS):
            return STRING
        return NUMBER if NUMBER in allowed and any(check(found) for check in _NUMBERS) else None


@lru_cache(maxsize=64)
def expected_columns(schema: Schema) -> tuple[Column, ...]:
    """Every use the schema makes of a column, in the order of `Schema.columns`.

    A schema of user features alone, without labels, describes entity rows: these may lack the item id. The same the
    other way round.
    """
    owners = {feature.owner for feature in schema.features} if not schema.labels else set()
    columns = [
        *([Column(schema.timestamp, "the event time", "int64")] if schema.timed else []),
        Column(schema.user_id, "the user's id", "an integer or a string", optional=owners == {"item"}),
        Column(schema.item_id, "the item's id", "an integer or a string", optional=owners == {"user"}),
    ]
    for feature in schema.features:
        role = f"feature {feature.name!r} ({feature.kind})"
        element = "a number" if feature.kind in ("dense", "vector") else "an integer or a string"
        columns.append(Column(feature.name, role, element, is_list=feature.kind in ("ids", "sequence", "vector")))
        if feature.time:
            columns.append(Column(feature.time, f"the times of {role}", "int64", is_list=True))
    for label in schema.labels:
        columns.append(Column(label.name, f"label {label.name!r}", "a number"))
        if label.valid:
            columns.append(Column(label.valid, f"the valid rows of label {label.name!r}", "a number"))
        if label.time:
            columns.append(Column(label.time, f"the times of label {label.name!r}", "int64"))
    if schema.weight:
        columns.append(Column(schema.weight, "the row's weight", "a number"))
    return tuple(columns)


@lru_cache(maxsize=64)
def canonical_types(found: pa.Schema, schema: Schema) -> Mapping[str, pa.DataType]:
    """Column name -> canonical type, for the columns of `schema`; optional ones that are not there are left out.

    Raises:
        DataError: columns that are missing, have a type that their role cannot take, or serve two roles that differ.
    """
    types: dict[str, pa.DataType] = {}
    with collecting() as mistakes:
        for column in expected_columns(schema):
            if column.optional and column.name not in found.names:
                continue
            read_as = _read_as(column, found)
            if read_as is not None:
                types[column.name] = join_types(types.get(column.name, read_as), read_as, column.name)
    if mistakes:
        raise DataError(*mistakes)
    return types


def _read_as(column: Column, found: pa.Schema) -> pa.DataType | None:
    """The canonical type of a column; None where it does not fit, of which a DataError is told."""
    index = found.get_all_field_indices(column.name)
    if len(index) != 1:
        problem = "is missing" if not index else f"occurs {len(index)} times"
        tell(
            DataError(
                f"column {column.name!r} {problem}{'' if index else meant(column.name, found.names)}; it is "
                f"{column.role}, {column.wanted}. The columns are: {', '.join(found.names)}. Add it to the files, or "
                "correct or remove its name in the schema"
            )
        )
        return None
    stored = found.field(index[0]).type
    read_as = column.canonical(stored)
    if read_as is None:
        tell(
            DataError(
                f"column {column.name!r} has type {stored}; it is {column.role} and must be {column.wanted}. "
                f"Cast it in the files, or correct its role in the schema"
            )
        )
    return read_as


def join_types(first: pa.DataType, second: pa.DataType, name: str) -> pa.DataType:
    """The canonical type that serves both; a type of nulls gives way.

    Raises:
        DataError: both hold values, of different types.
    """
    if first == second or second in (NULL, pa.list_(NULL)):
        return first
    if first in (NULL, pa.list_(NULL)):
        return second
    raise DataError(
        f"column {name!r} is read as {second} here and as {first} before: ids of one column must all be integers or "
        f"all be strings, and a column has one role. Cast it in the files, or give the second role a column of its own"
    )


def with_defaults(types: Mapping[str, pa.DataType], schema: Schema) -> dict[str, pa.DataType]:
    """The same types, where a type of nulls has become the default of its role."""
    defaults = {column.name: column.default for column in expected_columns(schema)}
    return {name: defaults[name] if kind in (NULL, pa.list_(NULL)) else kind for name, kind in types.items()}


def cast_column(column: pa.Array | pa.ChunkedArray, wanted: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """The column in its canonical type; itself if it has it. An unsigned id keeps its 64 bits, so may turn negative."""
    return column if column.type == wanted else column.cast(wanted, safe=False)
