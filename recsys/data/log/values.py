"""Columns of the log as SQL: ids, times and numbers, and what is wrong with each value that cannot be one."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from recsys.config import LogFiles
from recsys.config.log import UNITS
from recsys.data.errors import DataError
from recsys.data.log.engine import Connection, literal, one
from recsys.dates import DAY_MS

FIRST_MS = 10**11
"""Times before this one, of March 1973, are read as another unit's by whoever reads the events."""
_EXACT = 2**53
"""Up to this a float holds every whole number."""
_INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "HUGEINT")
_RANGES = {"s": (1e8, 1e11), "ms": (1e11, 1e14), "us": (1e14, 1e17), "ns": (1e17, 9.3e18)}
"""Numbers that are times from 1973 to 5138 in each unit."""
_WORDS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_NUMBER, _WHOLE = (rf"^-?(0|[1-9]\d*)(\.{digit}+)?$" for digit in (r"\d", "0"))
"""Of text: ids that are numbers, as a float's are too, and those of them that are whole. 007 is neither."""


@dataclass(frozen=True)
class Value:
    """A column of `raw` as it is read."""

    sql: str
    """Its value; NULL where there is none."""
    problems: str
    """CASE branches that say what is wrong with a value, in words."""
    note: str = ""
    """How it was read, for the summary."""


def is_number(kind: str) -> bool:
    """Whether DuckDB's type is one of numbers."""
    return kind in _INTEGERS or kind in ("FLOAT", "DOUBLE") or kind.startswith("DECIMAL")


def is_whole(kind: str) -> bool:
    """Whether DuckDB's type is one of whole numbers."""
    return kind in _INTEGERS


def read_id(connection: Connection, column: str, kind: str, *, text: bool, name: str, bad: float) -> Value:
    """A column of ids.

    Args:
        connection: the engine, with `raw`.
        column: of `raw`.
        kind: DuckDB's type of it.
        text: whether it comes from CSV files, where integers are strings too.
        name: of the column in the files.
        bad: share of the rows that may be unreadable.

    Raises:
        DataError: the type is none of an id.
    """
    null = f"WHEN {column} IS NULL THEN 'the id is null: give every row its id, or drop the row'"
    if kind in _INTEGERS:
        sql = f"TRY_CAST({column} AS BIGINT)"
        return Value(sql, f"{null} WHEN {sql} IS NULL THEN 'the id does not fit into 64 bits: use strings'")
    if is_number(kind):
        fits = f"isfinite({column}::DOUBLE) AND {column} = floor({column}) AND abs({column}) <= {_EXACT}"
        sql = f"CASE WHEN {fits} THEN TRY_CAST({column} AS BIGINT) END"
        return Value(sql, f"{null} WHEN isnan({column}::DOUBLE) THEN 'the id is NaN: drop the row' {_fraction(sql)}")
    if kind not in ("VARCHAR", "UUID"):
        raise DataError(f"column {name!r} has type {kind}; ids are integers or strings: cast it in the files")
    null = f"WHEN coalesce({column}::VARCHAR, '') = '' THEN 'the id is null: give every row its id, or drop the row'"
    whole = is_whole_text(column)
    if text and _most(connection, f"{column} IS NOT NULL", f"regexp_matches({column}, {literal(_NUMBER)})", bad):
        sql = f"CASE WHEN {whole} THEN TRY_CAST(split_part({column}, '.', 1) AS BIGINT) END"
        return Value(sql, f"{null} {_fraction(sql)}")
    return Value(f"nullif({column}::VARCHAR, '')", null)


def _fraction(sql: str) -> str:
    return f"WHEN {sql} IS NULL THEN 'the id is no whole number as the others are: correct it, or drop the row'"


def read_time(connection: Connection, kind: str, log: LogFiles, *, text: bool) -> Value:
    """The column of times as milliseconds since 1970 UTC.

    Raises:
        DataError: the type is none of a time; numbers that are times in no unit, or not in the one that is given.
    """
    zone = literal(log.time_zone)
    if kind == "TIMESTAMP WITH TIME ZONE":
        return _dated("epoch_ms(time)", "times with their zone")
    if kind.startswith("TIMESTAMP") or kind == "DATE":
        return _dated(f"epoch_ms(time::TIMESTAMP AT TIME ZONE {zone})", f"clock times of {log.time_zone}")
    if is_number(kind):
        return _numbers(connection, "time", log, whole=kind in _INTEGERS)
    if kind != "VARCHAR":
        raise DataError(f"log.time is {log.time!r} of type {kind}; times are numbers, timestamps, dates or strings")
    if log.time_format:
        form = literal(log.time_format)
        parsed = f"try_strptime(time, {form})"
        local = parsed if "%z" in log.time_format else f"{parsed} AT TIME ZONE {zone}"
        return _dated(f"epoch_ms({local})", f"strings as {log.time_format}, of {log.time_zone} where they name no zone")
    digits = "TRY_CAST(time AS DOUBLE)"
    if _most(connection, "time IS NOT NULL", f"{digits} IS NOT NULL", log.max_bad_rows):
        return _numbers(connection, digits, log, whole=False)
    # Of the zone that it names, or else of log.time_zone: a naive time becomes one of UTC, and is moved.
    named = r"(Z|z|UTC|[+-]\d{2}(:?\d{2})?)\s*$"
    zoned = f"regexp_matches(substr(time, 11), {literal(named)})"
    moved = f"TRY_CAST(time AS TIMESTAMP) AT TIME ZONE {zone}"
    sql = f"epoch_ms(CASE WHEN {zoned} THEN TRY_CAST(time AS TIMESTAMPTZ) ELSE {moved} END)"
    return _dated(sql, f"ISO 8601, of {log.time_zone} where they name no zone")


