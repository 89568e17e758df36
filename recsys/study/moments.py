"""Who asks for items when, and what was known then: the log's positives as requests, day by day."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.data.stream import EventStream
from recsys.dates import DAY_MS, HOUR_MS


@dataclass(frozen=True)
class Log:
    """E events, in any order."""

    users: NDArray[np.int64]  # [E]
    items: NDArray[np.int64]  # [E]
    times: NDArray[np.int64]  # [E], ms; 0 in a log without event times
    positive: NDArray[np.bool_]  # [E]

    @staticmethod
    def read(stream: EventStream) -> Log:
        """All events of a stream of one label."""
        rows = [
            (batch.user_ids, batch.item_ids, batch.timestamps, (batch.labels[:, 0] == 1) & batch.label_mask[:, 0])
            for batch in stream
        ]
        users, items, times, positive = (torch.cat(column).numpy() for column in zip(*rows, strict=True))
        return Log(users, items, times, positive)

    @staticmethod
    def join(logs: Iterable[Log]) -> Log:
        """Several as one."""
        columns = zip(*((log.users, log.items, log.times, log.positive) for log in logs), strict=True)
        users, items, times, positive = (np.concatenate(column) for column in columns)
        return Log(users, items, times, positive)

    def only(self, chosen: NDArray[np.bool_]) -> Log:
        """The chosen events."""
        return Log(self.users[chosen], self.items[chosen], self.times[chosen], self.positive[chosen])

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True)
class Moment:
    """The requests of one day, all answered with what was known when it began."""

    time: int
    """When it began, ms; 0 in a log without event times."""
    users: Tensor  # int64 [U], ascending: who asked
    rows: Tensor  # int64 [P], rows of `users`
    items: Tensor  # int64 [P]: what they turned out to want
    known: Log
    """The events before it."""
    timed: bool
    """Whether events have times; else `known` is all that may be known."""
    without: tuple[Tensor, Tensor] | None = None
    """What its users must not get: rows of `users` and ids of items, int64 [S] each."""

    def within(self, hours: float) -> Log:
        """What was known of its last hours; 0: everything."""
        if not hours or not self.timed:
            return self.known
        return self.known.only(self.known.times >= self.time - hours * HOUR_MS)


def moments(
    asked: Log,
    before: Log,
    *,
    timed: bool,
    since: int = 0,
    origin: int | None = None,
    length: int = DAY_MS,
    shown: Log | None = None,
    most: int | None = None,
    seed: int = 0,
) -> Iterator[Moment]:
    """The positives of a log as requests, a moment a day that has any.

    Args:
        asked: the log. A pair of user and item counts once, where it is first positive.
        before: other events that may be known; of both, those before a moment's time are.
        timed: whether events have times; without them all requests are of one moment, which knows `before`.
        since: requests before this time, ms, are left out: an upstream may have been taught by them.
        origin: when a day begins, ms; None: days are counted from the first request on.
        length: of a day, ms.
        shown: leave out, of what is wanted and of what is retrieved, what its user was shown in this log or in what is
            known at the moment; None: nothing.
        most: so many requests at most, a user on a day each, drawn by `seed`.
    """
    wanted = asked.only(asked.positive & (asked.times >= since))
    if not len(wanted):
        return
    order = np.lexsort((wanted.times, wanted.items, wanted.users))
    users, items = wanted.users[order], wanted.items[order]
    first = np.append(True, (users[1:] != users[:-1]) | (items[1:] != items[:-1]))
    users, items, times = users[first], items[first], wanted.times[order][first]
    start = times.min() if origin is None else origin
    days = (times - start) // length
    if most is not None:
        drawn = _drawn(days, users, most, seed)
        users, items, days = users[drawn], items[drawn], days[drawn]
    everything = Log.join([before, asked]) if timed else before
    for day in np.unique(days):
        time = max(int(start + day * length), since) if timed else 0
        known = everything.only(everything.times < time) if timed else everything
        chosen = days == day
        seen = None if shown is None else Log.join([shown, known])
        if seen is not None:
            chosen &= ~_among(users, items, seen)
        if chosen.any():
            ids, rows = np.unique(users[chosen], return_inverse=True)
            without = None if seen is None else _pairs(ids, seen)
            asking, who, what = (torch.from_numpy(column) for column in (ids, rows, items[chosen]))
            yield Moment(time, asking, who, what, known, timed, without)


def _drawn(days: NDArray[np.int64], users: NDArray[np.int64], most: int, seed: int) -> NDArray[np.bool_]:
    """Which rows are of the requests that are drawn."""
    ids, which = np.unique(users, return_inverse=True)
    requests, request = np.unique((days - days.min()) * len(ids) + which, return_inverse=True)
    kept = np.random.default_rng(seed).permutation(len(requests)) < most
    return kept[request]


def _pairs(ids: NDArray[np.int64], seen: Log) -> tuple[Tensor, Tensor]:
    """What these users were shown: rows of `ids`, which ascend, and ids of items."""
    theirs = seen.only(np.isin(seen.users, ids))
    return torch.from_numpy(np.searchsorted(ids, theirs.users)), torch.from_numpy(theirs.items)


def _among(users: NDArray[np.int64], items: NDArray[np.int64], known: Log) -> NDArray[np.bool_]:
    """Whether each pair is one of the log's."""
    pairs = np.empty(len(users) + len(known), dtype=[("user", np.int64), ("item", np.int64)])
    pairs["user"] = np.concatenate([users, known.users])
    pairs["item"] = np.concatenate([items, known.items])
    _, rows = np.unique(pairs, return_inverse=True)
    return np.isin(rows[: len(users)], rows[len(users) :])
