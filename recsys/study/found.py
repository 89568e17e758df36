"""What the ways to retrieve found of the test positives: in all, day by day, and one held against another."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from recsys.downstream.retrieval import positions
from recsys.evaluate.nearest import found_at, mean_recall, recall_by_user
from recsys.evaluate.ranked import best_places, hit_by_list, ndcg_by_list
from recsys.study.latency import Point
from recsys.study.moments import Moment

Recall = Mapping[int, float]
"""k -> mean over users of the share of their positives among the first k."""
Retriever = Callable[[Moment], tuple[Tensor, Tensor]]
"""A moment -> candidates int64 [N], and rows of them for each of its users, best first, int64 [U, K]; -1: nothing."""
NORMAL = 1.96
"""Standard deviations on either side of a mean that hold 95 %."""


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What one way found, by cut-off k. A list is what one user got on a day with a positive."""

    recall: Recall
    """Mean over users of the share of their positives, of all days, among the top k of the day."""
    ndcg: Mapping[int, float]
    """Mean over lists of the normalised discounted cumulative gain."""
    hit_rate: Mapping[int, float]
    """Share of the lists whose top k hold a positive."""
    coverage: Mapping[int, float]
    """Share of a day's catalogue that was in anybody's top k; mean over days."""
    recall_of: Mapping[str, Recall]
    """Bucket of popularity -> recall of the positives whose item is in it, mean over users that have such; NaN: none
    has. See `recsys.study.segments.BUCKETS_DEFINITION`."""


@dataclass(frozen=True)
class Bucket:
    """Items of similar popularity."""

    items: int
    """Of the training rows."""
    positives: int
    """Of the test requests."""


@dataclass(frozen=True, kw_only=True)
class RetrievalResult:
    """What was found of the users' positives by row; `recsys.study.retrieval` says what the rows are."""

    rows: Mapping[str, Measures]
    """Row -> its figures, of the test days."""
    validation: Mapping[str, Measures]
    """The same of those users of the validation days that the choice was made by; empty without such days."""
    lead: Mapping[str, Mapping[int, tuple[float, float]]]
    """Other row -> k -> 95 % interval, over users, of the recall of `chosen` less that of the row."""
    by_day: Mapping[str, Mapping[str, Recall]]
    """ISO date -> row -> recall of the positives of that day alone; empty without event times."""
    users_by_day: Mapping[str, int]
    """ISO date -> users with a positive."""
    buckets: Mapping[str, Bucket]
    """Bucket of popularity -> what is in it."""
    hours: float
    """Chosen window of the prior; 0: everything."""
    weight: float
    """Chosen weight of the prior."""
    ials: str = ""
    """Chosen settings of iALS; empty: it was not run."""
    two_tower: tuple[float, float] | None = None
    """Window and weight chosen for the two-tower model; None: there is none."""
    latency: tuple[Point, ...] = field(default=(), compare=False)
    """What a request takes, another time every time, and finds of the exact answer, by way of searching."""
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
    lists: Tensor  # int64 [P], 0, 1, ...: the list, of its user at its moment, that it was wanted from
    moments: tuple[int, ...]
    """How many of them are of each moment, in order."""
    got: tuple[tuple[Tensor, Tensor], ...]
    """For each moment the ids of the items that anybody got, and the best place of each: int64 [n] both."""

    def recall(self, k: Sequence[int]) -> dict[int, float]:
        """k -> mean over users of the share of their positives, of all moments, that were among the first k then."""
        return mean_recall(self.users, self.places, k)

    def measure(
        self,
        k: Sequence[int],
        catalogues: Sequence[Tensor],  # int64 [N], of each moment: the items there were
        buckets: Mapping[str, Tensor],  # bool [P]: which of the positives are in it
    ) -> Measures:
        """All that a row has."""
        parts = {name: (self.users[here], self.places[here]) for name, here in buckets.items()}
        covered = [torch.isin(items, there) for (items, _), there in zip(self.got, catalogues, strict=True)]
        shares = {
            cut: [
                float((known & (places < cut)).sum()) / len(there)
                for known, (_, places), there in zip(covered, self.got, catalogues, strict=True)
            ]
            for cut in k
        }
        return Measures(
            recall=self.recall(k),
            ndcg={cut: float(ndcg_by_list(self.lists, self.places, cut).mean()) for cut in k},
            hit_rate={cut: float(hit_by_list(self.lists, self.places, cut).mean()) for cut in k},
            coverage={cut: sum(each) / len(each) for cut, each in shares.items()},
            recall_of={name: mean_recall(*part, k) for name, part in parts.items()},
        )

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
    users, places, lists, got, asked = [], [], [], [], 0
    for moment in requests:
        ids, rows = way(moment)
        places.append(found_at(rows, moment.rows, positions(ids, moment.items)))
        users.append(moment.users[moment.rows])
        lists.append(moment.rows + asked)
        best = best_places(rows, len(ids))
        held = best < rows.shape[1]
        got.append((ids[held], best[held]))
        asked += len(moment.users)
    numbered = torch.cat(users).unique(return_inverse=True)[1]
    return Found(numbered, torch.cat(places), torch.cat(lists), tuple(len(part) for part in users), tuple(got))


def _interval(leads: Tensor) -> tuple[float, float]:
    """Of the mean of float64 [U], by the normal distribution; NaN for a single user."""
    mean = float(leads.mean())
    half = NORMAL * float(leads.std()) / math.sqrt(len(leads)) if len(leads) > 1 else math.nan
    return mean - half, mean + half
