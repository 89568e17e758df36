"""Row groups of Parquet files, decoded piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa

from recsys.data.errors import DataError
from recsys.data.files import RowGroup
from recsys.data.footers import open_file
from recsys.data.pieces import Piece
from recsys.data.quarantine import NONE, Rows, places
from recsys.data.strings import ColumnReader

CHUNK_ROWS = 8192
"""Rows that are decoded, or gathered from a shuffled block, in one call: large enough for Arrow, small for a cache."""
_READ_BYTES = 1 << 20
"""Bytes of a column that are read from disk at once."""


def read_group(
    group: RowGroup, low: int, high: int, readers: Mapping[str, ColumnReader], gone: Rows = NONE
) -> Iterator[Piece]:
    """Rows [low, high) of a row group, in canonical types; strings are hashed here, before anything moves them.

    Args:
        group: of a file.
        low: counted without the rows that are gone, as is `high`.
        high: greater than `low`.
        readers: column name -> its reader.
        gone: int64 [n], rows to leave out, ascending, counted from the group's beginning.

    Raises:
        DataError: pages that cannot be read, naming file and row group.
    """
    names, row = list(readers), 0
    low, final = places(np.array([low, high - 1]), gone).tolist()
    high = final + 1
    try:
        # A read buffer, without pre_buffer: else all compressed columns of the row group would be in memory at once.
        with open_file(group.file, buffer_size=_READ_BYTES, pre_buffer=False) as file:
            # use_threads=False: a rank has a budget of threads (`workers`); the other cores belong to other ranks.
            for data in file.iter_batches(CHUNK_ROWS, row_groups=[group.index], columns=names, use_threads=False):
                first, last = max(row, low), min(row + data.num_rows, high)
                if first < last:
                    part = data.slice(first - row, last - first)
                    arrays = [reader.read(part.column(name)) for name, reader in readers.items()]
                    piece = Piece(pa.RecordBatch.from_arrays(arrays, names), group.file, group.first_row + first)
                    yield from piece.without(gone[(gone >= first) & (gone < last)] - first)
                row += data.num_rows
                if row >= high:
                    return
    except (pa.ArrowException, OSError) as error:
        rows = f"rows {group.first_row} to {group.first_row + group.rows - 1}"
        reason = str(error).rstrip(".")
        message = f"{group.file}: {rows} (row group {group.index}) cannot be read: {reason}. Write the file anew"
        raise DataError(message) from error
