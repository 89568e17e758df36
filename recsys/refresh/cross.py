"""Cross representations: what the interaction tower makes of users' and items' events (LFM4Ads, arXiv 2508.14948).

Of each entity the mean of `DERM.cross_vector` over its events, each weighing `cross_decay` of the entity's next one.
The paper sums and layer-normalises; a mean differs from the sum by its length alone, and a day can be added to it: how
many events it is of is known beside it. Its length, at most 1, tells how much the events agree.

How many later events an entity has is counted first, from ids and times, so that events need not be read in order:
every rank reads its piece of the files, and what it has summed is added to the others' at the end. Of equal times, or
without times, the later row is the later event.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from recsys.data.batch import Batch
from recsys.data.quarantine import NOTHING, Quarantine
from recsys.data.schema import Schema
from recsys.data.stream import EventStream
from recsys.models.derm import DERM
from recsys.refresh.aggregate import total_weight
from recsys.refresh.arms import ENTITIES
from recsys.refresh.embed import Embedded
from recsys.train.distributed import Environment
from recsys.train.predict import in_step

_SCAN_ROWS = 65_536
"""Rows of ids and times that are read at once."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class CrossEvents:
    """The events that a publication adds."""

    model: DERM
    """What they are passed through."""
    files: Sequence[Path]
    skip: Quarantine = NOTHING
    """Rows that are left out."""
    fresh: bool = False
    """They are all there are: what was published before is not of this space, or of these events too."""


class Recency(NamedTuple):
    """The n entities of E events, and how old each event is among those of its entity."""

    ids: Ints  # [n], ascending
    counts: Ints  # [n], events
    newest: Ints  # [n], ms
    entity: NDArray[np.int32]  # [E], index into ids
    later: NDArray[np.int32]  # [E], how many events its entity has after it

    @classmethod
    def of(cls, ids: Ints, times: Ints) -> Recency:
        """Of each event's entity and time, both [E]; of equal times the one behind is the later one."""
        order = np.lexsort((times, ids))
        ordered = ids[order]
        ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)[: len(ids)]) + 1
        counts = np.diff(ends, prepend=0)
        entity, later = np.empty(len(ids), np.int32), np.empty(len(ids), np.int32)
        entity[order] = np.repeat(np.arange(len(ends)), counts)
        later[order] = np.repeat(ends - 1, counts) - np.arange(len(ids))
        return cls(ordered[ends - 1], counts, times[order[ends - 1]], entity, later)


class CrossSums:
    """The weighted sums of one owner's events on this rank, float32 [n, H], and those of all ranks on demand."""

    def __init__(self, found: Recency, dim: int, decay: float) -> None:
        self._found, self._decay = found, decay
        self._sums = torch.zeros(len(found.ids), dim)

    def __len__(self) -> int:
        return len(self._found.ids)

    def add(self, first: int, vectors: Tensor) -> None:
        """Add the events from number `first` on; vectors float32 [B, H] on the CPU."""
        piece = slice(first, first + len(vectors))
        weights = self._decay ** torch.from_numpy(self._found.later[piece]).float()
        self._sums.index_add_(0, torch.from_numpy(self._found.entity[piece]), vectors * weights[:, None])

    def means(self, withdrawn: Tensor, batch_size: int, environment: Environment) -> Iterator[Embedded]:
        """This rank's share of the entities that are not withdrawn (int64 [w]), as `embed` gives vectors: at most
        `batch_size` at a time, equally often on every rank. A collective."""
        ranks = environment.world_size
        stays = np.flatnonzero(~np.isin(self._found.ids, withdrawn.numpy()))
        shares = [stays[len(stays) * rank // ranks : len(stays) * (rank + 1) // ranks] for rank in range(ranks)]
        for start in range(0, max(map(len, shares)), batch_size):
            chosen = [share[start : start + batch_size] for share in shares]
            sums = [self._sums[rows].to(environment.device) for rows in chosen]
            for rank, part in enumerate(sums):
                if ranks > 1 and len(part):
                    dist.reduce(part, dst=rank)
            mine, found = chosen[environment.rank], self._found
            ids, newest, counts = (torch.from_numpy(x[mine]) for x in (found.ids, found.newest, found.counts))
            means = sums[environment.rank].cpu() / total_weight(self._decay, counts)[:, None]
            yield Embedded(ids, means, newest, counts)


@torch.no_grad()  # as `embed`
def sum_cross(
    schema: Schema, events: CrossEvents, decay: float, environment: Environment, batch_size: int
) -> dict[str, CrossSums]:
    """Pass all events through the model and sum what comes out, by user and by item. A collective.

    Memory of a rank: some 60 bytes an event while ids and times are sorted, 16 after that; and 4 H bytes for each user
    and each item that has an event. Vectors of events are added as they come.

    Returns:
        owner -> its sums; each entity's `means` are of all ranks.

    Raises:
        DataError: what `EventStream` raises, of a value that its role forbids say.
    """
    model = events.model.eval()
    ids = _read_ids(events, schema)
    sums = {owner: CrossSums(Recency.of(ids[owner], ids["time"]), model.cross_dim, decay) for owner in ENTITIES}
    del ids
    for first, batch, counts in _batches(schema, events, environment, batch_size):
        vectors = model.cross_vector(batch).cpu()
        if counts:
            for owner in ENTITIES:
                sums[owner].add(first, vectors)
    return sums


def _read_ids(events: CrossEvents, schema: Schema) -> dict[str, Ints]:
    """Users, items and times of all events, in the files' order."""
    facts = schema.select(features=(), labels=())
    stream = EventStream(events.files, facts, batch_size=_SCAN_ROWS, drop_last=False, skip=events.skip)
    empty = np.empty(0, np.int64)
    rows = [(b.user_ids.numpy(), b.item_ids.numpy(), b.timestamps.numpy()) for b in stream]
    names = (*ENTITIES, "time")
    return {name: np.concatenate([empty, *(row[at] for row in rows)]) for at, name in enumerate(names)}


def _batches(
    schema: Schema, events: CrossEvents, environment: Environment, batch_size: int
) -> Iterator[tuple[int, Batch, bool]]:
    """This rank's events: number of a batch's first one, the batch, and whether it counts."""
    stream = EventStream(
        events.files,
        schema,
        batch_size=batch_size,
        rank=environment.rank,
        world_size=environment.world_size,
        drop_last=False,
        transform=events.model.vocabulary.resolve,
        skip=events.skip,
    )
    first = stream.first_row
    for batch, counts in in_step(stream, environment) if stream.rows else ():
        yield first, batch, counts
        first += len(batch) if counts else 0
