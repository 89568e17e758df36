"""The prior of items: the log of how likely each is to be chosen now, whoever is asked.

The contrastive loss subtracts log Q(i), how often an item was sampled (recsys/models/losses.py): the inner product of
two vectors over the temperature estimates log p(i | u) / Q(i), and says nothing of how popular the item is. What is to
be ranked by p(i | u) adds the log of the item's share back; of its newest share, since popularity moves faster than
taste. It also says who must not be retrieved: an item that is withdrawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from embedding_store import Snapshot

UNSEEN = -math.log(2)
"""Added to the least value there is for an item without an event: who was shown and not chosen is at least there."""
WITHDRAWN = -1e9
"""Stored as the value of an item that is withdrawn: the log of no share at all, -inf, is none that a store takes."""


@dataclass(frozen=True)
class Prior:
    """Of the N items with an event in some window of time."""

    ids: Tensor  # int64 [N], ascending
    values: Tensor  # float32 [N], logs of shares
    withdrawn: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))  # int64 [W], ascending
    """Items that are not to be retrieved; none of `ids`."""

    @staticmethod
    def count(
        items: np.ndarray,  # int64 [E], of each event
        positive: np.ndarray,  # bool [E], whether it was chosen there
    ) -> Prior:
        """Log of each item's share of the positives, every item counted once more than it was one (Laplace): an item
        that was shown and never chosen has a share too."""
        ids, rows = np.unique(np.asarray(items, dtype=np.int64), return_inverse=True)
        return Prior.of_counts(ids, np.bincount(rows[positive], minlength=len(ids)))

    @staticmethod
    def of_counts(
        ids: np.ndarray,  # int64 [N], ascending
        positives: np.ndarray,  # int64 [N]
    ) -> Prior:
        """The same of how often each item was chosen."""
        counts = positives + 1.0
        return Prior(torch.from_numpy(ids), torch.from_numpy(np.log(counts / max(counts.sum(), 1.0))).float())

    @staticmethod
    def load(snapshot: Snapshot) -> Prior:
        """What was published. Raises ValueError for a snapshot of anything but one value an item."""
        if snapshot.dim != 1:
            raise ValueError(f"{snapshot!r} has {snapshot.dim} dimensions, a prior has one: read item_<upstream>.prior")
        table = snapshot.load()
        ids = table.ids().sort().values
        values = table.lookup(ids)[0][:, 0]
        gone = values == WITHDRAWN
        return Prior(ids[~gone], values[~gone], ids[gone])

    def rows(self) -> tuple[Tensor, Tensor]:  # int64 [N + W], float32 [N + W, 1]
        """What is published: ids and values, of withdrawn items too."""
        values = torch.cat([self.values, torch.full((len(self.withdrawn),), WITHDRAWN)])
        return torch.cat([self.ids, self.withdrawn]), values[:, None]

    def without(
        self,
        withdrawn: Tensor,  # int64 [W], ascending
    ) -> Prior:
        """The same of which these items are withdrawn, and no others. One that is back has no value."""
        stays = ~torch.isin(self.ids, withdrawn)
        return Prior(self.ids[stays], self.values[stays], withdrawn)

    def of(
        self,
        ids: Tensor,  # int64 [n]
    ) -> Tensor:  # float32 [n]
        """The items' values; of an item without an event half of the least share, and 0 where no item has any."""
        if not len(self.ids):
            return torch.zeros(len(ids))
        place = torch.searchsorted(self.ids, ids).clamp_(max=len(self.ids) - 1)
        return torch.where(self.ids[place] == ids, self.values[place], self.values.min() + UNSEEN)
