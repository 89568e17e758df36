"""The log's files as one table `raw`, and what of them is no row at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import duckdb

from recsys.config import LogConfig
from recsys.data.errors import DataError
from recsys.data.files import find_files
from recsys.data.log.engine import Connection
from recsys.data.log.files import open_source


@dataclass(frozen=True)
class Raw:
    """What `raw` holds: a row of the files a row, in their order, `rowid` counting from 0."""

    types: Mapping[str, str]
    """Column of the table -> DuckDB's type; all VARCHAR from CSV files."""
    text: bool
    """Whether the files are CSV."""


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
    source = open_source(files, wanted)
    # A column may have two roles.
    listed = [(name, role) for role, name in roles.items()] + [(name, f"x_{name}") for name in extras]
    _run(connection, f"CREATE TABLE raw AS {source.select(listed)}")
    lines = "NULL::VARCHAR AS file_path, 0 AS line, '' AS error_message WHERE false"
    if source.text:
        # A line may have several errors: it is one bad row.
        lines = (
            "f.file_path, e.line, min(e.error_message) AS error_message FROM reject_errors e "
            "JOIN reject_scans f USING (scan_id, file_id) GROUP BY f.file_path, e.line"
        )
    connection.execute(f"CREATE TABLE broken AS SELECT {lines}")
    types = {row[0]: row[1] for row in connection.execute("DESCRIBE raw").fetchall() if row[0] != "filename"}
    return Raw(types, source.text)


def _run(connection: Connection, sql: str) -> None:
    try:
        connection.execute(sql)
    except duckdb.InvalidInputException as error:
        if "state machine" not in str(error):
            raise
        raise DataError(
            "a CSV file of the log ends some lines in \\r\\n and others in \\n: write it anew with one"
        ) from None


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
