"""Fixed-size samples of a day and of a series: what keeps the cost of watching bounded."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from embedding_store import Table
from recsys.data.hashing import scramble

LEVELS = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
"""Of every distribution's quantiles."""
BLOCK = 65_536
"""Ids or events that are read at once."""


def sample_ids(ids: Tensor, size: int) -> Tensor:
    """At most `size` of the ids (int64 [n], distinct), by ascending hash: nearly the same ones day by day."""
    hashed = scramble(ids.numpy(), salt=1)
    chosen = np.argpartition(hashed, size)[:size] if len(ids) > size else np.arange(len(ids))
    return ids[torch.from_numpy(chosen[np.argsort(hashed[chosen])])]


def draw(count: int, size: int, seed: int) -> Tensor:
    """At most `size` different numbers below `count`, ascending: int64 [min(size, count)]."""
    chosen = np.random.default_rng(seed).choice(count, min(size, count), replace=False, shuffle=False)
    return torch.from_numpy(np.sort(chosen))


def lookup_found(table: Table, ids: Tensor) -> Tensor:
    """Which of the ids (int64 [n]) a table holds, bool [n], with the memory of one block of vectors."""
    return torch.cat([table.lookup(block)[1] for block in ids.split(BLOCK)]) if len(ids) else ids.bool()


def quantiles(values: Tensor) -> dict[str, float] | None:
    """Level -> quantile of float [n]; None without values."""
    if not len(values):
        return None
    found = np.quantile(values.double().numpy(), LEVELS)
    return {str(level): float(value) for level, value in zip(LEVELS, found, strict=True)}