def _numbers(connection: Connection, column: str, log: LogFiles, *, whole: bool) -> Value:
    counts = {
        unit: f"count(*) FILTER ({column} >= {least} AND {column} < {most})" for unit, (least, most) in _RANGES.items()
    }
    *found, low, high, rows = one(
        connection, f"SELECT {', '.join(counts.values())}, min({column}), max({column}), count({column}) FROM raw"
    )
    best = max(zip(found, counts, strict=True), key=lambda each: each[0])[1] if any(found) else ""
    enough = best and found[list(counts).index(best)] * 2 > rows
    if not enough and rows:
        raise DataError(
            f"log.time is {log.time!r} with numbers from {low} to {high}, which are times since 1970 in no unit of "
            f"{', '.join(UNITS)}: name the column of the time, or write it as ISO 8601 (dates as 20240131: "
            "strings, with time_format = '%Y%m%d')"
        )
    unit = log.time_unit or best or "ms"
    if best and unit != best:
        raise DataError(
            f"log.time_unit is {unit!r}, but most of {log.time!r}, from {low} to {high}, reads as {_WORDS[best]}: "
            f"say time_unit = {best!r}, or leave it out"
        )
    factor = UNITS[unit]
    if not whole:  # seconds with a fraction too
        scale = f"* {factor}" if factor > 0 else f"/ {-factor}"
        fits = f"abs({column} {scale}) < 9e15"
        return _dated(f"CASE WHEN {fits} THEN floor({column} {scale})::BIGINT END", _WORDS[unit])
    scaled = f"{column}::HUGEINT * {factor}" if factor > 0 else f"{column}::HUGEINT // {-factor}"
    return _dated(f"TRY_CAST({scaled} AS BIGINT)", _WORDS[unit])


def _dated(sql: str, note: str) -> Value:
    latest = time.time_ns() // 1_000_000 + DAY_MS
    read_as, first = note.replace("'", ""), np.datetime64(FIRST_MS, "ms").astype("M8[D]")
    problems = (
        "WHEN time IS NULL OR time::VARCHAR = '' THEN 'the time is null: give every row its time, or drop the row' "
        f"WHEN {sql} IS NULL THEN 'the time cannot be read as {read_as}: correct it, or drop the row' "
        f"WHEN {sql} < {FIRST_MS} THEN 'the time is before {first}: correct the clock' "
        f"WHEN {sql} > {latest} THEN 'the time is more than a day ahead of now: correct the clock'"
    )
    return Value(sql, problems, note)


def read_amount(column: str, kind: str, *, least: float | None = 0) -> Value:
    """A column of numbers, of which none may be below `least`; NULL is unknown.

    Raises:
        DataError: the type is none of a number.
    """
    if not is_number(kind) and kind not in ("VARCHAR", "BOOLEAN"):
        raise DataError(f"column {column} has type {kind}; it must be numbers: cast it in the files")
    sql = f"TRY_CAST({column} AS DOUBLE)"
    problems = f"WHEN nullif({column}::VARCHAR, '') IS NOT NULL AND ({sql} IS NULL OR NOT isfinite({sql})) "
    problems += "THEN 'it is no number: correct it, or leave it empty'"
    if least is not None:
        problems += f" WHEN {sql} < {least} THEN 'it is below {least:g}: correct it, or leave out what was returned'"
    return Value(sql, problems)


def plain_type(connection: Connection, column: str, kind: str, table: str) -> str:
    """The type that a column is read in: of strings from CSV files BIGINT or DOUBLE where all of them are such."""
    if kind != "VARCHAR":
        return kind
    whole = f"{is_whole_text(column)} AND NOT contains({column}, '.')"  # a cast alone would round
    fits = {
        "BIGINT": f"{whole} AND TRY_CAST({column} AS BIGINT) IS NOT NULL",
        "DOUBLE": f"regexp_matches({column}, '^-?(0|[1-9.])') AND NOT regexp_matches({column}, '^-?0[0-9]') "
        f"AND TRY_CAST({column} AS DOUBLE) IS NOT NULL",
    }
    for narrower, condition in fits.items():
        filled, fit = one(connection, f"SELECT count(nullif({column}, '')), count(*) FILTER ({condition}) FROM {table}")
        if filled and fit == filled:
            return narrower
    return kind


def is_whole_text(column: str) -> str:
    """SQL that says whether text is a whole number, as 12 and 12.0 are and 007 is not."""
    return f"regexp_matches({column}, {literal(_WHOLE)})"


def _most(connection: Connection, of: str, condition: str, bad: float) -> bool:
    """Whether all rows but a share satisfy the condition, and there is one."""
    rows, fit = one(connection, f"SELECT count(*) FILTER ({of}), count(*) FILTER ({of} AND {condition}) FROM raw")
    return rows > 0 and fit >= rows * (1 - max(bad, 0.001))
