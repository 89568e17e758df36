"""Event logs as an endless-looking but exactly known series of batches: sharded by rank, shuffled, resumable.

Every batch is a function of (files, schema, batch size, seed, world size, rank, position) alone. So a restarted job
continues with the very rows it would have seen; on another number of ranks, with those of the pass that were not seen
yet (`resume`). Where full batches are trained on, no rank ever has a step more than another, which would leave the
others waiting in a collective for ever.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
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
from recsys.data.groups import CHUNK_ROWS, read_group
from recsys.data.pieces import Buffer, Origin, Piece
from recsys.data.prefetch import Prefetcher, in_order
from recsys.data.quarantine import NOTHING, Quarantine, Rows
from recsys.data.rest import Leg, Numbers, Place, Ranges, Share, share_of_rest
from recsys.data.schema import Schema
from recsys.data.strings import ColumnReader

_PREFETCHED = 4
"""Batches that are ready before the consumer asks."""
_WHOLE_ROWS = 65_536
"""Rows of a row group that a decoding thread holds at once: of a greater one pieces are decoded as they are used."""
_GAP_ROWS = 8192
"""Rows that are done, of a pass that is gone on with, and are not decoded; fewer in a row are, and left out."""
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
        self._block_steps = shuffle_batches or max(1, CHUNK_ROWS // batch_size)
        self.steps_per_epoch = piece // batch_size if drop_last else -(-piece // batch_size)
        """Batches of one epoch; with `drop_last` the same for every rank."""
        self.total_steps = self.steps_per_epoch * epochs
        """Batches of all epochs."""
        self.position = 0
        """The next batch to be handed out, counted from 0 over all epochs."""
        self.wait_seconds = 0.0
        """Time the consumer has waited for input."""
        kept = min(piece, self.steps_per_epoch * batch_size)
        self._whole = Share(self.first_row, kept, self.steps_per_epoch, batch_size)
        self._numbers = Numbers(self.steps_per_epoch, (world_size, batch_size))
        self._rest: tuple[Share, Ranges] | None = None

    def seek(self, position: int) -> None:
        """Let the next iteration begin with batch `position`; earlier blocks are not read.

        Raises:
            ValueError: not in [0, total_steps].
        """
        if not 0 <= position <= self.total_steps:
            raise ValueError(f"position is {position}; this stream has batches 0 to {self.total_steps} (the end)")
        self.position = position

    def place(self, position: int) -> Place:
        """Where a training stands before batch `position`, for any number of ranks."""
        return self._numbers.place(position)

    def resume(self, place: Place) -> int:
        """Go on where a training of these files stands, which another number of ranks may have begun.

        Then what is left of that pass is cut anew, into batches that have its last numbers, shuffled anew, and every
        row of it is read once, but for fewer than there are ranks.

        Args:
            place: from `place` of a stream that differs in `batch_size`, `rank` and `world_size` at the most.

        Returns:
            the number of the next batch, to which it seeks.
        """
        whole = self._numbers._replace(turn=-1, earlier=(), left=0)
        earlier, steps = place.continued(*whole.leg)
        self._numbers, self._rest = whole, None
        if not earlier:
            self.seek(place.turn * whole.per_turn + steps)
            return self.position
        left = self._left(place.turn, earlier)
        share = share_of_rest(left.rows, whole.leg, self._rank, whole.per_turn)
        mine = left.part(np.array([share.first]), np.array([share.first + share.rows]))
        self._numbers = whole._replace(turn=place.turn, earlier=earlier, left=share.steps)
        self._rest = share, mine
        self.seek(self._numbers.first + steps)
        return self.position

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
        share, rest, number, leg = self._whole, None, epoch * self.steps_per_epoch, 0
        if self._rest is not None and epoch == self._numbers.turn:
            share, rest = self._rest
            number, leg = self._numbers.first, len(self._numbers.earlier)
            step -= self.steps_per_epoch - share.steps
        block, skipped = divmod(step, self._block_steps)
        if not self._shuffled:
            skipped = 0  # stored order needs no whole blocks: begin with the row that is wanted
        first = step - skipped
        with closing(self._pieces_of(epoch, share, rest, share.start(first))) as pieces:
            buffer = Buffer(pieces)
            while first < share.steps:
                end = min(first + self._block_steps, share.steps)
                starts = [share.start(each) - share.start(first) for each in range(first, end + 1)]
                buffer.fill(starts[-1])
                table, origins = buffer.take(starts[-1])
                order = None
                if self._shuffled:
                    order = self._order(epoch, self._rank, block, leg, starts[-1])
                    table = _permuted(table, order)
                for each in range(skipped, end - first):
                    rows = table.slice(starts[each], starts[each + 1] - starts[each])
                    yield self._convert(rows, starts[each], origins, order, number + first + each)
                    buffer.fill(starts[each + 1])
                first, block, skipped = end, block + 1, 0

    def _order(self, epoch: int, rank: int, block: int, leg: int, rows: int) -> NDArray[np.int64]:
        """How a rank permutes so many rows of a block."""
        words = (epoch, rank, block, leg) if leg else (epoch, rank, block)
        return self._rng(_BLOCKS, *words).permutation(rows)

    def _left(self, epoch: int, legs: Sequence[Leg]) -> Ranges:
        """What these legs have left of an epoch, in its order of row groups."""
        left = Ranges.whole(self.rows)
        for number, leg in enumerate(legs):
            shares = [self._share_of(left.rows, leg, rank, first=number == 0) for rank in range(leg.world_size)]
            done = np.concatenate([self._done(epoch, x, leg, r, number) for r, x in enumerate(shares)])
            ends = np.concatenate((done[:, 0], [left.rows]))
            starts = np.concatenate(([0], done[:, 1]))
            there = starts < ends
            left = left.part(starts[there], ends[there])
        return left

    def _share_of(self, rows: int, leg: Leg, rank: int, *, first: bool) -> Share:
        """A rank's part of an epoch that a leg began, or of so many rows that it went on with."""
        steps = self.rows // leg.world_size // leg.batch_size
        if first:
            return Share(rank * (rows // leg.world_size), steps * leg.batch_size, steps, leg.batch_size)
        return share_of_rest(rows, leg, rank, steps)

    def _done(self, epoch: int, share: Share, leg: Leg, rank: int, number: int) -> NDArray[np.int64]:
        """Ranges [n, 2] of what a rank has done of its share, ascending."""
        block, steps = divmod(leg.steps, self._block_steps)
        start, end = share.start(leg.steps - steps), share.start(leg.steps)
        if not (self._shuffled and steps):
            return share.first + np.array([[0, end]])
        rows = share.start(min(leg.steps - steps + self._block_steps, share.steps)) - start
        order = self._order(epoch, rank, block, number, rows)[: end - start]
        row = share.first + start + np.sort(order)
        return np.concatenate(([[share.first, share.first + start]], np.stack((row, row + 1), axis=1)))

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

    def _pieces_of(self, epoch: int, share: Share, rest: Ranges | None, start: int) -> Generator[Piece, None, None]:
        """A rank's rows from number `start` of them on: of a whole epoch, or these that are left of it."""
        if rest is None:
            yield from self._pieces(epoch, share.first + start, share.first + share.rows)
            return
        for span in rest.part(np.array([start]), np.array([share.rows])).spans(_GAP_ROWS):
            first = int(span.starts[0])
            for piece in self._pieces(epoch, first, int(span.ends[-1])):
                end = first + piece.data.num_rows
                yield from piece.without(span.missing(first, end))
                first = end

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
