"""The ids of a log, each once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from recsys.data.batch import Batch
from recsys.data.quarantine import NOTHING, Quarantine
from recsys.data.schema import Schema
from recsys.data.stream import EventStream
from recsys.dates import UNTIMED

SCAN_ROWS = 65_536
"""Rows of ids that are read at once."""
_PENDING = 2**20
"""Ids that are collected before they are merged."""

Ints = NDArray[np.int64]


class SeenIds:
    """Collects the users and the items of the batches that pass by; the `transform` of an `EventStream`.

    Memory: some 24 bytes for every id.
    """

    def __init__(self) -> None:
        self._sets = {"user": Distinct(), "item": Distinct()}
        self.newest = UNTIMED
        """Time of the newest event so far, ms."""

    def __call__(self, batch: Batch) -> Batch:
        """The batch as it was."""
        self._sets["user"].add(batch.user_ids)
        self._sets["item"].add(batch.item_ids)
        self.newest = max(self.newest, int(batch.timestamps.max()) if len(batch) else UNTIMED)
        return batch

    def ids(self) -> dict[str, Ints]:
        """Owner -> the ids so far, int64 [N], ascending."""
        return {owner: distinct.merged() for owner, distinct in self._sets.items()}


class Distinct:
    """Collects ids, each once."""

    def __init__(self) -> None:
        self._known, self._new = np.empty(0, np.int64), list[Ints]()
        self._pending = 0

    def add(self, ids: Tensor) -> None:  # int64 [B]
        """Take in more of them."""
        self._new.append(pa.array(ids.numpy()).unique().to_numpy())  # by hashing: faster than to sort every batch
        self._pending += len(self._new[-1])
        if self._pending > max(_PENDING, len(self._known)):
            self.merged()

    def merged(self) -> Ints:
        """Those so far, int64 [N], ascending."""
        if self._new:
            self._known, self._new, self._pending = np.unique(np.concatenate([self._known, *self._new])), [], 0
        return self._known


def read_ids(files: Sequence[Path], schema: Schema, skip: Quarantine = NOTHING) -> dict[str, Ints]:
    """The users and items of these events as `SeenIds.ids` has them; no column is read but theirs and the time.

    Raises:
        DataError: what `EventStream` raises.
    """
    seen, facts = SeenIds(), schema.select(features=(), labels=())
    stream = EventStream(files, facts, batch_size=SCAN_ROWS, drop_last=False, skip=skip, transform=seen)
    for _ in stream:
        pass
    return seen.ids()
