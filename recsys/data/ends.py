"""Which columns of Parquet files the ends of relations are: as far as footers tell. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from recsys.config.graph import EndConfig, RelationConfig
from recsys.data.columns import NULL, STRING, Column
from recsys.data.errors import DataError
from recsys.data.files import find_files
from recsys.data.footers import read_footer
from recsys.mistakes import collecting, meant, tell


@dataclass(frozen=True)
class End:
    """A column of a file, as it is read there."""

    column: str
    kind: pa.DataType
    """Canonical type: of integers, of strings, or a list of these; of nulls where it has no values."""

    @property
    def is_list(self) -> bool:
        return pa.types.is_list(self.kind)

    @property
    def element(self) -> pa.DataType:
        return self.kind.value_type if self.is_list else self.kind


Ends = dict[tuple[str, Path], tuple[End, End]]
"""Relation and file -> its head and tail as they are read there."""


def check_links(
    relations: Sequence[RelationConfig], data: Path, events: Sequence[str] = ()
) -> tuple[dict[str, list[Path]], Ends]:
    """Hold relations against the footers of their files.

    Returns:
        relation -> its files, and how its ends are read in each.

    Raises:
        DataError: what `read_links` raises, but for what no footer tells.
    """
    if not relations:
        raise DataError(
            "graph.relations is empty: declare at least one, say { name = 'clicked', head = ..., tail = ... }"
        )
    with collecting() as mistakes:
        files = {each.name: find_files(data, each.events or events) for each in relations}
        ends = {(each.name, file): _check(each, file) for each in relations for file in files[each.name]}
    if not mistakes:
        with collecting() as mistakes:
            _check_kinds(relations, files, ends)
    if mistakes:
        raise DataError(*mistakes)
    return files, ends


def _check(relation: RelationConfig, file: Path) -> tuple[End, End]:
    """How a file's columns are read as the ends of a relation; what does not fit is told."""
    try:
        found = read_footer(file).schema
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: not a readable Parquet file ({error}); write it again, or leave it out") from error
    head, tail = (
        _end(relation, file, found, end, role) for end, role in ((relation.head, "head"), (relation.tail, "tail"))
    )
    if head.is_list and tail.is_list:
        tell(
            DataError(
                f"{file}: relation {relation.name!r} has lists at both ends, {head.column!r} and {tail.column!r}; let "
                "one of them be a column of single ids"
            )
        )
    if relation.where:
        _column(relation, file, found, Column(relation.where, "`where`", "a number"))
    return head, tail


def _end(relation: RelationConfig, file: Path, found: pa.Schema, end: EndConfig, role: str) -> End:
    of_lists = end.column in found.names and pa.types.is_nested(found.field(end.column).type)
    column = Column(end.column, f"its {role}", "an integer or a string", is_list=of_lists)
    return End(end.column, _column(relation, file, found, column))


def _column(relation: RelationConfig, file: Path, found: pa.Schema, column: Column) -> pa.DataType:
    """The canonical type of a column, one of nulls where it does not fit, of which a DataError is told."""
    if column.name not in found.names:
        tell(
            DataError(
                f"{file}: column {column.name!r} is missing{meant(column.name, found.names)}; relation "
                f"{relation.name!r} reads it as {column.role}. The columns are: {', '.join(found.names)}. Add it to "
                "the file, or correct the relation"
            )
        )
        return NULL
    kind = column.canonical(found.field(column.name).type)
    if kind is None:
        tell(
            DataError(
                f"{file}: column {column.name!r} has type {found.field(column.name).type}; relation {relation.name!r} "
                f"reads it as {column.role}, which must be {column.wanted}. Cast it in the file, or correct the "
                "relation"
            )
        )
    return NULL if kind is None else kind


def _check_kinds(
    relations: Sequence[RelationConfig],
    files: Mapping[str, Sequence[Path]],
    ends: Mapping[tuple[str, Path], tuple[End, End]],
) -> None:
    """See that the ids of a node type are all integers or all strings."""
    first: dict[str, tuple[pa.DataType, str]] = {}
    for relation in relations:
        for file in files[relation.name]:
            for name, end in zip((relation.head.type, relation.tail.type), ends[relation.name, file], strict=True):
                if end.element == NULL:
                    continue
                words = "strings" if end.element == STRING else "integers"
                place = f"{words} in column {end.column!r} of {file} (relation {relation.name!r})"
                kind, before = first.setdefault(name, (end.element, place))
                if kind != end.element:
                    tell(
                        DataError(
                            f"node type {name!r} has {before} and {place}: ids of one type must all be integers or all "
                            "be strings. Cast one of the columns, or give it a node type of its own"
                        )
                    )
                    return
