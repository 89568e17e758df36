"""The events: every row with what was known before it, a folder a day, and their schema."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.config import ConfigError, LogConfig
from recsys.data.files import ROW_GROUP_ROWS
from recsys.data.log.engine import Connection, number, quoted
from recsys.data.log.features import counters, histories
from recsys.data.log.rows import labels
from recsys.data.log.splits import Part, valid_column
from recsys.data.log.tables import Described, table_rows
from recsys.data.schema import Feature, Label, Schema
from recsys.dates import DAY_MS, HOUR_MS

_READ_ROWS = 4 * ROW_GROUP_ROWS
_LISTED_ROWS, _LISTED_MOST = 16, 1_000_000
"""Rows of a history's table for each item, so many that few share one; of many items fewer, down to two."""


@dataclass(frozen=True)
class Columns:
    """What an event is made of."""

    sql: dict[str, str]
    """Column -> SQL, of the tables that `_query` joins."""
    schema: Schema


def columns(
    connection: Connection, config: LogConfig, described: dict[str, Described], answers: Sequence[str]
) -> Columns:
    """Every column of the events.

    Args:
        connection: the engine.
        config: what is asked for.
        described: owner -> its features that are columns already.
        answers: tables of `make_features`.

    Raises:
        ConfigError: two columns of one name.
    """
    users, items = (number(connection, f"SELECT count(*) FROM {table}") for table in ("users", "items"))
    facts = {
        "user": [(feature, f"user_table.{quoted(feature.name)}") for feature in described["user"].features],
        "item": [(feature, f"item_table.{quoted(feature.name)}") for feature in described["item"].features],
        "context": [(feature, f"v.{quoted('x_' + feature.name)}") for feature in described["context"].features],
    }
    found: list[tuple[Feature, str]] = [
        (Feature(name="user_id", owner="user", kind="id", rows=table_rows(users)), "users.user_id"),
        *_lists(config, items),
        *_dense("of_user", "user", [name for name, *_ in counters(config, "user")]),
        *facts["user"],
        (Feature(name="item_id", owner="item", kind="id", rows=table_rows(items)), "items.item_id"),
        *_dense("of_item", "item", [name for name, *_ in counters(config, "item")]),
        (
            Feature(name="item_age_hours", owner="item", kind="dense"),
            f"(greatest(r.t - item_start.start, 0) / {HOUR_MS})::FLOAT",
        ),
        *(_dense("of_item", "item", ["item_price"]) if config.log.price else []),
        *facts["item"],
    ]
    if "of_pair" in answers:
        found += _dense("of_category", "item", [name for name, *_ in counters(config, "category")])
        pairs = [name for name, *_ in counters(config, "user_category", spans=False)]
        found += _dense("of_pair", "interaction", pairs)
    local = f"(r.t + {round(config.log.utc_offset_hours * HOUR_MS)})"
    found += [
        *facts["context"],
        (Feature(name="hour", owner="context", kind="id", rows=24), f"({local} // {HOUR_MS} % 24)::INTEGER"),
        (Feature(name="weekday", owner="context", kind="id", rows=7), f"({local} // {DAY_MS} % 7)::INTEGER"),
    ]
    sql = {"timestamp": "r.t"}
    times = {f"last_{name}_time": f"of_user.{quoted(f'last_{name}_time')}" for name in histories(config)}
    outcomes = _outcomes(config)
    _check_names([*sql, *(feature.name for feature, _ in found), *times, *labels(config), *outcomes])
    sql |= {feature.name: column for feature, column in found} | times
    sql |= {name: f"r.{quoted(name)}" for name in labels(config)} | outcomes
    schema = Schema(
        features=tuple(feature for feature, _ in found),
        labels=tuple(Label(name=name, valid=valid_column(config, name)) for name in labels(config)),
        outcomes=tuple(outcomes),
    )
    return Columns(sql, schema)


def write_events(
    connection: Connection, found: Columns, parts: Sequence[Part], answers: Sequence[str], folder: Path
) -> None:
    """Write `folder/<part>/part-0.parquet` of each part, in the order of the rows."""

    def write(together: list[Part]) -> None:
        cursor, left = connection.cursor(), iter(together)
        reader = cursor.sql(_query(connection.cursor(), found, together, answers)).to_arrow_reader(_READ_ROWS)
        part = next(left)
        writer, row = _writer(folder / part.name, reader.schema), part.begin
        for batch in reader:
            rows = pa.Table.from_batches([batch])
            while rows.num_rows:
                if row == part.end:
                    writer.close()
                    part = next(left)
                    writer = _writer(folder / part.name, reader.schema)
                now = rows.slice(0, part.end - row)
                writer.write_table(now, row_group_size=ROW_GROUP_ROWS)
                rows, row = rows.slice(now.num_rows), row + now.num_rows
        writer.close()

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(write, _together(parts)))


