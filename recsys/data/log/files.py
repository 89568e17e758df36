"""Parquet and CSV files as SQL, with what their columns are found before a row is read."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.data.errors import DataError
from recsys.data.log.engine import literal, quoted

_PARQUET = (".parquet", ".pq")
_TEXT = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
_DELIMITERS = (",", "\t", ";", "|")


@dataclass(frozen=True)
class Source:
    """Files of one kind, all with the columns that are asked for."""

    sql: Mapping[str, tuple[str, ...]]
    """What reads files that have the same columns in the same order -> the columns; a `filename` beside them."""
    text: bool
    """Whether they are CSV, whose columns all come as VARCHAR."""

    def select(self, columns: Sequence[tuple[str, str]]) -> str:
        """SQL of rows: of each column its name in the files, and in the result; and `filename`."""
        listed = ", ".join(f"{quoted(name)} AS {quoted(shown)}" for name, shown in columns)
        return " UNION ALL ".join(f"SELECT {listed}, filename FROM {reader}" for reader in self.sql)

    @property
    def columns(self) -> tuple[str, ...]:
        """Those that all files have, in the order of the first."""
        first, *others = self.sql.values()
        return tuple(name for name in first if all(name in other for other in others))


def open_source(files: Sequence[Path], wanted: Mapping[str, str]) -> Source:
    """Look at every file's columns.

    Args:
        files: Parquet or CSV files, one at least.
        wanted: column -> who asks for it, as `log.user`.

    Raises:
        DataError: files of two kinds, or of a kind that is not read; one that cannot be read, or lacks a column.
    """
    kinds = {file: file.name.lower().endswith(_TEXT) for file in files}
    strays = [file for file in files if not kinds[file] and not file.name.lower().endswith(_PARQUET)]
    if strays:
        raise DataError(f"{strays[0]} is not named as {', '.join((*_PARQUET, *_TEXT))}: name it so, or leave it out")
    if len(set(kinds.values())) > 1:
        both = [next(file for file in files if kinds[file] is text) for text in (True, False)]
        raise DataError(f"{both[0]} is CSV and {both[1]} Parquet: give files of one kind")
    text = kinds[files[0]]
    alike: dict[tuple[str, tuple[str, ...]], list[Path]] = {}
    for file in files:
        delimiter, names = _head(file) if text else ("", _columns(file))
        for column, role in wanted.items():
            if column not in names:
                raise DataError(f"{role} is {column!r}, which {file} lacks: its columns are {', '.join(names)}")
        alike.setdefault((delimiter, names), []).append(file)
    return Source({_reader(paths, *key): key[1] for key, paths in alike.items()}, text)


def _reader(files: Sequence[Path], delimiter: str, names: Sequence[str]) -> str:
    paths = ", ".join(literal(str(file)) for file in files)
    if not delimiter:
        return f"read_parquet([{paths}], union_by_name = true, filename = true)"
    # All is said: what the engine guesses from the first rows fails at the first of them that is broken.
    columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in names)
    return (
        f"read_csv([{paths}], auto_detect = false, columns = {{{columns}}}, delim = {literal(delimiter)}, "
        "quote = '\"', escape = '\"', header = true, filename = true, store_rejects = true, rejects_limit = 1000000)"
    )


def _head(file: Path) -> tuple[str, tuple[str, ...]]:
    """Delimiter and names of the first line of a CSV file."""
    try:
        with (
            gzip.open(file, "rt", encoding="utf-8-sig")
            if file.name.endswith(".gz")
            else file.open(encoding="utf-8-sig") as lines
        ):
            first = lines.readline()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is no readable CSV file in UTF-8: {error}. Write it anew, or remove it") from None
    delimiter = max(_DELIMITERS, key=first.count)
    names = next(csv.reader([first], delimiter=delimiter), [])
    if len(set(names)) < len(names) or not all(names):
        raise DataError(f"{file} begins with {first.strip()!r}: its first line must name each column, once")
    return delimiter, tuple(names)


def _columns(file: Path) -> tuple[str, ...]:
    try:
        return tuple(pq.read_schema(file).names)
    except (pa.ArrowException, OSError) as error:
        problem = " ".join(str(error).split()).rstrip(".")
        raise DataError(f"{file} is no readable Parquet file: {problem}. Write it anew, or remove it") from None
