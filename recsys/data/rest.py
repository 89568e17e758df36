"""What is left of a pass that was begun by another number of ranks.

A pass has an order of rows, which hangs on the seed alone. Ranks cut it into one piece each, so what they have done of
it after some steps is no beginning of that order: another number of ranks has to be told what is left. It is a function
of the legs of the pass alone (who did how many steps of it), and so is what every rank reads of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Leg(NamedTuple):
    """Steps of a pass that one number of ranks has done."""

    world_size: int
    batch_size: int
    """Of a rank and step."""
    steps: int


class Place(NamedTuple):
    """Where a training stands in its passes, for any number of ranks."""

    turn: int
    """Passes that are done."""
    legs: tuple[Leg, ...]
    """Of the pass that has been begun, in their order; the last is of the ranks that say this. None between passes."""

    def record(self) -> dict[str, Any]:
        """For a checkpoint, as JSON."""
        return {"turn": self.turn, "legs": [list(leg) for leg in self.legs]}

    @classmethod
    def of(cls, record: dict[str, Any]) -> Self:
        """From what `record` gave."""
        return cls(record["turn"], tuple(Leg(*leg) for leg in record["legs"]))

    def continued(self, world_size: int, batch_size: int) -> tuple[tuple[Leg, ...], int]:
        """The legs before that of these ranks, and the steps of that one: 0 if the last leg was of others."""
        if self.legs and self.legs[-1][:2] == (world_size, batch_size):
            return self.legs[:-1], self.legs[-1].steps
        return self.legs, 0


class Numbers(NamedTuple):
    """How the batches of a rank are counted: over all passes, the last of each one at the same place in every pass."""

    per_turn: int
    """Batches of a whole pass."""
    leg: tuple[int, int]
    """World and batch size of these ranks."""
    turn: int = -1
    """The pass that others had begun, if any."""
    earlier: tuple[Leg, ...] = ()
    """Their legs."""
    left: int = 0
    """Batches that were left of it, which have the pass's last numbers."""

    @property
    def first(self) -> int:
        """Number of the first batch that was left."""
        return (self.turn + 1) * self.per_turn - self.left

    def place(self, number: int) -> Place:
        """Where a training stands before the batch of this number."""
        turn, steps = divmod(number, self.per_turn)
        if self.left and self.first <= number < self.first + self.left:
            return Place(self.turn, (*self.earlier, Leg(*self.leg, number - self.first)))
        return Place(turn, (Leg(*self.leg, steps),) if steps else ())


@dataclass(frozen=True)
class Ranges:
    """Rows of a pass: ascending ranges of its order that do not touch."""

    starts: Ints
    ends: Ints

    @classmethod
    def whole(cls, rows: int) -> Self:
        """All of so many."""
        return cls(np.zeros(1, np.int64), np.full(1, rows, np.int64))

    @property
    def rows(self) -> int:
        """How many there are."""
        return int((self.ends - self.starts).sum())

    def part(self, starts: Ints, ends: Ints) -> Ranges:
        """Those in some ranges of the numbers that they have here, ascending and apart."""
        if not (len(starts) and len(self.starts)):
            return Ranges(np.zeros(0, np.int64), np.zeros(0, np.int64))
        last = np.cumsum(self.ends - self.starts)
        cuts = np.unique(np.concatenate((starts, ends, last)))  # where one of mine ends, or one that is wanted
        first, end = np.concatenate(([0], cuts[:-1])), cuts
        index = np.searchsorted(starts, first, side="right") - 1
        wanted = (index >= 0) & (end > first)
        wanted[wanted] = first[wanted] < ends[index[wanted]]
        first, end = first[wanted], end[wanted]
        mine = np.searchsorted(last, first, side="right")
        there = mine < len(last)
        mine, first, end = mine[there], first[there], end[there]
        moved = self.ends[mine] - last[mine]
        return _joined(first + moved, end + moved)

    def spans(self, gap: int) -> Iterator[Ranges]:
        """The same in groups that lie at least `gap` rows apart."""
        cuts = np.flatnonzero(self.starts[1:] - self.ends[:-1] >= gap) + 1
        for starts, ends in zip(np.split(self.starts, cuts), np.split(self.ends, cuts), strict=True):
            if len(starts):
                yield Ranges(starts, ends)

    def missing(self, first: int, end: int) -> Ints:
        """The rows of [first, end) that are not among these, counted from `first`."""
        change = np.zeros(end - first + 1, np.int64)
        among = slice(np.searchsorted(self.ends, first, side="right"), np.searchsorted(self.starts, end))
        np.add.at(change, np.maximum(self.starts[among] - first, 0), 1)
        np.add.at(change, np.minimum(self.ends[among], end) - first, -1)
        return np.flatnonzero(np.cumsum(change[:-1]) == 0)


@dataclass(frozen=True)
class Share:
    """What a rank does of some rows: a range of them, cut into steps."""

    first: int
    rows: int
    steps: int
    batch_size: int = 0
    """Rows of each step but the last; 0: as many in each as can be."""

    def start(self, step: int) -> int:
        """Where a step begins, counted from `first`; of the number of steps: where the last one ends."""
        even = step * self.rows // max(1, self.steps)
        return min(step * self.batch_size, self.rows) if self.batch_size else even


def share_of_rest(rows: int, leg: Sequence[int], rank: int, most: int) -> Share:
    """A rank's part of what others have left of a pass: all of it is somebody's but for less than a row a rank. In each
    step every rank has as many rows as the others, which a contrastive loss exchanges.

    Args:
        rows: that are left.
        leg: world and batch size of those who go on.
        rank: one of them.
        most: steps. No batch is larger than `leg` says, but where this or the rows forbid it.
    """
    world_size, batch_size = leg[:2]
    piece = rows // world_size
    return Share(rank * piece, piece, min(most, piece, -(-piece // batch_size)))


def _joined(starts: Ints, ends: Ints) -> Ranges:
    """Ascending ranges, those that touch as one."""
    if not len(starts):
        return Ranges(starts, ends)
    new = np.concatenate(([True], starts[1:] > ends[:-1]))
    return Ranges(starts[new], ends[np.concatenate((new[1:], [True]))])