def _writer(folder: Path, schema: pa.Schema) -> pq.ParquetWriter:
    folder.mkdir(parents=True)
    # Of the histories hardly a time is there twice in a row group: a dictionary would be made for nothing.
    short = [field.name for field in schema if not pa.types.is_list(field.type)]
    return pq.ParquetWriter(folder / "part-0.parquet", schema, use_dictionary=short, write_page_checksum=True)


def _together(parts: Sequence[Part]) -> list[list[Part]]:
    """Parts that are asked for at once: a question costs as much as some thousand rows."""
    groups: list[list[Part]] = []
    for part in parts:
        if not groups or part.end - groups[-1][0].begin > _READ_ROWS:
            groups.append([])
        groups[-1].append(part)
    return groups


def _query(connection: Connection, found: Columns, parts: Sequence[Part], answers: Sequence[str]) -> str:
    """SQL of the events of parts that follow one another.

    The bounds are said of every table that is in the rows' order, so that little is read.
    """
    begin, end = parts[0].begin, parts[-1].end
    rows = f"rowid >= {begin} AND rowid < {end}"
    first = number(connection, f"SELECT min(e) FROM rows WHERE {rows}")
    last = number(connection, f"SELECT max(e) FROM rows WHERE {rows}")
    joins = [f"(SELECT rowid AS r, * FROM rows WHERE {rows}) r"]
    joins.append(f"(SELECT rowid AS e, * FROM events WHERE rowid >= {first} AND rowid <= {last}) v USING (e)")
    joins += ["(SELECT rowid AS u, user_id FROM users) users ON users.u = r.u"]
    joins += ["(SELECT rowid AS i, item_id FROM items) items ON items.i = r.i", "item_start ON item_start.i = r.i"]
    sql = " JOIN ".join(joins)
    for name in answers:
        key, low, high = ("e", first, last) if name == "of_user" else ("r", begin, end - 1)
        sql += f" LEFT JOIN (SELECT * FROM {name} WHERE key >= {low} AND key <= {high}) {name} ON {name}.key = r.{key}"
    for owner in ("user", "item"):
        if any(column.startswith(f"{owner}_table.") for column in found.sql.values()):
            sql += f" LEFT JOIN {owner}_table ON {owner}_table.{owner[0]} = r.{owner[0]}"
    listed = ", ".join(f"{column} AS {quoted(name)}" for name, column in found.sql.items())
    return f"SELECT {listed} FROM {sql} ORDER BY r.r"


def _lists(config: LogConfig, items: int) -> list[tuple[Feature, str]]:
    rows = max(table_rows(items), min(_LISTED_ROWS * items, _LISTED_MOST))
    return [
        (
            Feature(
                name=f"last_{name}",
                owner="user",
                kind="sequence",
                rows=rows,
                table="history_item",
                max_length=config.features.last,
                time=f"last_{name}_time",
            ),
            f"of_user.{quoted(f'last_{name}')}",
        )
        for name in histories(config)
    ]


def _dense(table: str, owner: str, names: Sequence[str]) -> list[tuple[Feature, str]]:
    # An entity that no share knew has done nothing: a category that is null, say.
    return [
        (Feature(name=name, owner=owner, kind="dense"), f"{table}.{quoted(name)}")
        if name == "item_price"
        else (Feature(name=name, owner=owner, kind="dense"), f"coalesce({table}.{quoted(name)}, 0)")
        for name in names
    ]


def _outcomes(config: LogConfig) -> dict[str, str]:
    """What is known after the event, of those that took place."""
    names = [name for name in ("price", "quantity") if getattr(config.log, name)]
    happened = "true" if config.ratio == 0 else f"r.{quoted(config.row_action)} = 1"
    return {name: f"CASE WHEN {happened} THEN v.{name} END" for name in names}


def _check_names(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"the events would have two columns {', '.join(map(repr, twice))}: rename the action in [actions], or "
            "leave the column out of log.context, users.features or items.features, or rename it in the files"
        )
