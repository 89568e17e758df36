"""The newest row of each entity, collected in one pass and brought together from all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from recsys.data.ranks import Ints, Ranks, home
from recsys.data.shares import PLACE

_PENDING = 2**20
"""Rows that are collected before they are merged."""


class Rows(NamedTuple):
    """Rows of n entities, and how many events each stands for. All int64 [n]."""

    ids: Ints
    times: Ints
    """ms."""
    places: Ints
    """See `recsys.data.shares`."""
    events: Ints

    def take(self, which: Ints) -> Rows:
        return Rows(*(column[which] for column in self))


NO_ROWS = Rows(*[np.empty(0, np.int64)] * 4)


class Newest:
    """Collects the newest row of each entity and counts its events; of equal times the later place wins.

    Memory: 32 bytes an entity, and as much for each of up to a million rows that wait.
    """

    def __init__(self) -> None:
        self._parts, self._rows, self._known = list[Rows](), 0, 0

    def add(self, ids: Ints, times: Ints, places: Ints, *, events: int = 1) -> None:
        """Take in more rows, int64 [n] each, which stand for so many events each."""
        self._parts.append(Rows(ids, times, places, np.full(len(ids), events)))
        self._rows += len(ids)
        if self._rows - self._known > max(_PENDING, self._known):
            self.rows()

    def rows(self) -> Rows:
        """Each entity once, by ascending id."""
        if len(self._parts) != 1 or self._rows != self._known:
            self._parts = [newest_of(self._parts)]
            self._rows = self._known = len(self._parts[0].ids)
        return self._parts[0]


def newest_of(parts: Sequence[Rows]) -> Rows:
    """Of rows of several parts, each entity's newest, by ascending id, and the sum of its events."""
    rows = Rows(*map(np.concatenate, zip(*(NO_ROWS, *parts), strict=True)))
    if not len(rows.ids):
        return NO_ROWS
    if (rows.places[1:] < rows.places[:-1]).any():
        rows = rows.take(np.argsort(rows.places))
    rows = rows.take(np.lexsort((rows.times, rows.ids)))  # stable: of equal times the later place comes last
    last = np.flatnonzero(np.append(rows.ids[1:] != rows.ids[:-1], True))
    counts = np.add.reduceat(rows.events, np.append(0, last[:-1] + 1))
    return rows.take(last)._replace(events=counts)


def together(rows: Rows, ranks: Ranks) -> Rows:
    """The newest of all ranks' rows, each entity on the rank that its id says. A collective."""
    return newest_of([Rows(*ranks.exchange(rows, home(rows.ids, ranks)))])


def behind(parts: Sequence[tuple[Rows, int]]) -> Rows:
    """The newest rows of several lists of files, as of one list that has them one after another.

    Args:
        parts: rows, and how many files their list has.
    """
    moved, before = [], 0
    for rows, files in parts:
        moved.append(rows._replace(places=rows.places + before * PLACE))
        before += files
    return newest_of(moved)
