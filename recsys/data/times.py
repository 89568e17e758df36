"""Times of a log's rows: by the footers of its files where these tell, else by reading the rows that matter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from recsys.data.errors import DataError
from recsys.data.files import read_footers
from recsys.data.footers import open_file, read_footer
from recsys.data.schema import Schema
from recsys.dates import misread, not_milliseconds


def check_unit(files: Sequence[Path], schema: Schema) -> None:
    """Refuse files all of whose times are of another unit than ms, by what their footers say.

    Single rows of another unit are found, and told of, where all rows are read; files that are no Parquet by
    `check_files`.

    Raises:
        DataError: naming the first of the files.
    """
    for file in files if schema.timed else ():
        try:
            read_footer(file)
        except (pa.ArrowException, OSError):
            continue
        least = min((span[0] for span in _spans(file, schema) if span), default=0)
        if not_milliseconds(np.array([least])) is not None:
            raise DataError(f"{file}: column {schema.timestamp!r}: the event time is {misread(least)}")


def newest_time(files: Sequence[Path], schema: Schema, *, above: int) -> int:
    """Time of the newest row whose ids and time can be read, ms, if it is later than `above`; else something not later.

    Args:
        files: that `check_files` has passed.
        schema: with event times.
        above: what it is to be held against; row groups that end before are not read.

    Raises:
        DataError: what `read_footers` raises.
    """
    ids = [column for column in dict.fromkeys((schema.user_id, schema.item_id)) if column]
    newest = 0
    for group in read_footers(files, schema).row_groups:
        span = _spans(group.file, schema)[group.index]
        if span and span[1] <= max(above, newest):
            continue
        with open_file(group.file) as opened:
            there = [column for column in ids if column in opened.schema_arrow.names]
            rows = opened.read_row_group(group.index, columns=[schema.timestamp, *there]).drop_null()
        times = rows.column(schema.timestamp).to_numpy()
        strays = not_milliseconds(times)
        newest = max(newest, int(times[slice(None) if strays is None else ~strays].max(initial=0)))
    return newest


def _spans(file: Path, schema: Schema) -> list[tuple[int, int] | None]:
    """Least and greatest time of each row group of a file; None where its footer does not say."""
    with open_file(file) as opened:
        footer, column = opened.metadata, opened.schema_arrow.get_field_index(schema.timestamp)
    if column < 0 or not pa.types.is_integer(footer.schema.to_arrow_schema().field(column).type):
        return [None] * footer.num_row_groups
    spans: list[tuple[int, int] | None] = []
    for index in range(footer.num_row_groups):
        group = footer.row_group(index)
        chunks = (group.column(number) for number in range(group.num_columns))
        statistics = next((chunk.statistics for chunk in chunks if chunk.path_in_schema == schema.timestamp), None)
        spans.append((statistics.min, statistics.max) if statistics is not None and statistics.has_min_max else None)
    return spans
