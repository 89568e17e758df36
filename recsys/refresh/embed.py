"""Run one tower over the last event of each entity, on all ranks together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from recsys.config import SourceConfig
from recsys.data.batch import Batch
from recsys.data.columns import cast_column
from recsys.data.convert import to_batch
from recsys.data.errors import DataError, RowError
from recsys.data.files import RowGroup, find_files, read_footers
from recsys.data.footers import open_file
from recsys.data.quarantine import NOTHING, Quarantine, places
from recsys.data.schema import Schema, entity_schema
from recsys.data.stream import EventStream
from recsys.dates import DAY_MS, HOUR_MS
from recsys.models.derm import DERM
from recsys.train.distributed import Environment

_SCAN_ROWS = 65_536
"""Rows of ids and times that are read at once."""


class Embedded(NamedTuple):
    """Some entities by one tower, on the CPU."""

    ids: Tensor  # int64 [n]
    vectors: Tensor  # float32 [n, D]
    timestamps: Tensor  # int64 [n], ms: of the event that each vector is made of

    def days(self, utc_offset_hours: float) -> Tensor:  # int64 [n]
        """The number of the day that each event is of, see recsys/dates.py."""
        return (self.timestamps + round(utc_offset_hours * HOUR_MS)) // DAY_MS


@dataclass(frozen=True)
class LastEvents:
    """One row of the log for each of N entities, ordered by file and row: the entity's last."""

    files: tuple[Path, ...]
    ids: NDArray[np.int64]  # [N]
    file: NDArray[np.int64]  # [N], index into files
    row: NDArray[np.int64]  # [N], row of the file
    as_of: int
    """Time of the newest event of the whole log, ms; 0 of a log without event times."""

    def __len__(self) -> int:
        return len(self.ids)

    def shard(self, rank: int, world_size: int) -> LastEvents:
        """A contiguous piece of about N / world_size entities."""
        piece = slice(len(self) * rank // world_size, len(self) * (rank + 1) // world_size)
        return LastEvents(self.files, self.ids[piece], self.file[piece], self.row[piece], self.as_of)


def source_files(root: Path, source: SourceConfig, owner: str) -> list[Path]:
    """The source's events and its users' (items') own rows, read as one log. Raises what `find_files` raises."""
    return find_files(root, (*source.events, *(source.users if owner == "user" else source.items)))


def last_events(files: Sequence[Path], schema: Schema, owner: str, skip: Quarantine = NOTHING) -> LastEvents:
    """Find each user's (item's) last row in the files that is not skipped; of equal times, or without any, the later
    row wins.

    Only the id and the time columns are read, some 40 bytes an event while they are sorted.

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
    chosen = np.sort(order[np.append(ordered[1:] != ordered[:-1], True)])
    starts = np.cumsum([0, *stream.file_rows])
    file = np.searchsorted(starts, chosen, side="right") - 1
    row = chosen - starts[file]
    for index, path in enumerate(files):
        row[file == index] = places(row[file == index], skip.of(path))
    return LastEvents(tuple(files), ids[chosen], file, row, int(times.max()))


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


@torch.no_grad()  # not inference_mode: on CPUs FBGEMM's lookup exists as an autograd kernel only
def embed(
    model: DERM, schema: Schema, events: LastEvents, owner: str, environment: Environment, batch_size: int = 4096
) -> Iterator[Embedded]:
    """Vectors of this rank's share of the entities; the ranks' shares together are all of them.

    Yields:
        n entities at a time, at most `batch_size`. Every rank yields equally often (its last ones may hold nothing) and
        must exhaust it: a sharded forward is collective.

    Raises:
        DataError: a value that its role forbids, naming file and row.
    """
    model.eval()
    world_size, device = environment.world_size, environment.device
    mine = events.shard(environment.rank, world_size)
    narrow = entity_schema(schema, owner)
    largest = -(-len(events) // world_size)
    tables = read_rows(mine, narrow, owner, batch_size)
    spare = events.shard(0, len(events))
    for start in range(0, largest, batch_size):
        table = next(tables, None)
        if table is None:  # a rank that has run out joins in with a row that nobody keeps
            batch = _to_batch(next(read_rows(spare, narrow, owner, 1)), narrow, spare, 0)
        else:
            batch = _to_batch(table, narrow, mine, start)
        batch = model.vocabulary.resolve(batch).to(device)
        vectors = (model.user_vector(batch) if owner == "user" else model.item_vector(batch)).float()
        ids = batch.user_ids if owner == "user" else batch.item_ids
        count = 0 if table is None else len(table)
        yield Embedded(ids[:count].cpu(), vectors[:count].cpu(), batch.timestamps[:count].cpu())


def _to_batch(table: pa.Table, schema: Schema, events: LastEvents, start: int) -> Batch:
    """Convert the rows of `events` from number `start` on."""
    try:
        return to_batch(table, schema)
    except RowError as error:
        at = start + error.row
        place = f"{events.files[events.file[at]]}: column {error.column!r}, row {events.row[at]}"
        raise DataError(f"{place}: {error.problem}") from None


def gather(parts: Sequence[Tensor], most: int, environment: Environment) -> list[Tensor] | None:
    """Bring the rows of all ranks to rank 0, rank 0's first. A collective.

    Args:
        parts: this rank's columns, [n, ...] each; dtypes and trailing shapes equal on every rank.
        most: n is at most this on any rank, so that equal shapes travel.
        environment: this rank.

    Returns:
        the columns [N, ...] on the CPU; None on the other ranks.
    """
    if environment.world_size == 1:
        return list(parts)
    device = environment.device
    sizes = _to_main(torch.tensor([len(parts[0])], device=device), environment)
    columns = []
    for part in parts:
        padded = part.new_zeros(most, *part.shape[1:], device=device)
        padded[: len(part)] = part
        columns.append(_to_main(padded, environment))
    if not environment.is_main:
        return None
    return [
        torch.cat([rows[: int(size)] for rows, size in zip(column, sizes, strict=True)]).cpu() for column in columns
    ]


def _to_main(part: Tensor, environment: Environment) -> list[Tensor]:
    """Every rank's `part`, of equal shapes, on rank 0; nothing elsewhere."""
    parts = [torch.empty_like(part) for _ in range(environment.world_size)] if environment.is_main else []
    dist.gather(part, parts or None, dst=0)
    return parts
