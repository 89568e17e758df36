"""Samples of events that do not hang on who reads them: by a hash of where an event lies, or of whose it is.

The least hashes of each rank's share hold the least of all, so a sample of a fixed size is taken in one pass and put
together from the ranks' own. Where there are no more than the size, it is all of them, in their order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recsys.data.hashing import scramble
from recsys.data.ranks import Ints, Ranks

_ROOM = 4
"""Times the size of a sample that is collected before it is cut down."""


class Sampled:
    """Keeps the rows whose keys have the least hashes: at most `size` different keys, with all of their rows.

    Args:
        size: of the sample.
        salt: another one gives another sample.
        distinct: whether of equal rows one is kept.
    """

    def __init__(self, size: int, *, salt: int, distinct: bool = False) -> None:
        self._size, self._salt, self._distinct = size, salt, distinct
        self._parts, self._new, self._kept = list[list[Ints]](), 0, 0
        self._least = np.iinfo(np.int64).max

    def add(self, keys: Ints, *columns: Ints) -> None:
        """Take in rows, int64 [n] each."""
        if self._least < np.iinfo(np.int64).max:
            may = scramble(keys, self._salt) <= self._least
            keys, columns = keys[may], tuple(column[may] for column in columns)
        self._parts.append([keys, *columns])
        self._new += len(keys)
        if self._new > max(_ROOM * self._size, self._kept):
            self.rows()

    def rows(self) -> list[Ints]:
        """The keys and the columns of the sample so far, by ascending key."""
        if not self._parts:
            return []
        kept = self._cut([np.concatenate(column) for column in zip(*self._parts, strict=True)])
        self._parts, self._new, self._kept = [kept], 0, len(kept[0])
        return kept

    def together(self, ranks: Ranks, columns: int) -> list[Ints]:
        """The sample of all ranks, on every rank. A collective; `columns`: how many there are beside the keys."""
        mine = self.rows() or [np.empty(0, np.int64)] * (columns + 1)
        return self._cut(ranks.gather(mine))

    def _cut(self, rows: Sequence[Ints]) -> list[Ints]:
        different = np.unique(rows[0])
        if len(different) > self._size:
            hashed = np.sort(scramble(different, self._salt))
            self._least = int(hashed[self._size - 1])
            may = scramble(rows[0], self._salt) <= self._least
            rows = [column[may] for column in rows]
        order = np.lexsort(rows[::-1])
        ordered = [column[order] for column in rows]
        if not self._distinct or not len(order):
            return ordered
        first = np.append(True, np.logical_or.reduce([column[1:] != column[:-1] for column in ordered]))
        return [column[first] for column in ordered]
