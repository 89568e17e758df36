"""Run one tower over the last event of each entity, on all ranks together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from recsys.config import SourceConfig
from recsys.data.batch import Batch
from recsys.data.files import find_files
from recsys.data.last_events import LastEvents, SharedEvents, read_rows, rows_to_batch
from recsys.data.schema import Schema, entity_schema
from recsys.dates import DAY_MS, HOUR_MS
from recsys.models.graph import GraphModel
from recsys.models.kinds import UpstreamModel
from recsys.models.two_tower import TwoTower
from recsys.train.distributed import Environment

Towers = UpstreamModel | TwoTower
"""Models with a tower for each entity."""
Entities = LastEvents | SharedEvents
"""Those to embed: every rank has all of them, or its share."""


class Embedded(NamedTuple):
    """Some entities by one tower, on the CPU."""

    ids: Tensor  # int64 [n]
    vectors: Tensor  # float32 [n, D]
    timestamps: Tensor  # int64 [n], ms: when each entity was active, see `LastEvents.active`
    events: Tensor  # int64 [n]: how many the log has of each

    def where(self, kept: Tensor) -> Embedded:  # bool [n]
        """Some of them."""
        return Embedded(*(each[kept] for each in self))

    def days(self, utc_offset_hours: float) -> Tensor:  # int64 [n]
        """The number of the day on which each was active, see recsys/dates.py."""
        return (self.timestamps + round(utc_offset_hours * HOUR_MS)) // DAY_MS


def source_files(root: Path, source: SourceConfig, owner: str) -> list[Path]:
    """The source's events and its users' (items') own rows, read as one log. Raises what `find_files` raises."""
    return [*find_files(root, source.events), *own_files(root, source, owner)]


def own_files(root: Path, source: SourceConfig, owner: str) -> list[Path]:
    """The files of the source's users' (items') own rows, which are no events. Raises what `find_files` raises."""
    return find_files(root, source.users if owner == "user" else source.items)


@torch.no_grad()  # not inference_mode: on CPUs FBGEMM's lookup exists as an autograd kernel only
def embed(
    model: Towers,
    schema: Schema,
    events: Entities,
    owner: str,
    environment: Environment,
    batch_size: int = 4096,
    *,
    read: Callable[[Batch], Batch] | None = None,
) -> Iterator[Embedded]:
    """Vectors of this rank's share of the entities; the ranks' shares together are all of them.

    `read` gives batches what the model reads beside their features.

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
    spare = events.spare
    for start in range(0, largest, batch_size):
        table = next(tables, None)
        if table is None:  # a rank that has run out joins in with a row that nobody keeps
            batch = rows_to_batch(next(read_rows(spare, narrow, owner, 1)), narrow, spare, 0)
        else:
            batch = rows_to_batch(table, narrow, mine, start)
        batch = model.vocabulary.resolve(batch)
        batch = (batch if read is None else read(batch)).to(device)
        vectors = (model.user_vector(batch) if owner == "user" else model.item_vector(batch)).float()
        ids = (batch.user_ids if owner == "user" else batch.item_ids).cpu()
        count = 0 if table is None else len(table)
        active, counts = (torch.from_numpy(column[start : start + count]) for column in (mine.active, mine.events))
        some = Embedded(ids[:count], vectors[:count].cpu(), active, counts)
        # What nothing links is no part of a graph: it has no vector.
        yield some.where(model.vocabulary.known(owner, some.ids)) if isinstance(model, GraphModel) else some


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
