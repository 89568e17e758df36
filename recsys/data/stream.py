"""Event logs as an endless-looking but exactly known series of batches: sharded by rank, shuffled, resumable.

Every batch is a function of (files, schema, batch size, seed, world size, rank, position) alone. So a restarted job
continues with the very rows it would have seen. Where full batches are trained on, no rank ever has a step more than
another, which would leave the others waiting in a collective for ever.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.data.batch import Batch
from recsys.data.convert import to_batch
from recsys.data.errors import DataError, RowError
from recsys.data.files import RowGroup, read_footers
from recsys.data.footers import open_file
from recsys.data.pieces import Buffer, Origin, Piece
from recsys.data.prefetch import Prefetcher, in_order
from recsys.data.quarantine import NONE, NOTHING, Quarantine, Rows, places
from recsys.data.schema import Schema
from recsys.data.strings import ColumnReader

_PREFETCHED = 4
"""Batches that are ready before the consumer asks."""
_CHUNK_ROWS = 8192
"""Rows that are decoded, or gathered from a shuffled block, in one call: large enough for Arrow, small for a cache."""
_WHOLE_ROWS = 65_536
"""Rows of a row group that a decoding thread holds at once: of a greater one pieces are decoded as they are used."""
_READ_BYTES = 1 << 20
"""Bytes of a column that are read from disk at once."""
_GROUPS, _BLOCKS, _FILES = 1, 2, 3
"""First words of the kinds of random streams, so that none of one kind equals one of another."""


class EventStream:
    """The batches of one rank.

    An epoch's rows are the files' row groups one after another: in the files' order, or, when `shuffle_batches` > 0, in
    an order drawn from (seed, epoch), of a few files at a time where the footers of all would take too much memory
    (`Footers.shuffled`). They are cut into `world_size` contiguous pieces of equal size: fewer than `world_size` rows
    at the end are left out, unless every row is wanted (see `drop_last`): then the first ranks have one more. A rank
    reads its piece in blocks of `shuffle_batches` batches and permutes each block by a generator of (seed, epoch, rank,
    block). To mix well, files want row groups that are smaller than a block, and many of them. Where a piece is smaller
    than a batch, all of it is the epoch's one batch.

    Memory: two blocks (the next one fills while this one is handed out, so that reading never comes in bursts), a few
    batches, a few MB a column for decoding, and the footers that a process keeps (`recsys.data.footers`). Row groups
    are decoded piece by piece, so a file may be one giant one.

    Args:
        files: Parquet files, in time order (`find_files`). All footers are checked here, before anything is read.
        schema: What to read of them.
        batch_size: Rows a batch.
        rank: This process, 0 <= rank < world_size.
        world_size: Processes that share the rows.
        shuffle_batches: Batches a shuffled block; 0 keeps the stored order.
        seed: Seed of both shuffles, 0 or more.
        epochs: Passes over the rows.
        drop_last: Leave out the rows that do not fill a batch. Without it every row is some rank's, the last batch of
            an epoch is shorter, and ranks may differ by a batch.
        transform: Applied to every batch, in the input thread, so that it runs beside the training step; the store's
            vectors are joined here. What it raises surfaces in the iteration.
        skip: Rows of the files that are left out, as if they were not there.
        as_of: Time up to which the labels' outcomes are known, ms, see `Label.time`; None: all of them are.
        workers: Threads that decode row groups; the batches are the same. Each holds one more of up to 65,536 rows.
        pin_memory: Whether batches are put into page-locked memory, in the input thread as well, for a GPU to copy.

    Raises:
        ValueError: an argument is out of its bounds.
        DataError: what `check_files` raises, or the files hold fewer rows than there are ranks.
    """

    def __init__(
        self,
        files: Sequence[Path],
        schema: Schema,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle_batches: int = 0,
        seed: int = 0,
        epochs: int = 1,
        drop_last: bool = True,
        transform: Callable[[Batch], Batch] | None = None,
        skip: Quarantine = NOTHING,
        as_of: int | None = None,
        workers: int = 1,
        pin_memory: bool = False,
    ) -> None:
        least = (("batch_size", batch_size), ("world_size", world_size), ("epochs", epochs), ("workers", workers))
        for name, value in least:
            _at_least(name, value, 1)
        for name, value in (("shuffle_batches", shuffle_batches), ("seed", seed)):
            _at_least(name, value, 0)
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}; use 0 <= rank < world_size = {world_size}")
        self._footers = read_footers(files, schema)
        if skip.count(files):
            self._footers = self._footers.keeping(lambda group: group.rows > len(skip.within(group)))
        self._skip, self._as_of = skip, as_of
        self.file_rows = [file.rows - len(skip.of(path)) for path, file in zip(files, self._footers.files, strict=True)]
        """Rows of each file, less those that are skipped."""
        self.rows = sum(self.file_rows)
        """Rows of all files, over all ranks, less those that are skipped."""
        piece, rest = divmod(self.rows, world_size)
        if piece == 0 and (self.rows or drop_last):  # all may be skipped
            raise DataError(
                f"{self.rows} rows make no step of one row on each of {world_size} ranks: lower the number of ranks, "
                "or give more files"
            )
        self.shortfall = ""
        """What became of rows that are less than a batch of every rank; empty: they are more."""
        if 0 < piece < batch_size:
            self.shortfall = (
                f"{self.rows} events, less than a batch of {world_size} x {batch_size}: one step of "
                f"{piece * world_size} a pass"
            )
        rest = 0 if drop_last else rest
        self.first_row = rank * piece + min(rank, rest)
        """Where this rank's rows begin, in the files' order."""
        piece += rank < rest
        self._schema = schema
        self._batch_size = batch_size = max(1, min(batch_size, piece))
        self._rank = rank
        self._seed = seed
        self._transform, self._workers, self._pin_memory = transform, workers, pin_memory
        self._shuffled = shuffle_batches > 0
        self._block_steps = shuffle_batches or max(1, _CHUNK_ROWS // batch_size)
        self.steps_per_epoch = piece // batch_size if drop_last else -(-piece // batch_size)
        """Batches of one epoch; with `drop_last` the same for every rank."""
        self.total_steps = self.steps_per_epoch * epochs
        """Batches of all epochs."""
        self.position = 0
        """The next batch to be handed out, counted from 0 over all epochs."""
        self.wait_seconds = 0.0
        """Time the consumer has waited for input."""
        self._end_row = self.first_row + min(piece, self.steps_per_epoch * batch_size)

    def seek(self, position: int) -> None:
        """Let the next iteration begin with batch `position`; earlier blocks are not read.

        Raises:
            ValueError: not in [0, total_steps].
        """
        if not 0 <= position <= self.total_steps:
            raise ValueError(f"position is {position}; this stream has batches 0 to {self.total_steps} (the end)")
        self.position = position

    def __iter__(self) -> Iterator[Batch]:
        """The batches from `position` to the end of the last epoch; `seek(0)` begins again.

        Raises:
            DataError: naming file and row: a value that its role forbids, or pages that cannot be read.
        """
        position = self.position
        with closing(Prefetcher(self._batches(position), _PREFETCHED)) as batches:
            while True:
                start = time.perf_counter()
                batch = next(batches, None)
                self.wait_seconds += time.perf_counter() - start
                if batch is None:
                    return
                position += 1
                self.position = position
                yield batch

    def _batches(self, position: int) -> Generator[Batch, None, None]:
        while position < self.total_steps:
            epoch, step = divmod(position, self.steps_per_epoch)
            yield from self._epoch(epoch, step)
            position += self.steps_per_epoch - step

    def _epoch(self, epoch: int, step: int) -> Iterator[Batch]:
        """The batches of one epoch from `step` on."""
        block, skipped = divmod(step, self._block_steps)
        if not self._shuffled:
            skipped = 0  # stored order needs no whole blocks: begin with the row that is wanted
        block_rows = self._block_steps * self._batch_size
        start = self.first_row + (step - skipped) * self._batch_size
        with closing(self._pieces(epoch, start, self._end_row)) as pieces:
            buffer = Buffer(pieces)
            while start < self._end_row:
                rows = min(block_rows, self._end_row - start)
                buffer.fill(rows)
                table, origins = buffer.take(rows)
                order = None
                if self._shuffled:
                    order = self._rng(_BLOCKS, epoch, self._rank, block).permutation(rows)
                    table = _permuted(table, order)
                for first in range(skipped * self._batch_size, rows, self._batch_size):
                    number = epoch * self.steps_per_epoch + (start - self.first_row + first) // self._batch_size
                    yield self._convert(table.slice(first, self._batch_size), first, origins, order, number)
                    buffer.fill(first + self._batch_size)
                start, block, skipped = start + rows, block + 1, 0

    def _convert(
        self,
        rows: pa.Table,
        first: int,
        origins: list[Origin],
        order: NDArray[np.int64] | None,
        number: int,
    ) -> Batch:
        """Batch `number`, of the rows that begin with row `first` of their block."""
        try:
            batch = to_batch(rows, self._schema, self._as_of)
        except RowError as error:
            row = first + error.row
            raise _located(error, origins, row if order is None else int(order[row])) from None
        batch.position, batch.epoch = number, number // self.steps_per_epoch
        batch = batch if self._transform is None else self._transform(batch)
        return batch.pin_memory() if self._pin_memory else batch

    def _pieces(self, epoch: int, start: int, end: int) -> Generator[Piece, None, None]:
        """Rows [start, end) of the epoch's order, decoded piece by piece."""
        stored = self._footers.row_groups
        if self._shuffled:
            stored = self._footers.shuffled(self._rng(_FILES, epoch), self._rng(_GROUPS, epoch))
        groups = [_Group(each, self._skip.within(each)) for each in stored]
        last = np.cumsum([group.rows for group in groups])
        firsts = last - [group.rows for group in groups]  # of the epoch's order
        wanted = range(int(np.searchsorted(last, start, side="right")), int(np.searchsorted(firsts, end)))

        def fresh() -> dict[str, ColumnReader]:
            return {name: ColumnReader(kind) for name, kind in self._footers.types.items()}

        own, of_thread = fresh(), threading.local()  # a reader remembers what it has hashed

        def read(index: int) -> Iterable[Piece]:
            group, first = groups[index], int(firsts[index])
            low, high = max(0, start - first), min(group.rows, end - first)
            if self._workers == 1 or high - low > _WHOLE_ROWS:
                return read_group(group.stored, low, high, own, group.gone)
            of_thread.readers = getattr(of_thread, "readers", None) or fresh()
            return list(read_group(group.stored, low, high, of_thread.readers, group.gone))

        with closing(in_order(read, wanted, self._workers)) as decoded:
            for pieces in decoded:
                yield from pieces

    def _rng(self, kind: int, *words: int) -> np.random.Generator:
        return np.random.default_rng((kind, self._seed, *words))


class _Group(NamedTuple):
    """A row group as it is read."""

    stored: RowGroup
    gone: Rows
    """Rows that are skipped, counted from its beginning."""

    @property
    def rows(self) -> int:
        """How many are read."""
        return self.stored.rows - len(self.gone)


def _permuted(table: pa.Table, order: NDArray[np.int64]) -> pa.Table:
    """The rows of `table` in that order [rows].

    One column after the other, whole: only so do the scattered reads stay in the processor's cache.
    """
    indices = pa.array(order)
    columns = [pa.concat_arrays(column.chunks).take(indices) for column in table.columns]
    return pa.Table.from_arrays(columns, table.column_names)


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
            for data in file.iter_batches(_CHUNK_ROWS, row_groups=[group.index], columns=names, use_threads=False):
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


def _located(error: RowError, origins: list[Origin], row: int) -> DataError:
    """The same error in terms of the file: `row` counts within the block."""
    for origin in origins:
        if row < origin.rows:
            return DataError(f"{origin.file}: column {error.column!r}, row {origin.row + row}: {error.problem}")
        row -= origin.rows
    raise AssertionError("the row is in none of the block's pieces")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} is {value}; use {least} or more")
