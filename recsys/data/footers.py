"""Parquet footers: each is parsed once, for as long as its file stays what it is and there is room for it.

A footer describes every chunk of every column. Of 300 columns in 300 row groups it takes 60 MiB of memory, and takes
longer to parse than a row group of some hundred rows to read. What the checks need of it is small and kept for all
files; what reading needs is all of it, and is kept for the files that were read last. `Footers.shuffled` goes through
the files so that these are the ones to be read next. Of a file that was written just now nothing is kept: what is
written in its place meanwhile may have the same size and the same times.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.data.objects import opened
from recsys.data.settled import settled

KEPT_CHUNKS = 1 << 20
"""Column chunks whose descriptions a process keeps, some 700 bytes each."""


class Footer(NamedTuple):
    """What the checks need of a footer."""

    schema: pa.Schema
    group_rows: tuple[int, ...]
    """Rows of each row group."""
    chunks: int
    """Column chunks that it describes, which its time and its memory go with."""


class _Version(NamedTuple):
    """A file as long as nobody touches it."""

    path: Path
    inode: int
    size: int
    modified: int  # ns
    changed: int  # ns
    settled: bool  # if not, another file may look the same


class _Parsed:
    """The parsed footers that were used last."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._footers: OrderedDict[_Version, pq.FileMetaData] = OrderedDict()
        self._chunks = 0

    def get(self, version: _Version) -> pq.FileMetaData:
        if not version.settled:
            return pq.read_metadata(opened(version.path))
        with self._lock:
            footer = self._footers.pop(version, None)
            if footer is None:
                footer = pq.read_metadata(opened(version.path))
                self._chunks += _chunks(footer)
            self._footers[version] = footer
            while self._chunks > KEPT_CHUNKS and len(self._footers) > 1:
                _, oldest = self._footers.popitem(last=False)
                self._chunks -= _chunks(oldest)
            return footer


_PARSED = _Parsed()


def read_footer(path: Path) -> Footer:
    """What a file's footer says.

    Raises:
        OSError, pa.ArrowException: the file is not there, or is no Parquet file.
    """
    version = _version(path)
    return _kept(version) if version.settled else _read(version)


def open_file(path: Path, **options: Any) -> pq.ParquetFile:
    """Open a file to read row groups of it; pages that have a checksum are checked. Raises what `read_footer` raises.

    Args:
        path: the file.
        options: of `pq.ParquetFile`.
    """
    return pq.ParquetFile(
        opened(path), metadata=_PARSED.get(_version(path)), page_checksum_verification=True, **options
    )


@lru_cache(maxsize=16_384)
def _kept(version: _Version) -> Footer:
    return _read(version)


def _read(version: _Version) -> Footer:
    footer = _PARSED.get(version)
    rows = tuple(footer.row_group(index).num_rows for index in range(footer.num_row_groups))
    return Footer(_interned(footer.schema.to_arrow_schema().remove_metadata()), rows, _chunks(footer))


@lru_cache(maxsize=64)
def _interned(schema: pa.Schema) -> pa.Schema:
    """The first of equal schemas, so that the files of one writer share one."""
    return schema


def _version(path: Path) -> _Version:
    when, stat = time.time_ns(), path.stat()
    modified, changed = stat.st_mtime_ns, stat.st_ctime_ns
    return _Version(path, stat.st_ino, stat.st_size, modified, changed, settled(modified, changed, when))


def _chunks(footer: pq.FileMetaData) -> int:
    return footer.num_columns * (footer.num_row_groups + 1)  # one more for the schema
