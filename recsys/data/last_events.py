"""The last row of each entity in a log: where it lies, and what it holds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from recsys.data.batch import Batch
from recsys.data.columns import cast_column
from recsys.data.convert import to_batch
from recsys.data.errors import DataError, RowError
from recsys.data.files import RowGroup, read_footers
from recsys.data.footers import open_file
from recsys.data.quarantine import NOTHING, Quarantine, places
from recsys.data.schema import Schema, entity_schema
from recsys.data.stream import EventStream

_SCAN_ROWS = 65_536
"""Rows of ids and times that are read at once."""


@dataclass(frozen=True)
class LastEvents:
    """One row of the log for each of N entities, ordered by file and row: the entity's last."""

    files: tuple[Path, ...]
    ids: NDArray[np.int64]  # [N]
    file: NDArray[np.int64]  # [N], index into files
    row: NDArray[np.int64]  # [N], row of the file
    active: NDArray[np.int64]  # [N], ms: of the event; of a row that was delivered, when it was, if that is later
    events: NDArray[np.int64]  # [N], how many the log has of the entity; its own rows are none
    as_of: int
    """Time of the newest event of the whole log, ms; 0 of a log without event times."""

    def __len__(self) -> int:
        return len(self.ids)

    def shard(self, rank: int, world_size: int) -> LastEvents:
        """A contiguous piece of about N / world_size entities."""
        return self.take(slice(len(self) * rank // world_size, len(self) * (rank + 1) // world_size))

    def without(self, ids: Collection[int]) -> LastEvents:
        """Those of other entities than these."""
        gone = np.fromiter(ids, np.int64, len(ids))
        return self.take(~np.isin(self.ids, gone)) if len(gone) else self

    def take(self, which: slice | NDArray[np.int64] | NDArray[np.bool_]) -> LastEvents:
        """Those of these places, ascending."""
        ids, file, row = (column[which] for column in (self.ids, self.file, self.row))
        return LastEvents(self.files, ids, file, row, self.active[which], self.events[which], self.as_of)


_NONE = np.empty(0, np.int64)
NOBODY = LastEvents((), _NONE, _NONE, _NONE, _NONE, _NONE, 0)
"""No entity."""


def last_events(
    files: Sequence[Path],
    schema: Schema,
    owner: str,
    skip: Quarantine = NOTHING,
    own: Mapping[Path, int] = MappingProxyType({}),
) -> LastEvents:
    """Find each user's (item's) last row in the files that is not skipped, and count its events; of equal times, or
    without any, the later row wins.

    Only the id and the time columns are read, some 40 bytes an event while they are sorted.

    Args:
        files: events, and rows of entities' own.
        schema: of the events.
        owner: `user` or `item`.
        skip: rows that are left out.
        own: those of `files` whose rows are the entities' own and no events -> the time, ms, at which these were active
            at the least: what their rows know of them may be older. 0: of the rows' own times.

    Raises:
        DataError: a file cannot be read, or an id or a time is missing or negative; naming file and row.
    """
    column = schema.user_id if owner == "user" else schema.item_id
    facts = Schema(timestamp=schema.timestamp, user_id=column, item_id=column)  # entity rows have no other id
    stream = EventStream(files, facts, batch_size=_SCAN_ROWS, drop_last=False, skip=skip)
    columns = zip(*((batch.user_ids, batch.timestamps) for batch in stream), strict=True)
    ids, times = (torch.cat(column).numpy() for column in columns)
    order = np.lexsort((times, ids))  # stable: of equal times the later row comes last
    ordered = ids[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    starts = np.cumsum([0, *stream.file_rows])
    is_event = np.ones(len(ids), bool)
    for index, path in enumerate(files):
        if path in own:
            is_event[starts[index] : starts[index + 1]] = False
    counts = np.add.reduceat(is_event[order], np.append(0, last[:-1] + 1), dtype=np.int64)
    by_row = np.argsort(order[last])
    chosen = order[last][by_row]
    file = np.searchsorted(starts, chosen, side="right") - 1
    row = chosen - starts[file]
    for index, path in enumerate(files):
        row[file == index] = places(row[file == index], skip.of(path))
    active = np.maximum(times[chosen], np.array([own.get(path, 0) for path in files])[file])
    return LastEvents(tuple(files), ids[chosen], file, row, active, counts[by_row], int(times.max()))


def read_rows(events: LastEvents, schema: Schema, owner: str, batch_size: int) -> Iterator[pa.Table]:
    """The chosen rows in order, the owner's columns only, in tables of `batch_size` rows (the last may be shorter).

    Raises:
        DataError: pages that cannot be read, naming file and row group.
    """
    footers = read_footers(events.files, entity_schema(schema, owner))
    pending: list[pa.Table] = []
    waiting = 0
    for index in np.unique(events.file):
        wanted = events.row[events.file == index]
        with open_file(events.files[index]) as file:
            for group in footers.files[index].row_groups:
                rows = wanted[(wanted >= group.first_row) & (wanted < group.first_row + group.rows)]
                if len(rows):
                    pending.append(_read_group(file, group, footers.types).take(pa.array(rows - group.first_row)))
                    waiting += len(rows)
                while waiting >= batch_size:
                    table = pa.concat_tables(pending)
                    yield table.slice(0, batch_size)
                    pending, waiting = [table.slice(batch_size)], waiting - batch_size
    if waiting:
        yield pa.concat_tables(pending)


def _read_group(file: pq.ParquetFile, group: RowGroup, types: Mapping[str, pa.DataType]) -> pa.Table:
    """Columns of a row group in canonical types, so that rows of several writers' files go together."""
    try:
        table = file.read_row_group(group.index, columns=list(types))
    except (pa.ArrowException, OSError) as error:
        where = f"{group.file}: row group {group.index}"
        raise DataError(f"{where} cannot be read: {error} Write the file anew") from error
    return pa.table({name: cast_column(table[name], kind) for name, kind in types.items()})


def rows_to_batch(table: pa.Table, schema: Schema, events: LastEvents, start: int) -> Batch:
    """Convert the rows of `events` from number `start` on, as `read_rows` gives them.

    Raises:
        DataError: a value that its role forbids, naming file and row.
    """
    try:
        return to_batch(table, schema)
    except RowError as error:
        at = start + error.row
        place = f"{events.files[events.file[at]]}: column {error.column!r}, row {events.row[at]}"
        raise DataError(f"{place}: {error.problem}") from None
