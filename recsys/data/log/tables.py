"""Features that are columns already: of the users' and items' tables, and the context's of the log."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recsys.config import EntityTable, LogConfig
from recsys.data.errors import DataError
from recsys.data.files import find_files
from recsys.data.log.engine import Connection, literal, number, one, quoted
from recsys.data.log.files import open_source
from recsys.data.log.values import is_number, is_whole, is_whole_text, plain_type
from recsys.data.schema import Feature

_CATEGORIES = 1_000
"""Whole numbers of more different values than these are read as numbers, not as categories."""


@dataclass(frozen=True)
class Described:
    """Columns that have become features."""

    features: tuple[Feature, ...]
    """Each of the name of its column in the table."""
    left_out: tuple[str, ...] = ()
    """Columns that nobody asked for by name and that are of no kind of feature."""
    covered: float = 1.0
    """Share of the log's entities that the table has."""


def table_rows(distinct: int) -> int:
    """Rows of an embedding table for so many ids: twice as many."""
    return max(2 * distinct, 2)


def describe_context(connection: Connection, config: LogConfig) -> Described:
    """Give the log's context columns, `x_` in `events`, the types and kinds they are read as."""
    names = [f"x_{name}" for name in config.log.context]
    features, _ = _describe(connection, "events", names, "context", (), strict=True)
    return Described(tuple(replace(feature, name=feature.name.removeprefix("x_")) for feature in features))


def join_table(connection: Connection, config: LogConfig, owner: str, folder: Path) -> Described:
    """Make `user_table` (`u`, features) or `item_table` (`i`, features). Where it is read of files it has the entities
    that the log lacks too, numbered after the log's: `user_others` or `item_others` has their ids.

    Raises:
        DataError: no such files or columns, a column that cannot be a feature, ids of none of which the log knows.
    """
    table: EntityTable | None = config.users if owner == "user" else config.items
    key, entities, target = owner[0], f"{owner}s", f"{owner}_table"
    if table is None:
        return Described(())
    if table.files:
        names = _read_table(connection, config, table, owner, folder)
    else:
        names = list(table.features)
        firsts = ", ".join(f"arg_min({quoted('x_' + name)}, (t, rowid)) AS {quoted(name)}" for name in names)
        connection.execute(f"CREATE TABLE {target} AS SELECT {key}, {firsts} FROM events GROUP BY {key} ORDER BY {key}")
    for name, separator in table.split.items():
        parts = f"string_split(nullif({quoted(name)}::VARCHAR, ''), {literal(separator)})"
        connection.execute(f"ALTER TABLE {target} ALTER {quoted(name)} TYPE VARCHAR[] USING {parts}")
    features, left_out = _describe(connection, target, names, owner, table.dense, strict=bool(table.features))
    known = number(connection, f"SELECT count(*) FROM {entities}")
    covered = number(connection, f"SELECT count(*) FROM {target} WHERE {key} < {known}") / known
    return Described(tuple(features), tuple(left_out), covered)


