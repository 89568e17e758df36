"""The log's files as one table `raw`, and what of them is no row at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from recsys.config import LogConfig
from recsys.data.errors import DataError
from recsys.data.files import find_files
from recsys.data.log.engine import Connection, literal, quoted

_PARQUET = (".parquet", ".pq")
_TEXT = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".csv.zst")


@dataclass(frozen=True)
class Raw:
    """What `raw` holds: a row of the files a row, in their order, `rowid` counting from 0."""

    types: Mapping[str, str]
    """Column of the table -> DuckDB's type; all VARCHAR from CSV files."""
    text: bool
    """Whether the files are CSV."""


def scanned(files: Sequence[Path], *, options: str = "") -> tuple[str, bool]:
    """SQL that reads the files, all of one kind, and whether they are CSV.

    Raises:
        DataError: files of two kinds, or of a kind that is not read.
    """
    names = ", ".join(literal(str(file)) for file in files)
    if all(file.name.lower().endswith(_PARQUET) for file in files):
        return f"read_parquet([{names}], union_by_name = true, filename = true)", False
    strays = [file for file in files if not file.name.lower().endswith(_TEXT)]
    if strays:
        raise DataError(f"{strays[0]} is not named as {', '.join((*_PARQUET, *_TEXT))}: name it so, or leave it out")
    return f"read_csv([{names}], header = true, filename = true{options})", True


def check_columns(connection: Connection, files: Iterable[Path], wanted: Mapping[str, str]) -> None:
    """See that every file has the columns.

    Args:
        connection: the engine.
        files: all of the log's.
        wanted: column -> who asks for it, as `log.user`.

    Raises:
        DataError: naming file, column and the columns that are there; or a file that cannot be read.
    """
    for file in files:
        source, _ = scanned([file], options=", all_varchar = true")
        try:
            found = [row[0] for row in connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()]
        except duckdb.Error as error:
            raise DataError(f"{file} cannot be read: {' '.join(str(error).split())}") from None
        for column, role in wanted.items():
            if column not in found:
                there = ", ".join(name for name in found if name != "filename")
                raise DataError(f"{role} is {column!r}, which {file} lacks: its columns are {there}")


def read_log(connection: Connection, config: LogConfig, folder: Path) -> Raw:
    """Read the columns that the config names into `raw`, and lines that are no CSV rows into `broken`.

    `raw` has `user`, `item`, `time`, where they are named `action`, `session`, `price` and `quantity`, `filename`, and
    every other column that is asked for under its own name with `x_` before it.

    Raises:
        DataError: no such files, or a column is missing.
    """
    files = find_files(folder, config.log.files)
    roles = {
        role: name
        for role in ("user", "item", "time", "action", "session", "price", "quantity")
        if (name := getattr(config.log, role))
    }
    extras = extra_columns(config)
    wanted = {**extras, **{name: f"log.{role}" for role, name in roles.items()}}
    check_columns(connection, files, wanted)
    listed = [f"{quoted(name)} AS {quoted(role)}" for role, name in roles.items()]
    listed += [f"{quoted(name)} AS {quoted('x_' + name)}" for name in extras]
    source, text = scanned(files, options=", all_varchar = true, store_rejects = true, rejects_limit = 1000000")
    connection.execute(f"CREATE TABLE raw AS SELECT {', '.join(listed)}, filename FROM {source}")
    lines = "NULL::VARCHAR AS file_path, 0 AS line, '' AS error_message WHERE false"
    if text:
        # A line may have several errors: it is one bad row.
        lines = (
            "f.file_path, e.line, min(e.error_message) AS error_message FROM reject_errors e "
            "JOIN reject_scans f USING (scan_id, file_id) GROUP BY f.file_path, e.line"
        )
    connection.execute(f"CREATE TABLE broken AS SELECT {lines}")
    types = {row[0]: row[1] for row in connection.execute("DESCRIBE raw").fetchall() if row[0] != "filename"}
    return Raw(types, text)


def extra_columns(config: LogConfig) -> dict[str, str]:
    """Columns of the log beside those with a role -> who asks for them."""
    found = dict.fromkeys(config.log.context, "log.context")
    for name, action in config.actions.items():
        if action.column:
            found.setdefault(action.column, f"actions.{name}.column")
    for what, table in (("users", config.users), ("items", config.items)):
        if table is not None and not table.files:
            for column in table.features:
                found.setdefault(column, f"{what}.features")
    return found
