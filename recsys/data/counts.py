"""How often each id came, counted in one pass and added up over all ranks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from recsys.data.ranks import Ints, Ranks, home

_PENDING = 2**20
"""Ids that are collected before they are merged."""


class Counts(NamedTuple):
    """int64 [n] each; the ids ascend."""

    ids: Ints
    counts: Ints

    @staticmethod
    def of(ids: Ints, counts: Ints) -> Counts:
        """Add up the counts of each id, which may repeat."""
        found, row = np.unique(ids, return_inverse=True)
        total = np.zeros(len(found), np.int64)
        np.add.at(total, row, counts)
        return Counts(found, total)

    def together(self, ranks: Ranks) -> Counts:
        """Of all ranks, each id on the rank that it says. A collective."""
        return Counts.of(*ranks.exchange(self, home(self.ids, ranks)))


class Counter:
    """Counts ids as they pass. Memory: 16 bytes an id, and 8 for each of up to a million that wait."""

    def __init__(self) -> None:
        self._known, self._new, self._waiting = Counts(*[np.empty(0, np.int64)] * 2), list[Ints](), 0

    def add(self, ids: Ints) -> None:
        """Count each of the ids once more, int64 [n]."""
        self._new.append(ids)
        self._waiting += len(ids)
        if self._waiting > max(_PENDING, len(self._known.ids)):
            self.counts()

    def counts(self) -> Counts:
        """Those so far."""
        if self._new:
            ids, ones = np.concatenate([self._known.ids, *self._new]), np.ones(self._waiting, np.int64)
            self._known = Counts.of(ids, np.concatenate([self._known.counts, ones]))
            self._new, self._waiting = [], 0
        return self._known
