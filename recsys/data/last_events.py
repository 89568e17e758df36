"""The last row of each entity in a log: where it lies, and what it holds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.data.batch import Batch
from recsys.data.columns import cast_column
from recsys.data.convert import to_batch
from recsys.data.errors import DataError, RowError
from recsys.data.files import RowGroup, read_footers
from recsys.data.footers import open_file
from recsys.data.newest import Newest, Rows, together
from recsys.data.quarantine import NOTHING, Quarantine
from recsys.data.ranks import ALONE, Ranks, cut
from recsys.data.schema import Schema, entity_schema
from recsys.data.shares import PLACE, read_share


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

    @property
    def spare(self) -> LastEvents:
        """The first of them; none where there is none."""
        return self.take(slice(0, 1))

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


@dataclass(frozen=True)
class SharedEvents:
    """The last rows of N entities, of which each rank holds its share: what `LastEvents.shard` would give it of all."""

    mine: LastEvents
    """This rank's, about N / world_size of them, contiguous by file and row."""
    whole: int
    """N."""
    spare: LastEvents
    """The first of all, for ranks that have none left; empty where there is none."""

    def __len__(self) -> int:
        return self.whole

    @property
    def as_of(self) -> int:
        """As of `LastEvents`."""
        return self.mine.as_of

    def shard(self, rank: int, world_size: int) -> LastEvents:
        """This rank's share."""
        return self.mine


def last_events(
    files: Sequence[Path],
    schema: Schema,
    owner: str,
    skip: Quarantine = NOTHING,
    own: Mapping[Path, int] = MappingProxyType({}),
) -> LastEvents:
    """Find each user's (item's) last row in the files that is not skipped, and count its events; of equal times, or
    without any, the later row wins.

    Only the id and the time columns are read.

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
    return share_events(files, newest_rows(files, schema, owner, skip, own), own).mine


def newest_rows(
    files: Sequence[Path],
    schema: Schema,
    owner: str,
    skip: Quarantine = NOTHING,
    own: Mapping[Path, int] = MappingProxyType({}),
    ranks: Ranks = ALONE,
) -> Rows:
    """Of this rank's share of the rows the newest of each entity; arguments and errors as of `last_events`."""
    column = schema.user_id if owner == "user" else schema.item_id
    facts = Schema(timestamp=schema.timestamp, user_id=column, item_id=column)  # entity rows have no other id
    newest = Newest()
    for batch, number, places in read_share(files, facts, skip, ranks):
        newest.add(batch.user_ids.numpy(), batch.timestamps.numpy(), places, events=int(files[number] not in own))
    return newest.rows()


def share_events(
    files: Sequence[Path],
    rows: Rows,
    own: Mapping[Path, int] = MappingProxyType({}),
    ranks: Ranks = ALONE,
    without: Collection[int] = (),
) -> SharedEvents:
    """Find the last rows of all entities in what the ranks have found in their shares. A collective.

    Args:
        files: that the places of the rows are in.
        rows: of this rank, each entity's newest there.
        own: as of `last_events`.
        ranks: who share.
        without: entities that are left out.
    """
    rows = together(rows, ranks)
    as_of = int(ranks.max(np.array([rows.times.max(initial=0)]))[0])
    if without:
        rows = rows.take(np.flatnonzero(~np.isin(rows.ids, np.fromiter(without, np.int64, len(without)))))
    rows = rows.take(np.argsort(rows.places))
    to = np.searchsorted(cut(rows.places, ranks), rows.places, side="right")
    mine = Rows(*ranks.exchange(rows, to))
    mine = mine.take(np.argsort(mine.places))
    first = Rows(*ranks.gather(mine.take(np.arange(len(mine.ids))[:1])))
    first = first.take(np.argsort(first.places)[:1])
    whole = int(ranks.sum(np.array([len(mine.ids)]))[0])
    return SharedEvents(_located(files, mine, own, as_of), whole, _located(files, first, own, as_of))


def everywhere(shared: SharedEvents, ranks: Ranks) -> LastEvents:
    """All of them on every rank. A collective."""
    mine = shared.mine
    ids, file, row, active, events = ranks.gather((mine.ids, mine.file, mine.row, mine.active, mine.events))
    return LastEvents(mine.files, ids, file, row, active, events, mine.as_of)


def _located(files: Sequence[Path], rows: Rows, own: Mapping[Path, int], as_of: int) -> LastEvents:
    """Rows by ascending place, in terms of their files."""
    file, row = rows.places // PLACE, rows.places % PLACE
    active = np.maximum(rows.times, np.array([own.get(path, 0) for path in files], np.int64)[file])
    return LastEvents(tuple(files), rows.ids, file, row, active, rows.events, as_of)


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
