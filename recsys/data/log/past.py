"""What was known of entities strictly before given times, of a share of a log that fits into memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recsys.data.history import History

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Past:
    """Asks a log of M events, for N (entity, time) queries, what came strictly before.

    One search a span of time serves every kind of action. `recsys.data.history.PastEvents` answers the same questions
    one kind at a time; here are five times as many queries as events, and as many kinds and spans as one likes.

    Args:
        entity: int64 [M], any ids.
        time: int64 [M], in ms.
        of: int64 [N], the entities that are asked for.
        before: int64 [N], the times.
    """

    def __init__(self, entity: Ints, time: Ints, of: Ints, before: Ints) -> None:
        entities = np.unique(entity)
        self._low = int(time.min()) if len(time) else 0
        self._span = int(time.max()) - self._low + 2 if len(time) else 2
        key = np.searchsorted(entities, entity) * self._span + (time - self._low)
        self._order = np.argsort(key, kind="stable")
        self._key, self._time = key[self._order], time
        # Queries in the order of the keys: what one search reads the next finds in the cache.
        asked = np.searchsorted(entities, of)
        known = asked < len(entities)
        known[known] = entities[asked[known]] == of[known]
        self._before = before
        self._sorted = np.argsort(asked * self._span + self._offset(before), kind="stable")
        self._first = (asked * self._span)[self._sorted]
        self._known = known[self._sorted]
        self._begin = np.searchsorted(self._key, self._first)
        self._end = self._at(0)

    def counts(self, masks: Sequence[Mask], spans: Sequence[int]) -> list[list[Ints]]:
        """Events in [before - span, before) for each span, in ms (0: since ever), and each kind.

        Args:
            masks: bool [M] each, which events are of a kind.
            spans: of time.

        Returns:
            for each span, for each kind, int32 [N].
        """
        running = [self._running(mask) for mask in masks]
        found = []
        for span in spans:
            begin = np.maximum(self._begin, self._at(span)) if span else self._begin
            found.append([self._back((sums[self._end] - sums[begin]).astype(np.int32)) for sums in running])
        return found

    def newest(self, mask: Mask, values: NDArray, longest: int) -> History:
        """The last `longest` events of a kind before each query, oldest first.

        Args:
            mask: bool [M], which events are of the kind.
            values: [M], of each event.
            longest: 1 or more.
        """
        sums, events = self._running(mask), self._order[mask[self._order]]
        begin, end = self._back(sums[self._begin]), self._back(sums[self._end])
        begin = np.maximum(begin, end - longest)
        lengths = end - begin
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        rows = events[np.arange(offsets[-1]) + np.repeat(begin - offsets[:-1], lengths)]
        return History(offsets, values[rows], self._time[rows])

    def _running(self, mask: Mask) -> Ints:
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(mask[self._order], dtype=np.int64)])

    def _offset(self, time: Ints) -> Ints:
        """Of a time within its entity's keys: one before or after all of them is at their beginning or end."""
        return np.clip(time - self._low, 0, self._span - 1)

    def _at(self, span: int) -> Ints:
        """Where the events of each query's entity that are not before `before - span` begin."""
        found = np.searchsorted(self._key, self._first + self._offset(self._before[self._sorted] - span))
        return np.where(self._known, found, self._begin)

    def _back(self, values: NDArray) -> NDArray:
        """Values of the queries in the order in which they were asked."""
        back = np.empty_like(values)
        back[self._sorted] = values
        return back
