"""What it costs when users and items are read of different versions, and when both are old.

The inner product of a user's and an item's vector is scored against the day's label. Three things are asked of it:

- skew: users of version X against items of X, X-1, X-2 and the other way round (arXiv 2509.04337: skew cost
  Pinterest the online gain of offline wins);
- ageing: both sides a number of days old, that is the cost of publishing nothing;
- whether it ranks the day's events better than chance at all.

Version X has learned from these very events, the ones before it have not. So age 0 flatters itself: a loss against it
is an upper bound, and age 1 is what the day's traffic really read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from embedding_store import Snapshot, Table
from recsys.dates import DAY_MS
from recsys.evaluate.bootstrap import Interval, paired_bootstrap, resample
from recsys.evaluate.metrics import roc_auc
from recsys.evaluate.nearest import exact_top_k, recall_at_k
from recsys.monitor.sample import draw, sample_ids
from recsys.monitor.traffic import Judged, Traffic
from recsys.monitor.worth import Worth

AGES = (0, 1, 2)
"""Versions behind the newest, of either side."""
DAYS = (0, 1, 2, 3, 5, 7, 14)
"""Ages of the ageing curve."""
USERS = 1_000
"""Users with a positive whose items are searched for."""
CANDIDATES = 20_000
"""Items they are searched among; the positives come on top."""
CUT_OFF = 10
"""k of recall."""
DRAWS = 200
"""Of the bootstrap."""

Grid = tuple[tuple[float | None, ...], ...]
"""[versions the users are behind][versions the items are behind]; None where there is no such pair."""


@dataclass(frozen=True, kw_only=True)
class Skew:
    """Every pair of user and item versions, all on the same events."""

    auc: Grid
    """ROC-AUC of the inner product for the day's label."""
    recall: Grid
    """Mean share of a user's positives of the day among the first `CUT_OFF` items."""
    events: int
    """That have a vector on both sides in every version."""
    positives: int
    users: int
    """Behind recall."""
    candidates: int
    loss: float | None
    """The greatest relative loss of ROC-AUC when one side, either one, is a version behind the other."""
    loss_ci95: tuple[float, float] | None
    """Its 95 % interval, by a paired bootstrap over users: how much other users would change it."""


@dataclass(frozen=True, kw_only=True)
class Age:
    """Both sides `days` old."""

    days: int
    auc: float | None
    """On the events that it has both vectors for."""
    current_auc: float | None
    """What the day's traffic really read, one day old, on the same events."""
    covered: float | None
    """Share of the labelled events that it has both vectors for."""


@dataclass(frozen=True, kw_only=True)
class PairQuality:
    """Users against items."""

    worth: Worth
    skew: Skew
    ageing: tuple[Age, ...]
    """One for each of `DAYS`."""


class Versions:
    """The versions of a pair that were to be read together, newest first, and their vectors of the judged events."""

    def __init__(self, users: Sequence[Snapshot], items: Sequence[Snapshot], events: Judged) -> None:
        by_time = {snapshot.as_of: snapshot for snapshot in items}
        pairs = [(snapshot, by_time[snapshot.as_of]) for snapshot in users if snapshot.as_of in by_time]
        place = {(snapshot.space, snapshot.dim) for pair in pairs[:1] for snapshot in pair}
        # vectors of two spaces must not be compared: what came before a cold retrain is no earlier version of this
        self.pairs = [pair for pair in pairs if len(place) == 1 and {(s.space, s.dim) for s in pair} == place]
        self._events = events
        self._tables: dict[tuple[int, int], Table] = {}
        self._vectors: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def behind(self, days: int) -> int | None:
        """The version that a reader would have got who is this many days late."""
        wanted = self.pairs[0][0].as_of - days * DAY_MS if self.pairs else 0
        return next((index for index, (users, _) in enumerate(self.pairs) if users.as_of <= wanted), None)

    def table(self, index: int, side: int) -> Table:
        """Users are side 0, items side 1."""
        if (index, side) not in self._tables:
            self._tables[index, side] = self.pairs[index][side].load()
        return self._tables[index, side]

    def vectors(self, index: int, side: int) -> tuple[Tensor, Tensor]:
        """Of the judged events: float32 [n, D], found bool [n]."""
        if (index, side) not in self._vectors:
            ids = (self._events.users, self._events.items)[side]
            self._vectors[index, side] = self.table(index, side).lookup(ids)
        return self._vectors[index, side]

    def found(self, index: int) -> np.ndarray:
        """Judged events that have both vectors, bool [n]."""
        return (self.vectors(index, 0)[1] & self.vectors(index, 1)[1]).numpy()

    def auc(self, users: int, items: int, rows: np.ndarray) -> float | None:
        """ROC-AUC of the inner product on `rows` (bool [n]) of the judged events; None for one class."""
        return _defined(roc_auc(self._events.labels[rows], self.scores(users, items, rows)))

    def scores(self, users: int, items: int, rows: np.ndarray) -> np.ndarray:
        """The inner products of `rows` (bool [n]) of the judged events: [rows]."""
        kept = torch.from_numpy(rows)
        return (self.vectors(users, 0)[0][kept] * self.vectors(items, 1)[0][kept]).sum(dim=1).numpy()


def measure_pair(
    users: Sequence[Snapshot], items: Sequence[Snapshot], traffic: Traffic, *, seed: int = 0
) -> PairQuality:
    """Score the day's events with the newest versions of a pair and with those before.

    Args:
        users: snapshots of the user series, newest first, one an as_of.
        items: of the item series; only those of equal as_of go together.
        traffic: of the day.
        seed: of the samples.
    """
    judged = traffic.judged
    versions = Versions(users, items, judged)
    return PairQuality(
        worth=_measure_worth(versions, judged, seed),
        skew=_measure_skew(versions, judged, traffic.choosers, traffic.chosen, seed),
        ageing=tuple(_measure_age(versions, days, len(judged.labels)) for days in DAYS),
    )


