"""Ranks that read a log together: each its share of the row groups, with what they found exchanged between them.

How they reach each other is not known here: `recsys.train.exchange` does, and a process alone exchanges with nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recsys.data.hashing import splitmix64

Ints = NDArray[np.int64]


class Ranks(Protocol):
    """This rank and the others. Every method is a collective."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def exchange(self, columns: Sequence[Ints], to: Ints) -> list[Ints]:
        """Send row i of these columns, int64 [n] each, to rank `to[i]`; returns what came, rank 0's first, the rows of
        one rank in their order."""

    def gather(self, columns: Sequence[Ints]) -> list[Ints]:
        """The rows of all ranks on every rank, rank 0's first."""

    def sum(self, values: Ints) -> Ints:
        """Elementwise over all ranks."""

    def max(self, values: NDArray[np.float32] | Ints) -> NDArray[np.float32] | Ints:
        """Elementwise over all ranks."""


class _Alone:
    """One process."""

    rank, world_size = 0, 1

    def exchange(self, columns: Sequence[Ints], to: Ints) -> list[Ints]:
        return list(columns)

    def gather(self, columns: Sequence[Ints]) -> list[Ints]:
        return list(columns)

    def sum(self, values: Ints) -> Ints:
        return values

    def max(self, values: NDArray[np.float32] | Ints) -> NDArray[np.float32] | Ints:
        return values


ALONE: Ranks = _Alone()


def home(ids: Ints, ranks: Ranks) -> Ints:
    """Which rank an id's facts come together on, int64 [N]."""
    return (splitmix64(ids.view(np.uint64)) % np.uint64(ranks.world_size)).astype(np.int64)


def cut(sorted_places: Ints, ranks: Ranks) -> Ints:
    """Where the places of all ranks, each there once, are cut into equal shares.

    Bisection, of which all ranks count a step together: 63 exchanges of a few numbers, whatever there is to cut.

    Args:
        sorted_places: int64 [n], 0 or more, ascending: this rank's.
        ranks: who share.

    Returns:
        int64 [world_size - 1]: share r begins with the first place that is not less than entry r - 1; it has rows
        N r // world_size up to N (r + 1) // world_size of all N.
    """
    whole = int(ranks.sum(np.array([len(sorted_places)]))[0])
    wanted = np.array([whole * r // ranks.world_size for r in range(1, ranks.world_size)], np.int64)
    low, high = np.zeros_like(wanted), np.full_like(wanted, np.iinfo(np.int64).max)
    while (low < high).any():  # the least place that has so many before it
        middle = low + (high - low) // 2
        enough = ranks.sum(np.searchsorted(sorted_places, middle).astype(np.int64)) >= wanted
        low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
    return low
