"""DuckDB as this room uses it: in a file of its own beside the output, with a limit to its memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from recsys.data.errors import DataError

Connection = duckdb.DuckDBPyConnection


@contextmanager
def engine(folder: Path, memory_gb: float) -> Iterator[Connection]:
    """A database in `folder` that keeps at most so much in memory and the rest there.

    Raises:
        DataError: in place of what DuckDB says of the files, or of a disk or a memory that is full.
    """
    settings: dict[str, Any] = {
        "memory_limit": f"{memory_gb * 1000:.0f}MB",
        "temp_directory": str(folder / "spill"),
        "threads": os.cpu_count() or 1,
        "autoinstall_known_extensions": False,
        "TimeZone": "UTC",
    }
    connection = duckdb.connect(str(folder / "log.duckdb"), config=settings)
    try:
        yield connection
    except duckdb.OutOfMemoryException as error:
        raise DataError(f"log.memory_gb is {memory_gb:g}, which is too little: {_line(error)}. Raise it") from None
    except (duckdb.IOException, duckdb.InvalidInputException) as error:
        raise DataError(f"the log cannot be read: {_line(error)}") from None
    finally:
        connection.close()


def quoted(name: str) -> str:
    """A column's name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A string in SQL."""
    return "'" + text.replace("'", "''") + "'"


def one(connection: Connection, sql: str) -> tuple[Any, ...]:
    """The one row that a query finds."""
    (row,) = connection.execute(sql).fetchall()  # all of it: one row fetched would leave the result open
    return tuple(row)


def number(connection: Connection, sql: str) -> int:
    """The one whole number that a query finds."""
    return int(one(connection, sql)[0] or 0)


def _line(error: duckdb.Error) -> str:
    return " ".join(str(error).split())
