"""Run one tower over the last event of each entity, on all ranks together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

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
from recsys.data.files import check_files, find_files, read_footers
from recsys.data.schema import Schema
from recsys.data.stream import EventStream
from recsys.models.derm import DERM
from recsys.train.distributed import Environment

_SCAN_ROWS = 65_536
"""Rows of ids and times that are read at once."""


@dataclass(frozen=True)
class LastEvents:
    """One row of the log for each of N entities, ordered by file and row: the entity's last."""

    files: tuple[Path, ...]
    ids: NDArray[np.int64]  # [N]
    file: NDArray[np.int64]  # [N], index into files
    row: NDArray[np.int64]  # [N], row of the file
    as_of: int
    """Time of the newest event of the whole log, ms."""

    def __len__(self) -> int:
        return len(self.ids)

    def shard(self, rank: int, world_size: int) -> LastEvents:
        """A contiguous piece of about N / world_size entities."""
        piece = slice(len(self) * rank // world_size, len(self) * (rank + 1) // world_size)
        return LastEvents(self.files, self.ids[piece], self.file[piece], self.row[piece], self.as_of)


def last_events(root: Path, source: SourceConfig, schema: Schema, owner: str) -> LastEvents:
    """Find each user's (item's) last row in the events and entity files; of equal times the later row wins.

    Only the id and the time columns are read, some 40 bytes an event while they are sorted.

    Raises:
        DataError: a pattern matches nothing, a file cannot be read, or an id or a time is missing or negative; naming
            file and row.
    """
    column = schema.user_id if owner == "user" else schema.item_id
    entity_files = source.users if owner == "user" else source.items
    files = find_files(root, (*source.events, *entity_files))
    facts = Schema(timestamp=schema.timestamp, user_id=column, item_id=column)  # entity rows have no other id
    stream = EventStream(files, facts, batch_size=_SCAN_ROWS, drop_last=False)
    columns = zip(*((batch.user_ids, batch.timestamps) for batch in stream), strict=True)
    ids, times = (torch.cat(column).numpy() for column in columns)
    order = np.lexsort((times, ids))  # stable: of equal times the later row comes last
    ordered = ids[order]
    chosen = np.sort(order[np.append(ordered[1:] != ordered[:-1], True)])
    starts = np.cumsum([0, *(check_files([path], facts) for path in files)])
    file = np.searchsorted(starts, chosen, side="right") - 1
    return LastEvents(tuple(files), ids[chosen], file, chosen - starts[file], int(times.max()))


def read_rows(events: LastEvents, schema: Schema, owner: str, batch_size: int) -> Iterator[pa.Table]:
    """The chosen rows in order, the owner's columns only, in tables of `batch_size` rows (the last may be shorter).

    Raises:
        DataError: pages that cannot be read, naming file and row group.
    """
    types = read_footers(events.files, entity_schema(schema, owner)).types
    pending: list[pa.Table] = []
    waiting = 0
    for index in np.unique(events.file):
        file = pq.ParquetFile(events.files[index], page_checksum_verification=True)
        wanted = events.row[events.file == index]
        start = 0
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            rows = wanted[(wanted >= start) & (wanted < end)]
            if len(rows):
                table = _read_group(file, group, types, events.files[index])
                pending.append(table.take(pa.array(rows - start)))
                waiting += len(rows)
            while waiting >= batch_size:
                table = pa.concat_tables(pending)
                yield table.slice(0, batch_size)
                pending, waiting = [table.slice(batch_size)], waiting - batch_size
            start = end
    if waiting:
        yield pa.concat_tables(pending)


def _read_group(file: pq.ParquetFile, group: int, types: Mapping[str, pa.DataType], path: Path) -> pa.Table:
    """Columns of a row group in canonical types, so that rows of several writers' files go together."""
    try:
        table = file.read_row_group(group, columns=list(types))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: row group {group} cannot be read: {error} Write the file anew") from error
    return pa.table({name: cast_column(table[name], kind) for name, kind in types.items()})


@torch.no_grad()  # not inference_mode: on CPUs FBGEMM's lookup exists as an autograd kernel only
def embed(
    model: DERM, schema: Schema, events: LastEvents, owner: str, environment: Environment, batch_size: int = 4096
) -> Iterator[tuple[Tensor, Tensor]]:
    """Vectors of the entities, computed by all ranks together; only rank 0 gets them.

    Yields:
        ids int64 [n] and vectors float32 [n, D] on the CPU; on the other ranks n is 0. Every rank must exhaust it.

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
        if table is None:  # a sharded forward is collective: a rank that has run out joins in with a row nobody keeps
            batch = _to_batch(next(read_rows(spare, narrow, owner, 1)), narrow, spare, 0).to(device)
        else:
            batch = _to_batch(table, narrow, mine, start).to(device)
        vectors = (model.user_vector(batch) if owner == "user" else model.item_vector(batch)).float()
        ids = batch.user_ids if owner == "user" else batch.item_ids
        yield _collect(ids, vectors, 0 if table is None else len(table), batch_size, environment)


def entity_schema(schema: Schema, owner: str) -> Schema:
    """What of a schema an entity's own rows hold: its features, no labels."""
    return schema.select(features=tuple(feature.name for feature in schema.owned_by(owner)), labels=())


def _to_batch(table: pa.Table, schema: Schema, events: LastEvents, start: int) -> Batch:
    """Convert the rows of `events` from number `start` on."""
    try:
        return to_batch(table, schema)
    except RowError as error:
        at = start + error.row
        place = f"{events.files[events.file[at]]}: column {error.column!r}, row {events.row[at]}"
        raise DataError(f"{place}: {error.problem}") from None


def _collect(
    ids: Tensor, vectors: Tensor, count: int, batch_size: int, environment: Environment
) -> tuple[Tensor, Tensor]:
    """Bring the ranks' rows to rank 0: equal shapes travel, then the padding is dropped."""
    if environment.world_size == 1:
        return ids[:count].cpu(), vectors[:count].cpu()
    padded_ids = ids.new_zeros(batch_size)
    padded_ids[:count] = ids[:count]
    padded = vectors.new_zeros(batch_size, vectors.shape[1])
    padded[:count] = vectors[:count]
    counts = torch.tensor([count], device=ids.device)
    columns = [_gather(part, environment) for part in (counts, padded_ids, padded)]
    if environment.rank != 0:
        return ids[:0].cpu(), vectors[:0].cpu()
    sizes = [int(size) for size in columns[0]]
    all_ids, all_vectors = (
        torch.cat([part[:size] for part, size in zip(column, sizes, strict=True)]).cpu() for column in columns[1:]
    )
    return all_ids, all_vectors


def _gather(part: Tensor, environment: Environment) -> list[Tensor]:
    """Every rank's `part`, of equal shapes, on rank 0; nothing elsewhere."""
    parts = [torch.empty_like(part) for _ in range(environment.world_size)] if environment.is_main else []
    dist.gather(part, parts or None, dst=0)
    return parts
