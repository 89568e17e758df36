"""What the ways to retrieve found of the test positives: in all, day by day, and one held against another."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recsys.downstream.retrieval import positions
from recsys.evaluate.nearest import found_at, mean_recall, recall_by_user
from recsys.study.moments import Moment

Recall = Mapping[int, float]
"""k -> mean over users of the share of their positives among the first k."""
Retriever = Callable[[Moment], tuple[Tensor, Tensor]]
"""A moment -> candidates int64 [N], and rows of them for each of its users, best first, int64 [U, K]; -1: nothing."""
NORMAL = 1.96
"""Standard deviations on either side of a mean that hold 95 %."""


@dataclass(frozen=True, kw_only=True)
class RetrievalResult:
    """Recall of the users' positives by row; `recsys.study.retrieval` says what the rows are."""

    rows: Mapping[str, Recall]
    """Row -> k -> mean over users of the share of their test positives among the top k."""
    validation: Mapping[str, Recall]
    """The same of those users of the validation days that the choice was made by; empty without such days."""
    lead: Mapping[str, Mapping[int, tuple[float, float]]]
    """Other row -> k -> 95 % interval, over users, of the recall of `chosen` less that of the row."""
    by_day: Mapping[str, Mapping[str, Recall]]
    """ISO date -> row -> recall of the positives of that day alone; empty without event times."""
    users_by_day: Mapping[str, int]
    """ISO date -> users with a positive."""
    hours: float
    """Chosen window of the prior; 0: everything."""
    weight: float
    """Chosen weight of the prior."""
    ials: str = ""
    """Chosen settings of iALS; empty: it was not run."""
    days: int
    """Moments at which requests were answered."""
    users: int
    """Users with a positive: those the means are over."""
    users_without_vector: float
    """Share of their requests at whose time they had no vector: they get the items of the greatest prior."""
    items: int
    """Candidates at the last moment: items with a vector, or with an event in the window."""
    positives_without_vector: float
    """Share of the positives whose item had no vector; it stands with the mean vector and its prior."""
    positives_not_retrievable: float
    """Share of the positives whose item was no candidate; they count, and are never found."""
    space: str
    """Of the vectors at the last moment, like `version` and `as_of`."""
    version: int
    as_of: int
    """Milliseconds since the epoch; 0 of a log without event times."""


@dataclass(frozen=True)
class Found:
    """Every positive of some requests, and where a way retrieved it."""

    users: Tensor  # int64 [P], 0, 1, ...: whose it is
    places: Tensor  # int64 [P], see `found_at`
    moments: tuple[int, ...]
    """How many of them are of each moment, in order."""

    def recall(self, k: Sequence[int]) -> dict[int, float]:
        """k -> mean over users of the share of their positives, of all moments, that were among the first k then."""
        return mean_recall(self.users, self.places, k)

    def by_moment(self, k: Sequence[int]) -> list[dict[int, float]]:
        """The same of each moment's positives alone."""
        parts = zip(self.users.split(self.moments), self.places.split(self.moments), strict=True)
        return [mean_recall(users, places, k) for users, places in parts]

    def lead_over(self, other: Found, k: Sequence[int]) -> dict[int, tuple[float, float]]:
        """k -> the 95 % interval, over users, of this recall less the other's, of the same positives."""
        return {cut: _interval(self._by_user(cut) - other._by_user(cut)) for cut in k}

    def _by_user(self, cut: int) -> Tensor:
        return recall_by_user(self.users, self.places, cut)


def find(requests: Sequence[Moment], way: Retriever) -> Found:
    """Let a way answer all requests."""
    users, places = [], []
    for moment in requests:
        ids, rows = way(moment)
        places.append(found_at(rows, moment.rows, positions(ids, moment.items)))
        users.append(moment.users[moment.rows])
    numbered = torch.cat(users).unique(return_inverse=True)[1]
    return Found(numbered, torch.cat(places), tuple(len(part) for part in users))


def _interval(leads: Tensor) -> tuple[float, float]:
    """Of the mean of float64 [U], by the normal distribution; NaN for a single user."""
    mean = float(leads.mean())
    half = NORMAL * float(leads.std()) / math.sqrt(len(leads)) if len(leads) > 1 else math.nan
    return mean - half, mean + half
