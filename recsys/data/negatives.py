"""Items drawn uniformly from all of a log's, as negatives beside those of a batch.

Yang et al. 2020, "Mixed Negative Sampling for Learning Two-tower Neural Networks in Recommendations": the items of a
batch's positives are those that are chosen often; items that hardly anybody chose are negatives of nobody, and keep
whatever score they began with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from recsys.data.batch import Batch
from recsys.data.last_events import LastEvents, read_rows, rows_to_batch
from recsys.data.schema import Schema, entity_schema
from recsys.data.sparse import Ints, columns, keyed

MOST = 1_000_000
"""Items that a rank keeps rows of."""
_BANK, _STEP = 4, 5
"""First words of the kinds of random streams, beside those of `recsys.data.stream`."""


class UniformNegatives:
    """Adds N items drawn uniformly, with replacement, to every batch; the `transform` of an `EventStream`.

    What is drawn is a function of (seed, rank, `batch.position`) alone: a restarted job draws the same.

    An item's row is its last of the log, as in the refresh, and may count what happened after the batch's events. For
    a negative that is what the paper does too: its candidates come from an index of all items as they are today.

    Memory: the rows of all items, converted; of more than `MOST` each rank keeps as many, drawn once and by itself, so
    that over ranks and seeds every item is as likely as any other.

    Args:
        items: the last rows of all items, at least one.
        schema: of the events.
        count: N, of a rank and step.
        transform: applied to the events of a batch and to the drawn items, before they are put together. What it drops
            of an item may hang on user, time and pass: a drawn one has another user each time.
        seed: of the training.
        rank: this process.

    Raises:
        DataError: a row cannot be read, or has a value that its role forbids; names file and row.
    """

    def __init__(
        self,
        items: LastEvents,
        schema: Schema,
        count: int,
        transform: Callable[[Batch], Batch],
        *,
        seed: int,
        rank: int = 0,
    ) -> None:
        self.items = len(items)
        """Items that are drawn from, over all ranks."""
        self._count = count
        self._words = seed, rank
        self._transform = transform
        if len(items) > MOST:
            kept = np.random.default_rng((_BANK, *self._words)).choice(len(items), MOST, replace=False)
            items = items.take(np.sort(kept))
        narrow = entity_schema(schema, "item")
        self._rows = rows_to_batch(pa.concat_tables(read_rows(items, narrow, "item", MOST)), narrow, items, 0)

    def __call__(self, batch: Batch) -> Batch:
        """The batch and N items drawn for it."""
        rng = np.random.default_rng((_STEP, *self._words, batch.position))
        drawn = take(self._rows, rng.integers(0, len(self._rows), self._count))
        drawn.user_ids = torch.from_numpy(rng.integers(2**63, size=self._count))
        if len(batch):  # what is read of them as of a time is of the times of the events
            drawn.timestamps = batch.timestamps[torch.from_numpy(rng.integers(0, len(batch), self._count))]
        drawn.position, drawn.epoch = batch.position, batch.epoch
        return with_negatives(self._transform(batch), self._transform(drawn))


def take(batch: Batch, rows: Ints) -> Batch:
    """Rows [n] of an entity's batch, in that order and as often as they are named."""
    picked = torch.from_numpy(rows)
    parts = {}
    for key, (values, lengths) in columns(batch.sparse).items():
        starts, kept = (np.cumsum(lengths) - lengths)[rows], lengths[rows]
        ends = np.cumsum(kept)
        within = np.arange(kept.sum()) - np.repeat(ends - kept, kept)
        parts[key] = values[np.repeat(starts, kept) + within], kept
    return replace(
        batch,
        dense={owner: x[picked] for owner, x in batch.dense.items()},
        sparse=keyed(parts, len(rows)),
        labels=batch.labels[picked],
        label_mask=batch.label_mask[picked],
        user_ids=batch.user_ids[picked],
        item_ids=batch.item_ids[picked],
        timestamps=batch.timestamps[picked],
    )


def with_negatives(batch: Batch, drawn: Batch) -> Batch:
    """Put N items behind the B events of a batch: see `Batch.negatives`.

    Args:
        batch: of events.
        drawn: of items, without the features of other owners.

    The vectors of stores that both may have lie behind each other too.
    """
    items = columns(drawn.sparse)
    none = np.zeros(0, np.int64), np.zeros(len(drawn), np.int64)
    parts = {}
    for key, (values, lengths) in columns(batch.sparse).items():
        more, kept = items.get(key, none)
        parts[key] = np.concatenate((values, more)), np.concatenate((lengths, kept))
    return replace(
        batch,
        dense=batch.dense | {owner: torch.cat((batch.dense[owner], x)) for owner, x in drawn.dense.items()},
        sparse=keyed(parts, len(batch) + len(drawn)),
        vectors=_behind(batch.vectors, drawn.vectors),
        found=_behind(batch.found, drawn.found),
        feed=_behind(batch.feed, drawn.feed),
        negatives=drawn.item_ids,
    )


def _behind(events: Tensor | None, items: Tensor | None) -> Tensor | None:
    """[B, ...] and [N, ...] -> [B + N, ...]."""
    return events if events is None or items is None else torch.cat((events, items))
