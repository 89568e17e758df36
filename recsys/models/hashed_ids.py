"""Ids of the whole int64 range in tables of any size: each reads a row of several, by hashes of its own.

Two ids rarely meet in all of them, so that hardly two have the same vector, though there are fewer rows than ids: the
composition of PinFM (8 tables; Pinterest, 2025) and of hash embeddings (Svenstrup et al., NeurIPS 2017).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.data.hashing import splitmix64
from recsys.data.schema import Schema
from recsys.data.sparse import Ints, columns, keyed
from recsys.models.vocabulary import own_ids


class HashedIds(nn.Module):
    """In place of a `Vocabulary`: users' and items' ids read `sub_tables` rows each. Nothing is learned, nor kept.

    The sub-tables of an owner lie behind one another in one table, whose rows are those of the first, the second, ...
    """

    def __init__(self, schema: Schema, sub_tables: int) -> None:
        super().__init__()
        self.features = own_ids(schema)
        self.sub_tables = sub_tables

    def admit(self, seen: Mapping[str, Ints], as_of: int = 0) -> dict[str, Ints]:
        """Nothing: every id has rows, which nobody gives back."""
        return {}

    def without_row(self, seen: Mapping[str, Ints]) -> dict[str, float]:
        """Owner -> share of these different ids of which each row is another one's too."""
        shares = {}
        for owner, feature in self.features.items():
            rows = sub_rows(seen[owner], feature.rows, self.sub_tables)
            shared = [np.bincount(each, minlength=0)[each] > 1 for each in (rows - rows.min(0, initial=0)).T]
            shares[owner] = float(np.mean(np.all(shared, axis=0))) if len(rows) else 0.0
        return shares

    def state(self) -> dict[str, Tensor]:
        """Nothing is kept."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Nothing was kept."""

    def resolve(self, batch: Batch, dropout: float = 0.0, seed: int = 0) -> Batch:
        """Let the ids of a batch, fresh from `to_batch`, read their rows.

        Args:
            batch: on the CPU; its `sparse` is replaced. It may lack an owner's id.
            dropout, seed: without effect; there is no row for ids that are dropped.

        Returns:
            the batch.
        """
        parts = columns(batch.sparse)
        for owner, feature in self.features.items():
            if feature.name in parts:
                ids = (batch.user_ids if owner == "user" else batch.item_ids).numpy()
                rows = sub_rows(ids, feature.rows, self.sub_tables)
                parts[feature.name] = rows.ravel(), np.full(len(ids), self.sub_tables, np.int64)
        batch.sparse = keyed(parts, batch.sparse.stride())
        return batch


def sub_rows(ids: Ints, rows: int, sub_tables: int) -> Ints:  # [N] -> int64 [N, S]
    """The rows that each id reads, one in each sub-table, numbered through all of them.

    Args:
        ids: int64 [N], any values.
        rows: of a sub-table.
        sub_tables: S.
    """
    numbers = np.arange(sub_tables, dtype=np.uint64)
    hashed = splitmix64(splitmix64(ids.view(np.uint64))[:, None] + splitmix64(numbers + np.uint64(1)))
    return (hashed % np.uint64(rows) + numbers * np.uint64(rows)).astype(np.int64)
