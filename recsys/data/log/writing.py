"""The events: every row with what was known before it, a folder a day.

Tables of the engine that have a row an event are in the order of time, and so are the rows: pieces of both are laid
side by side. What users and items are is kept as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.data.files import ROW_GROUP_ROWS
from recsys.data.log.columns import Columns
from recsys.data.log.engine import Connection, quoted
from recsys.data.log.splits import Part
from recsys.dates import DAY_MS, HOUR_MS

_KEYS = {
    "events": ("rowid", "e"),
    "of_user": ("key", "e"),
    "of_item": ("key", "r"),
    "of_category": ("key", "r"),
    "of_pair": ("key", "r"),
    "users": ("rowid", "u"),
    "items": ("rowid", "i"),
    "item_start": ("i", "i"),
    "user_table": ("u", "u"),
    "item_table": ("i", "i"),
}
"""Table -> its key, by which it is sorted, and what of a row that is: the event, the row itself, the user, the item."""
_WHOLE = ("u", "i")
_READ_ROWS = 8 * ROW_GROUP_ROWS


@dataclass(frozen=True)
class _Keyed:
    """Rows of a table of the engine, by their key."""

    keys: NDArray[np.int64]  # ascending
    rows: pa.Table

    @classmethod
    def read(cls, connection: Connection, table: str, names: Sequence[str], where: str = "") -> _Keyed:
        key = _KEYS[table][0]
        listed = ", ".join(quoted(name) for name in names)
        found = connection.sql(f"SELECT {key}::BIGINT AS key, {listed} FROM {table} {where}").to_arrow_table()
        return cls(found["key"].to_numpy(), found.drop_columns("key").combine_chunks())

    def take(self, wanted: NDArray[np.int64]) -> pa.Table:
        """The rows of these keys; nulls for one that is not there."""
        place = np.minimum(np.searchsorted(self.keys, wanted), max(len(self.keys) - 1, 0))
        if not len(self.keys):
            return pa.table({field.name: pa.nulls(len(wanted), field.type) for field in self.rows.schema})
        return self.rows.take(pa.array(place, mask=self.keys[place] != wanted))


def write_events(connection: Connection, found: Columns, parts: Sequence[Part], folder: Path) -> None:
    """Write `folder/<part>/part-0.parquet` of each part, in the order of the rows."""
    tables = found.tables()
    whole = {name: _Keyed.read(connection, name, tables[name]) for name in tables if _KEYS[name][1] in _WHOLE}

    def write(together: list[Part]) -> None:
        left = iter(together)
        part, writer, row = next(left), None, together[0].begin
        for rows in _events(connection.cursor(), found, whole, together[0].begin, together[-1].end):
            while rows.num_rows:
                if row == part.end and writer is not None:
                    writer.close()
                    part, writer = next(left), None
                writer = writer or _writer(folder / part.name, rows.schema)
                now = rows.slice(0, part.end - row)
                writer.write_table(now, row_group_size=ROW_GROUP_ROWS)
                rows, row = rows.slice(now.num_rows), row + now.num_rows
        if writer is not None:
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


def _events(
    connection: Connection, found: Columns, whole: dict[str, _Keyed], begin: int, end: int
) -> Iterator[pa.Table]:
    """The rows [begin, end), a piece at a time."""
    tables = {name: names for name, names in found.tables().items() if name not in whole}
    listed = "".join(f", {quoted(name)}" for name in found.labels)
    for first in range(begin, end, _READ_ROWS):
        last = min(first + _READ_ROWS, end)
        rows = connection.sql(
            f"SELECT e::BIGINT AS e, u::BIGINT AS u, i::BIGINT AS i, t{listed} FROM rows "
            f"WHERE rowid >= {first} AND rowid < {last}"
        ).to_arrow_table()
        keys = {name: rows[name].to_numpy() for name in ("e", "u", "i")} | {"r": np.arange(first, last)}
        taken = {name: keyed.take(keys[_KEYS[name][1]]) for name, keyed in whole.items()}
        for name, names in tables.items():
            key, by = _KEYS[name]
            where = f"WHERE {key} >= {keys[by][0]} AND {key} <= {keys[by][-1]}"
            taken[name] = _Keyed.read(connection, name, names, where).take(keys[by])
        yield _assembled(found, rows, taken)


def _assembled(found: Columns, rows: pa.Table, taken: dict[str, pa.Table]) -> pa.Table:
    """The columns of the events."""
    columns: dict[str, Any] = {"timestamp": rows["t"]}
    counts = {feature.name for feature in found.schema.features if feature.kind == "dense"}
    for name, (table, column) in found.of.items():
        values = taken[table][column]
        # Who no share knew has done nothing: an item without a category, say.
        counted = name in counts and table.startswith("of_") and pa.types.is_integer(values.type)
        columns[name] = values.fill_null(0) if counted else values
    time = rows["t"].to_numpy()
    age = np.maximum(time - taken["item_start"]["start"].to_numpy(), 0) / HOUR_MS
    local = time + found.offset
    columns["item_age_hours"] = age.astype(np.float32)
    columns["hour"] = (local // HOUR_MS % 24).astype(np.int32)
    columns["weekday"] = (local // DAY_MS % 7).astype(np.int32)
    columns |= {name: rows[name] for name in found.labels}
    if found.happened:
        happened = pa.array(rows[found.happened].to_numpy() == 1)
        for name in found.outcomes:
            columns[name] = pc.if_else(happened, columns[name], None)
    return pa.table(columns)