def _measure_worth(versions: Versions, judged: Judged, seed: int) -> Worth:
    (auc, bounds, rows), (read_auc, read_bounds, _) = (_ranked(versions, judged, age, seed) for age in (0, 1))
    positives = int((judged.labels[rows] == 1).sum())
    return Worth(
        auc=auc,
        auc_ci95=bounds,
        positives=positives,
        negatives=int(rows.sum()) - positives,
        read_auc=read_auc,
        read_auc_ci95=read_bounds,
    )


def _ranked(
    versions: Versions, judged: Judged, age: int, seed: int
) -> tuple[float | None, tuple[float, float] | None, np.ndarray]:
    """ROC-AUC of a version, its 95 % interval, and the judged events that it has both vectors of: bool [n]."""
    rows = versions.found(age) if age < len(versions.pairs) else np.zeros(len(judged.labels), bool)
    auc = versions.auc(age, age, rows) if rows.any() else None
    if auc is None:
        return None, None, rows
    labels, users, scores = judged.labels[rows], judged.users.numpy()[rows], versions.scores(age, age, rows)
    draws = resample(labels, users, scores, metrics=("auc",), samples=DRAWS, seed=seed)["auc"].draws
    draws = draws[np.isfinite(draws)]
    low, high = np.quantile(draws, (0.025, 0.975)) if len(draws) else (math.nan, math.nan)
    return auc, (float(low), float(high)) if len(draws) else None, rows


def _measure_skew(versions: Versions, judged: Judged, users: Tensor, items: Tensor, seed: int) -> Skew:
    """`users` and `items`: int64 [P], pairs of the day's positives."""
    ages = range(min(len(AGES), len(versions.pairs)))
    rows = np.logical_and.reduce([versions.found(age) for age in ages]) if ages else np.zeros(len(judged.labels), bool)
    auc = _grid({(u, i): versions.auc(u, i, rows) for u in ages for i in ages})
    recall, searched, candidates = _recall(versions, len(ages), users, items, seed)
    lost = _loss(versions, judged, rows, seed) if auc[0][0] is not None and len(ages) > 1 else None
    return Skew(
        auc=auc,
        recall=recall,
        events=int(rows.sum()),
        positives=int((judged.labels[rows] == 1).sum()),
        users=searched,
        candidates=candidates,
        loss=_defined(-lost.lift) if lost else None,
        loss_ci95=(-lost.high, -lost.low) if lost and math.isfinite(lost.low) else None,
    )


def _recall(versions: Versions, ages: int, users: Tensor, items: Tensor, seed: int) -> tuple[Grid, int, int]:
    """Recall of every pair of versions, the users it is the mean of, and the items they were searched among.

    Users and items are those that every version has.
    """
    if not ages:
        return _grid({}), 0, 0
    asked = _common(versions, ages, 0, users.unique())
    asked = asked[draw(len(asked), USERS, seed)]
    wanted = torch.isin(users, asked)
    pairs = torch.unique(torch.stack([users[wanted], items[wanted]]), dim=1)  # [2, P]
    sampled = sample_ids(versions.table(0, 1).ids(), CANDIDATES)
    candidates = _common(versions, ages, 1, torch.cat([sampled, pairs[1]]).unique())
    pairs = pairs[:, torch.isin(pairs[1], candidates)]
    asked, rows = torch.unique(pairs[0], return_inverse=True)
    if not len(asked):
        return _grid({}), 0, len(candidates)
    columns = torch.searchsorted(candidates, pairs[1])  # `unique` sorts
    cells = {}
    for u in range(ages):
        queries = versions.table(u, 0).lookup(asked)[0]
        for i in range(ages):
            retrieved = exact_top_k(queries, versions.table(i, 1).lookup(candidates)[0], CUT_OFF)
            cells[u, i] = _defined(recall_at_k(retrieved, rows, columns, (CUT_OFF,))[CUT_OFF])
    return _grid(cells), len(asked), len(candidates)


def _measure_age(versions: Versions, days: int, events: int) -> Age:
    index, current = versions.behind(days), versions.behind(1)
    if index is None or not events:
        return Age(days=days, auc=None, current_auc=None, covered=None)
    rows = versions.found(index)
    covered = float(rows.mean())
    if current is None:
        return Age(days=days, auc=versions.auc(index, index, rows), current_auc=None, covered=covered)
    rows &= versions.found(current)
    return Age(
        days=days,
        auc=versions.auc(index, index, rows),
        current_auc=versions.auc(current, current, rows),
        covered=covered,
    )


def _common(versions: Versions, ages: int, side: int, ids: Tensor) -> Tensor:
    """Those of the ids (int64 [n], distinct) that every version has."""
    for age in range(ages):
        ids = ids[versions.table(age, side).lookup(ids)[1]]
    return ids


def _loss(versions: Versions, judged: Judged, rows: np.ndarray, seed: int) -> Interval:
    """The lift of the worse of the two pairs that are one version apart, over the newest pair."""
    labels, users = judged.labels[rows], judged.users.numpy()[rows]
    together, *apart = (versions.scores(u, i, rows) for u, i in ((0, 0), (0, 1), (1, 0)))
    compared = (paired_bootstrap(labels, users, together, each, samples=DRAWS, seed=seed) for each in apart)
    return min(compared, key=lambda found: found.lift)


def _grid(cells: dict[tuple[int, int], float | None]) -> Grid:
    return tuple(tuple(cells.get((u, i)) for i in AGES) for u in AGES)


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None