def _read_table(connection: Connection, config: LogConfig, table: EntityTable, owner: str, folder: Path) -> list[str]:
    """The table's rows, the first of each entity; returns the columns that may be features."""
    what, key, id_column = f"{owner}s", owner[0], table.id or getattr(config.log, owner)
    files = find_files(folder, table.files)
    wanted = {id_column: f"{what}.id", **dict.fromkeys(table.features, f"{what}.features")}
    wanted |= {**dict.fromkeys(table.dense, f"{what}.dense"), **dict.fromkeys(table.split, f"{what}.split")}
    if owner == "item" and config.items and config.items.category:
        wanted[config.items.category] = "items.category"
    source = open_source(files, wanted)
    names = list(table.features) or [name for name in source.columns if name != id_column]
    listed = [(id_column, "entity_id"), *((name, name) for name in names)]
    connection.execute(f"CREATE TABLE facts AS {source.select(listed)}")
    numeric = is_whole(one(connection, f"SELECT typeof({owner}_id) FROM {what} LIMIT 1")[0])
    known = "entity_id::VARCHAR"
    if numeric:
        known = f"CASE WHEN {is_whole_text('entity_id::VARCHAR')} THEN TRY_CAST(entity_id AS BIGINT) END"
    connection.execute(
        f"CREATE TABLE {owner}_others AS SELECT (SELECT count(*) FROM {what}) + row_number() OVER (ORDER BY "
        f"min(rowid)) - 1 AS {key}, {known} AS entity FROM facts WHERE entity IS NOT NULL AND entity NOT IN "
        f"(SELECT {owner}_id FROM {what}) GROUP BY entity ORDER BY {key}"
    )
    everyone = (
        f"SELECT rowid AS {key}, {owner}_id AS entity FROM {what} UNION ALL SELECT {key}, entity FROM {owner}_others"
    )
    connection.execute(
        f"CREATE TABLE {owner}_table AS SELECT e.{key}::INTEGER AS {key}, "
        f"{', '.join('f.' + quoted(name) for name in names)} FROM ({everyone}) e JOIN "
        f"(SELECT *, {known} AS entity FROM facts QUALIFY row_number() OVER (PARTITION BY {known} ORDER BY rowid) = 1) "
        f"f USING (entity) ORDER BY {key}"
    )
    entities = number(connection, f"SELECT count(*) FROM {what}")
    if not number(connection, f"SELECT count(*) FROM {owner}_table WHERE {key} < {entities}"):
        first, log = (
            one(connection, sql)[0]
            for sql in ("SELECT any_value(entity_id) FROM facts", f"SELECT min({owner}_id) FROM {what}")
        )
        raise DataError(
            f"{what}.id is {id_column!r}, with ids such as {first!r}, of which the log has none; its own are such as "
            f"{log!r}: name the column that has them"
        )
    connection.execute("DROP TABLE facts")
    return names


def _describe(
    connection: Connection, table: str, names: Iterable[str], owner: str, dense: Iterable[str], *, strict: bool
) -> tuple[list[Feature], list[str]]:
    """The feature that each column is, and those that are none; the table's columns get their plain types."""
    kinds = {row[0]: row[1] for row in connection.execute(f"DESCRIBE {table}").fetchall()}
    features, left_out = [], []
    for name in names:
        column = quoted(name)
        kind = plain_type(connection, column, kinds[name], table)
        if kind != kinds[name]:
            connection.execute(
                f"ALTER TABLE {table} ALTER {column} TYPE {kind} USING TRY_CAST(nullif({column}, '') AS {kind})"
            )
        feature = _feature(connection, table, name, kind, owner, as_number=name in dense)
        if feature is None and strict:
            raise DataError(
                f"column {name.removeprefix('x_')!r} of the {owner}s has type {kind}, which is no feature: use numbers,"
                " strings, true and false or lists of strings or whole numbers, or leave it out"
            )
        if feature is None:
            left_out.append(name)
        else:
            features.append(feature)
    return features, left_out


def _feature(
    connection: Connection, table: str, name: str, kind: str, owner: str, *, as_number: bool
) -> Feature | None:
    column = quoted(name)
    settings: dict[str, Any] = {"name": name, "owner": owner}

    def distinct(values: str) -> int:
        return number(connection, f"SELECT count(DISTINCT v) FROM (SELECT {values} AS v FROM {table})")

    if kind == "BOOLEAN" or (is_number(kind) and (as_number or not is_whole(kind))):
        return Feature(kind="dense", **settings)
    if is_whole(kind) or kind in ("VARCHAR", "UUID") or kind.startswith("ENUM"):
        many = distinct(column)
        if is_whole(kind) and many > _CATEGORIES:
            return Feature(kind="dense", **settings)
        return Feature(kind="id", rows=table_rows(many), **settings)
    if kind.endswith("[]") and (kind == "VARCHAR[]" or is_whole(kind.removesuffix("[]"))):
        return Feature(kind="ids", rows=table_rows(distinct(f"unnest({column})")), **settings)
    return None
