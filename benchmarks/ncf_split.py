"""A leave-one-out split in NCF's format (benchmarks/ncf.py) of any log of users, items and times.

    python -m benchmarks.ncf_split --log events.parquet --user user_id --item item_id --time timestamp --out DIR
    python -m benchmarks.leave_one_out --data DIR

Each user's latest item is held out, with 99 items that the user never chose, drawn uniformly and once each (`--seed`).
A pair that comes more than once counts with its latest row. Users and items are numbered in the order of their ids;
`users.tsv` and `items.tsv` have them. Of users with a single item nothing is held out; they are in the training rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import tyro

from benchmarks.ncf import Ints, leave_last_out, write_split
from recsys.atomic import write_text
from recsys.data.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to split."""

    log: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction]
    """A Parquet or CSV file with a row an interaction; may be repeated."""
    out: Path
    """Folder of the split."""
    user: str = "user_id"
    """Column of the users, integers or strings."""
    item: str = "item_id"
    """Column of the items."""
    time: str = "timestamp"
    """Column of the times: numbers of any one unit, or timestamps. Null: not known, earlier than all others."""
    seed: int = 0
    """Of the negatives, and of which of a user's items of one time is the latest."""


def main(options: Options) -> None:
    """Write the split.

    Raises:
        DataError: a file cannot be read, lacks a column or has a null id; a column is of no fitting type; nobody can be
            tested.
    """
    table = pa.concat_tables([read_log(path, options.user, options.item, options.time) for path in options.log])
    user_ids, users = numbered(table["user"])
    item_ids, items = numbered(table["item"])
    times = table["time"].to_numpy()
    latest = np.lexsort((times, items, users))
    same = (np.diff(users[latest]) == 0) & (np.diff(items[latest]) == 0)
    kept = latest[np.append(~same, True)]
    users, items, times = users[kept], items[kept], times[kept]
    split, rows = leave_last_out(users, items, times, len(item_ids), seed=options.seed)
    write_split(split, times[rows], options.out)
    for name, ids in (("users", user_ids), ("items", item_ids)):
        write_text(options.out / f"{name}.tsv", "".join(f"{n}\t{each}\n" for n, each in enumerate(ids)))
    print(
        f"{len(table):,} rows, {len(table) - len(kept):,} of them pairs that came again later; "
        f"{len(user_ids):,} users, {len(split.tested):,} of them tested; {len(item_ids):,} items; "
        f"seed {options.seed}: {options.out}"
    )


def read_log(path: Path, user: str, item: str, time: str) -> pa.Table:
    """Columns `user`, `item` (int64 or string) and `time` (int64, 0 where not known). Raises DataError."""
    names = {"user": user, "item": item, "time": time}
    try:
        table = pa.csv.read_csv(path) if path.suffix == ".csv" else pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is no readable Parquet or CSV file: {error}") from None
    for role, name in names.items():
        if name not in table.column_names:
            raise DataError(f"{path} has no column {name!r}; it has {', '.join(table.column_names)}: set --{role}")
    columns = {role: table[name] for role, name in names.items()}
    for role in ("user", "item"):
        column, name = columns[role], names[role]
        if column.null_count:
            raise DataError(f"{path}: column {name!r} is null in {column.null_count} rows: give every row its id")
        whole, text = pa.types.is_integer(column.type), pa.types.is_string(column.type)
        if not (whole or text or pa.types.is_large_string(column.type)):
            raise DataError(f"{path}: column {name!r} has type {column.type}; ids are integers or strings")
        columns[role] = column.cast(pa.int64() if whole else pa.string())
    return pa.table({**columns, "time": _times(columns["time"], path, time)})


def numbered(ids: pa.ChunkedArray) -> tuple[list[object], Ints]:
    """The distinct ids, ascending, and of each row the number of its own."""
    distinct = pc.unique(ids).sort()
    return distinct.to_pylist(), pc.index_in(ids, distinct).to_numpy().astype(np.int64)


def _times(column: pa.ChunkedArray, path: Path, name: str) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_timestamp(kind):
        column = column.cast(pa.int64())
    elif pa.types.is_floating(kind):
        column = pc.floor(column)
    elif not (pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise DataError(f"{path}: column {name!r} has type {kind}; times are numbers of one unit or timestamps")
    return pc.fill_null(column.cast(pa.int64()), 0)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
