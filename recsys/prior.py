"""The prior of items: the log of how likely each is to be chosen now, whoever is asked.

The contrastive loss subtracts log Q(i), how often an item was sampled (recsys/models/losses.py): the inner product of
two vectors over the temperature estimates log p(i | u) / Q(i), and says nothing of how popular the item is. What is to
be ranked by p(i | u) adds the log of the item's share back; of its newest share, since popularity moves faster than
taste.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from embedding_store import Snapshot


@dataclass(frozen=True)
class Prior:
    """Of the N items with an event in some window of time."""

    ids: Tensor  # int64 [N], ascending
    values: Tensor  # float32 [N], logs of shares

    @staticmethod
    def count(
        items: np.ndarray,  # int64 [E], of each event
        positive: np.ndarray,  # bool [E], whether it was chosen there
    ) -> Prior:
        """Log of each item's share of the positives, every item counted once more than it was one (Laplace): an item
        that was shown and never chosen has a share too."""
        ids, rows = np.unique(np.asarray(items, dtype=np.int64), return_inverse=True)
        counts = np.bincount(rows[positive], minlength=len(ids)) + 1.0
        return Prior(torch.from_numpy(ids), torch.from_numpy(np.log(counts / max(counts.sum(), 1.0))).float())

    @staticmethod
    def load(snapshot: Snapshot) -> Prior:
        """What was published. Raises ValueError for a snapshot of anything but one value an item."""
        if snapshot.dim != 1:
            raise ValueError(f"{snapshot!r} has {snapshot.dim} dimensions, a prior has one: read item_<upstream>.prior")
        table = snapshot.load()
        ids = table.ids().sort().values
        return Prior(ids, table.lookup(ids)[0][:, 0])

    def of(
        self,
        ids: Tensor,  # int64 [n]
    ) -> Tensor:  # float32 [n]
        """The items' values; of an item without an event the least one, and 0 where no item has any."""
        if not len(self.ids):
            return torch.zeros(len(ids))
        place = torch.searchsorted(self.ids, ids).clamp_(max=len(self.ids) - 1)
        return torch.where(self.ids[place] == ids, self.values[place], self.values.min())
