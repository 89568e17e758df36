"""Rows of the entities that a table of users or items has and the upstreams' events do not: what makes them vectors.

A table has no times, so all that it has counts as known when the upstreams' events end. Nothing was done by or to these
entities until then: their counts are 0, their histories empty. What is known of their category is what its last row
until then knew.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.config import LogConfig
from recsys.data.files import write_part
from recsys.data.log.columns import Columns
from recsys.data.log.engine import Connection, number, quoted
from recsys.data.log.splits import Splits


def write_catalogue(
    connection: Connection, config: LogConfig, found: Columns, splits: Splits, out: Path
) -> dict[str, int]:
    """Write `out/users/part-0.parquet` and `out/items/part-0.parquet`, each where its table comes of files and has such
    entities: their id, `timestamp` and the features of their owner, typed as in the events of `out/events`.

    Returns:
        owner -> rows, of those that were written.
    """
    end = splits.of["upstream"][-1].end
    typed = pq.read_schema(out / "events" / splits.of["upstream"][0].name / "part-0.parquet")
    written = {}
    for owner, table in (("user", config.users), ("item", config.items)):
        if table is None or not table.files:
            continue
        rows = _entities(connection, found, owner, end)
        if rows.num_rows:
            time = number(connection, f"SELECT max(t) FROM rows WHERE rowid < {end}")
            write_part(_completed(rows, found, owner, time, typed), out / f"{owner}s")
            written[owner] = rows.num_rows
    return written


def _entities(connection: Connection, found: Columns, owner: str, end: int) -> pa.Table:
    """What the engine knows of the entities that no row before `end` has."""
    key, what = owner[0], f"{owner}s"
    listed = {name: place for name, place in found.of.items() if name in _features(found, owner)}
    facts = [
        f"t.{quoted(column)} AS {quoted(name)}" for name, (table, column) in listed.items() if table.endswith("_table")
    ]
    category = {name: column for name, (table, column) in listed.items() if table == "of_category"}
    joined = ""
    if category:
        newest = ", ".join(f"arg_max({quoted(column)}, key) AS {quoted(name)}" for name, column in category.items())
        joined = (
            f" LEFT JOIN item_category USING (i) LEFT JOIN (SELECT c, {newest} FROM of_category JOIN rows ON key = "
            f"rows.rowid JOIN item_category USING (i) WHERE key < {end} GROUP BY c) USING (c)"
        )
    columns = ", ".join([f"coalesce(e.{owner}_id, o.entity) AS {owner}_id", *facts, *map(quoted, category)])
    return connection.sql(
        f"SELECT {columns} FROM {owner}_table t LEFT JOIN {what} e ON e.rowid = t.{key} LEFT JOIN {owner}_others o "
        f"USING ({key}){joined} WHERE t.{key} NOT IN (SELECT {key} FROM rows WHERE rowid < {end}) ORDER BY t.{key}"
    ).to_arrow_table()


def _features(found: Columns, owner: str) -> list[str]:
    """Names of the owner's features, and of the times of its histories."""
    features = [feature for feature in found.schema.features if feature.owner == owner]
    return [*(feature.name for feature in features), *(feature.time for feature in features if feature.time)]


def _completed(rows: pa.Table, found: Columns, owner: str, time: int, typed: pa.Schema) -> pa.Table:
    """The columns of entity rows: those that are at hand, and what nothing has happened to for the others."""
    count = rows.num_rows
    columns: dict[str, pa.Array | pa.ChunkedArray] = {"timestamp": pa.array(np.full(count, time))}
    for name in dict.fromkeys([f"{owner}_id", *_features(found, owner)]):
        kind = typed.field(name).type
        if name in rows.column_names:
            columns[name] = rows[name].cast(kind)
            if found.of.get(name, ("",))[0] == "of_category" and pa.types.is_integer(kind):
                columns[name] = columns[name].fill_null(0)
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            columns[name] = pa.array([[]] * count, kind)
        elif name == "item_price":
            columns[name] = pa.nulls(count, kind)
        else:
            columns[name] = pa.array(np.zeros(count), pa.float64()).cast(kind)
    return pa.table(columns)
