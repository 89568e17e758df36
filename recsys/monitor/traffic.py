"""What is measured of a day's traffic, taken in one pass by all ranks: its entities, and samples of its events.

A sample is of a fixed size and drawn by a hash, so that it hangs neither on the ranks nor on who reads; of a day that
has no more it is everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from recsys.data.newest import Rows
from recsys.data.ranks import ALONE, Ints, Ranks
from recsys.data.sampled import Sampled
from recsys.data.schema import Schema
from recsys.data.shares import Read
from recsys.data.survey import OWNERS, columns_of

EVENTS = 20_000
"""Labelled events that are scored."""
CHOOSERS = 65_536
"""Users with a positive, with all of their positives: more than are searched for, since not each has a vector."""


class Seen(NamedTuple):
    """The day's entities of one kind."""

    ids: Tensor  # int64 [N], ascending
    events: Tensor  # int64 [N], how many each has


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Labelled events, at most a sample of them."""

    users: Tensor  # int64 [n]
    items: Tensor  # int64 [n]
    labels: np.ndarray  # [n], 0 or 1


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """A day, as far as it is measured."""

    users: Seen
    items: Seen
    judged: Judged
    """At most `EVENTS` of those whose label exists."""
    choosers: Tensor  # int64 [P]
    chosen: Tensor  # int64 [P]
    """Pairs of a user and an item that it chose, each once; of at most `CHOOSERS` users."""

    @property
    def events(self) -> int:
        """Of the day."""
        return int(self.users.events.sum())


class TrafficSample:
    """Collects the samples; a `Visitor` of a scan.

    Args:
        schema: of the events, with the labels that their batches have.
        label: that the inner product of the pair is judged by.
        as_of: time up to which outcomes are known, ms; None: all of them are.
    """

    def __init__(self, schema: Schema, label: str, as_of: int | None = None) -> None:
        (self._label,), self.as_of = columns_of(schema, (label,)), as_of
        self._judged = Sampled(EVENTS, salt=2)
        self._pairs = Sampled(CHOOSERS, salt=3, distinct=True)

    def add(self, read: Read) -> None:
        """Take in rows."""
        labels, mask = (x.numpy()[:, self._label] for x in (read.batch.labels, read.batch.label_mask))
        self.add_events(read.batch.user_ids.numpy(), read.batch.item_ids.numpy(), labels, mask, read.places)

    def add_events(self, users: Ints, items: Ints, labels: np.ndarray, mask: np.ndarray, places: Ints) -> None:
        """The same of columns, [n] each."""
        bits = labels.astype(np.float32).view(np.int32).astype(np.int64)
        self._judged.add(places[mask], users[mask], items[mask], bits[mask])
        positive = mask & (labels == 1)
        self._pairs.add(users[positive], items[positive])

    def together(self, rows: Mapping[str, Rows], ranks: Ranks = ALONE) -> Traffic:
        """The day's traffic; whole on rank 0, which measures. A collective.

        Args:
            rows: owner -> the day's entities whose home this rank is, with their events.
            ranks: who have read.
        """
        seen = {}
        for owner in OWNERS:
            columns = (rows[owner].ids, rows[owner].events)
            ids, events = ranks.exchange(columns, np.zeros(len(rows[owner].ids), np.int64))
            order = np.argsort(ids)
            seen[owner] = Seen(torch.from_numpy(ids[order]), torch.from_numpy(events[order]))
        _, users, items, bits = self._judged.together(ranks, 3)
        choosers, chosen = self._pairs.together(ranks, 1)
        labels = bits.astype(np.int32).view(np.float32)
        return Traffic(
            users=seen["user"],
            items=seen["item"],
            judged=Judged(users=torch.from_numpy(users), items=torch.from_numpy(items), labels=labels),
            choosers=torch.from_numpy(choosers),
            chosen=torch.from_numpy(chosen),
        )
