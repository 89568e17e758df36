"""Rows on their way from a file to a batch, which do not forget where they come from."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from recsys.data.quarantine import Rows


class Origin(NamedTuple):
    """Where consecutive rows come from."""

    file: Path
    row: int
    """Row of the file that they begin with."""
    rows: int


class Piece(NamedTuple):
    """Consecutive rows of one file."""

    data: pa.RecordBatch
    file: Path
    row: int
    """Row of the file that the piece begins with."""

    def slice(self, offset: int, length: int) -> Piece:
        return Piece(self.data.slice(offset, length), self.file, self.row + offset)

    def without(self, gone: Rows) -> Iterator[Piece]:
        """What lies between the rows that are gone (int64 [n], ascending, counted from the piece's beginning)."""
        start = 0
        for row in (*gone.tolist(), self.data.num_rows):
            if start < row:
                yield self.slice(start, row - start)
            start = row + 1


class Buffer:
    """Rows that have been read ahead."""

    def __init__(self, source: Iterator[Piece]) -> None:
        self._source = source
        self._pieces: deque[Piece] = deque()
        self.rows = 0

    def fill(self, rows: int) -> None:
        """Read on until there are `rows` rows, or the source ends."""
        while self.rows < rows:
            piece = next(self._source, None)
            if piece is None:
                return
            self._pieces.append(piece)
            self.rows += piece.data.num_rows

    def take(self, rows: int) -> tuple[pa.Table, list[Origin]]:
        """Remove and return the first `rows` rows, which must be there."""
        taken: list[Piece] = []
        self.rows -= rows
        while rows:
            piece = self._pieces.popleft()
            if piece.data.num_rows > rows:
                self._pieces.appendleft(piece.slice(rows, piece.data.num_rows - rows))
                piece = piece.slice(0, rows)
            taken.append(piece)
            rows -= piece.data.num_rows
        origins = [Origin(piece.file, piece.row, piece.data.num_rows) for piece in taken]
        return pa.Table.from_batches([piece.data for piece in taken]), origins
