"""The ids of a log, each once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from recsys.data.quarantine import NOTHING, Quarantine
from recsys.data.ranks import ALONE, Ranks
from recsys.data.schema import Schema
from recsys.data.survey import OWNERS, survey

SCAN_ROWS = 65_536
"""Rows of ids that are read at once."""
_PENDING = 2**20
"""Ids that are collected before they are merged."""

Ints = NDArray[np.int64]


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


def read_ids(
    files: Sequence[Path], schema: Schema, skip: Quarantine = NOTHING, ranks: Ranks = ALONE
) -> dict[str, Ints]:
    """Owner -> the ids of these events, int64 [N], ascending, on every rank. A collective.

    No column is read but ids and times.

    Raises:
        DataError: what `survey` raises.
    """
    found = survey(files, schema, (), skip, ranks=ranks)
    return {owner: found.seen(owner, ranks) for owner in OWNERS}
