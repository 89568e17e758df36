"""What a log's positives are: the counts that correct a sampled softmax."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from recsys.data.quarantine import NOTHING, Quarantine
from recsys.data.schema import Schema
from recsys.data.seen import SCAN_ROWS, SeenIds
from recsys.data.stream import EventStream
from recsys.models.losses import ItemFrequencies


def count_positives(
    files: Sequence[Path],
    schema: Schema,
    labels: Sequence[str],
    skip: Quarantine = NOTHING,
    seen: SeenIds | None = None,
    as_of: int | None = None,
) -> ItemFrequencies | None:
    """How often each item is the positive of a training row, by any of these labels: Q of the logQ correction (Yi et
    al. 2019).

    Exact counts, read file by file before training starts; None if no row is positive. `seen` gets the ids of all rows.

    Raises:
        DataError: what `EventStream` raises.
    """
    facts = schema.select(features=(), labels=tuple(labels))
    ids, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    for path in files:
        stream = EventStream(
            [path], facts, batch_size=SCAN_ROWS, drop_last=False, skip=skip, transform=seen, as_of=as_of
        )
        items = [batch.item_ids[((batch.labels == 1) & batch.label_mask).any(1)].numpy() for batch in stream]
        weights = np.concatenate([counts, np.ones(sum(map(len, items)), np.int64)])
        ids, inverse = np.unique(np.concatenate([ids, *items]), return_inverse=True)
        counts = np.bincount(inverse, weights, minlength=len(ids)).astype(np.int64)
    if not len(ids):
        return None
    return ItemFrequencies.from_counts(torch.from_numpy(ids), torch.from_numpy(counts))
