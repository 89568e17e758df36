"""Run one tower over the last event of each entity, on all ranks together."""

from __future__ import annotations

from collections.abc import Iterator
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
from recsys.data.convert import to_batch
from recsys.data.files import find_files
from recsys.data.schema import Schema
from recsys.models.derm import DERM
from recsys.train.distributed import Environment


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

    Only the id and the time columns are read, 24 bytes an event.

    Raises:
        DataError: a pattern matches nothing, or a file cannot be read.
    """
    column = schema.user_id if owner == "user" else schema.item_id
    entity_files = source.users if owner == "user" else source.items
    files = find_files(root, (*source.events, *entity_files))
    ids, times, counts = [], [], []
    for path in files:
        table = pq.read_table(path, columns=[column, schema.timestamp])
        ids.append(table[column].to_numpy())
        times.append(table[schema.timestamp].to_numpy())
        counts.append(len(table))
    all_ids, all_times = np.concatenate(ids), np.concatenate(times)
    order = np.lexsort((all_times, all_ids))  # stable: of equal times the later row comes last
    ordered = all_ids[order]
    chosen = np.sort(order[np.append(ordered[1:] != ordered[:-1], True)])
    starts = np.cumsum([0, *counts])
    file = np.searchsorted(starts, chosen, side="right") - 1
    return LastEvents(tuple(files), all_ids[chosen], file, chosen - starts[file], int(all_times.max()))


def read_rows(events: LastEvents, schema: Schema, owner: str, batch_size: int) -> Iterator[pa.Table]:
    """The chosen rows in order, the owner's columns only, in tables of `batch_size` rows (the last may be shorter)."""
    columns = schema.select(features=tuple(f.name for f in schema.owned_by(owner)), labels=()).columns()
    pending: list[pa.Table] = []
    waiting = 0
    for index in np.unique(events.file):
        file = pq.ParquetFile(events.files[index])
        wanted = events.row[events.file == index]
        kept = [name for name in columns if name in file.schema_arrow.names]
        start = 0
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            rows = wanted[(wanted >= start) & (wanted < end)]
            if len(rows):
                pending.append(file.read_row_group(group, columns=kept).take(pa.array(rows - start)))
                waiting += len(rows)
            while waiting >= batch_size:
                table = pa.concat_tables(pending, promote_options="default")
                yield table.slice(0, batch_size)
                pending, waiting = [table.slice(batch_size)], waiting - batch_size
            start = end
    if waiting:
        yield pa.concat_tables(pending, promote_options="default")


@torch.no_grad()  # not inference_mode: on CPUs FBGEMM's lookup exists as an autograd kernel only
def embed(
    model: DERM, schema: Schema, events: LastEvents, owner: str, environment: Environment, batch_size: int = 4096
) -> Iterator[tuple[Tensor, Tensor]]:
    """Vectors of the entities, computed by all ranks together; only rank 0 gets them.

    Yields:
        ids int64 [n] and vectors float32 [n, D] on the CPU; on the other ranks n is 0. Every rank must exhaust it.
    """
    model.eval()
    world_size, device = environment.world_size, environment.device
    mine = events.shard(environment.rank, world_size)
    narrow = schema.select(features=tuple(f.name for f in schema.owned_by(owner)), labels=())
    largest = -(-len(events) // world_size)
    tables = read_rows(mine, narrow, owner, batch_size)
    filler = next(read_rows(events.shard(0, len(events)), narrow, owner, 1))
    for _ in range(-(-largest // batch_size)):
        # A sharded forward is collective: a rank that has run out joins in with a row nobody keeps.
        table = next(tables, None)
        batch = to_batch(filler if table is None else table, narrow).to(device)
        vectors = (model.user_vector(batch) if owner == "user" else model.item_vector(batch)).float()
        ids = batch.user_ids if owner == "user" else batch.item_ids
        yield _collect(ids, vectors, 0 if table is None else len(table), batch_size, environment)


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
