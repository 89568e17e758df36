"""What a publish is worth before anybody reads it: coverage, staleness, norms, drift, and the pair's skew and ageing.

`measure` is called after the snapshots are committed and before a tag moves to them. Its cost does not grow with the
series, but for two passes: all ids are listed to draw from, and the day's ids are counted. Whatever else is measured
comes of samples of fixed size. An entity is drawn by a hash of its id, so that the same ones are followed day by day
for as long as they live; events and queries are drawn by a seeded generator.

What does not exist yet (a drift before the second snapshot, say) is None, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from embedding_store import EmbeddingStore, Series, Snapshot, Table, VersionNotFoundError
from recsys.config import CROSS
from recsys.evaluate.nearest import exact_top_k
from recsys.monitor.sample import draw, lookup_found, quantiles, sample_ids
from recsys.monitor.skew import PairQuality, measure_pair
from recsys.monitor.traffic import Seen, Traffic

SAMPLE = 100_000
"""Entities whose vectors are read for norms, dimensions, staleness and cosines."""
QUERIES = 1_000
"""Entities whose neighbours are searched for."""
CANDIDATES = 20_000
"""Entities they are searched among, the queries included."""
NEIGHBOURS = 10


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How much of the day's traffic could read a vector: whether the previous snapshot had its entities."""

    entities: int
    """Distinct ones of the day."""
    events: int
    by_entity: float | None
    """Share of them; None without a previous snapshot."""
    by_event: float | None


@dataclass(frozen=True, kw_only=True)
class Staleness:
    """Days since the stored entities were last active."""

    quantiles: Mapping[str, float] | None
    mean: float
    active_today: float
    """Share of 0 days."""
    active_days: Mapping[str, float] | None
    """Quantiles of the number of days on which an entity was active so far: how often its vector was blended."""


@dataclass(frozen=True, kw_only=True)
class Dimensions:
    """Statistics of each of the D dimensions over entities."""

    mean: Sequence[float]
    std: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How far the vectors moved since the previous snapshot of the same space."""

    version: int
    """Of the previous snapshot."""
    shared: int
    """Sampled entities that both have."""
    cosine: Mapping[str, float] | None
    """Quantiles of the cosine between their two vectors."""
    day_shared: int
    """Sampled entities of the day's events that both have."""
    day_cosine: Mapping[str, float] | None
    """The same of these alone: absent entities keep their vectors, and their cosines of 1 would hide a jump."""
    neighbour_overlap: float | None
    """Mean share of an entity's `NEIGHBOURS` nearest by cosine that are the same in both snapshots."""


@dataclass(frozen=True, kw_only=True)
class SeriesQuality:
    """One series' part of a publish."""

    version: int
    as_of: int
    space: str
    rows: int
    dim: int
    coverage: Coverage | None
    """None for the study's variants, whose entities are those of the plain series; so with staleness."""
    staleness: Staleness | None
    norms: Mapping[str, float] | None
    """Quantiles of the vectors' lengths; None without rows."""
    dimensions: Dimensions | None
    drift: Drift | None
    """None without a previous snapshot in the same space."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Everything measured at one publish."""

    events: int
    """Of the day."""
    series: Mapping[str, SeriesQuality]
    pair: PairQuality | None
    """Users against items; None if one of the two was not published."""
    tagged: Quality | None = None
    """The same of the pair, held against the snapshots that the tag points to, where these are not the previous ones:
    what the tag's readers would notice. None: they are."""

    def as_dict(self) -> dict[str, Any]:
        """Nested dicts and lists of plain values, ready for `json.dumps`."""
        return asdict(self)


def measure(
    store: EmbeddingStore,
    upstream: str,
    versions: Mapping[str, int],
    traffic: Traffic,
    *,
    served: Mapping[str, int | None] | None = None,
    seed: int = 0,
) -> Quality:
    """Measure what one publish of `upstream` put into the store.

    Args:
        store: where the series lie.
        upstream: whose; `user_<upstream>` and `item_<upstream>` are the pair that is read together.
        versions: series -> the version that was published. Series besides the pair and the cross representations (a
            study's variants) are measured in norms and drift alone.
        traffic: the day's.
        served: series that readers follow -> the version that the tag points to; None: nowhere.
        seed: of the samples.

    Returns:
        The previous snapshot is always the newest of an earlier `as_of`: a correction is held against the day before.
    """
    histories = {name: lineage(store.series(name), version) for name, version in versions.items()}
    read = _read(upstream)
    seen = {
        name: [history[0], *(s for s in history[1:] if s.version <= tag)]
        for name, history in histories.items()
        if name in read and (tag := (served or {}).get(name)) is not None
    }
    others = any(_previous(seen[name]) != _previous(histories[name]) for name in seen)
    return Quality(
        **_measured(store, upstream, histories, traffic, seed),
        tagged=Quality(**_measured(store, upstream, seen, traffic, seed)) if others else None,
    )


def _measured(
    store: EmbeddingStore, upstream: str, histories: Mapping[str, list[Snapshot]], traffic: Traffic, seed: int
) -> dict[str, Any]:
    """The fields of a Quality, by these histories."""
    read = _read(upstream)
    pair = read[:2]
    measured = {
        name: measure_series(
            history,
            traffic.users if name.startswith("user_") else traffic.items,
            activity=_activity(store, history[0]) if name in read else None,
            read=name in read,
            seed=seed,
        )
        for name, history in histories.items()
    }
    together = None
    if all(name in histories for name in pair):
        users, items = (histories[name] for name in pair)
        together = measure_pair(users, items, traffic, seed=seed)
    return {"events": traffic.events, "series": measured, "pair": together}


def _read(upstream: str) -> tuple[str, ...]:
    """The series that readers follow: the pair, and the cross representations."""
    return tuple(f"{owner}_{upstream}{which}" for which in ("", CROSS) for owner in ("user", "item"))


def lineage(series: Series, version: int) -> list[Snapshot]:
    """The snapshot of this version and what was to be read before it: of each earlier as_of the last version.

    Newest first; versions that were corrected or refused are left out.
    """
    newest = series.version(version)
    by_time = {snapshot.as_of: snapshot for snapshot in series.history(refused=False) if snapshot.version < version}
    earlier = [snapshot for as_of, snapshot in by_time.items() if as_of < newest.as_of]
    return [newest, *sorted(earlier, key=lambda snapshot: snapshot.as_of, reverse=True)]


def _previous(history: Sequence[Snapshot]) -> int | None:
    return history[1].version if len(history) > 1 else None


def measure_series(
    history: Sequence[Snapshot], of_day: Seen, *, activity: Snapshot | None, read: bool = True, seed: int = 0
) -> SeriesQuality:
    """Measure one snapshot against the one before.

    Args:
        history: newest first, see `lineage`.
        of_day: the day's entities of the series.
        activity: the snapshot of the companion series that goes with the newest one; None: staleness is not known.
        read: whether readers follow the series, so that coverage is wanted.
        seed: of the sample of queries.
    """
    new, previous = history[0], history[1] if len(history) > 1 else None
    table, before = new.load(), None if previous is None else previous.load()
    sampled, today = sample_ids(table.ids(), SAMPLE), sample_ids(of_day.ids, SAMPLE)
    vectors = table.lookup(sampled)[0]
    drift = None
    if previous is not None and before is not None and (previous.space, previous.dim) == (new.space, new.dim):
        drift = measure_drift(table, before, vectors, sampled, today, seed)
    return SeriesQuality(
        version=new.version,
        as_of=new.as_of,
        space=new.space,
        rows=new.rows,
        dim=new.dim,
        coverage=_coverage(of_day.ids, of_day.events, before) if read else None,
        staleness=measure_staleness(activity.load(), sampled, today) if activity is not None else None,
        norms=quantiles(vectors.norm(dim=1)),
        dimensions=_dimensions(vectors),
        drift=drift,
    )


def measure_staleness(activity: Table, ids: Tensor, ids_of_day: Tensor) -> Staleness | None:
    """Days since each of `ids` was last active; None if the table has none of them.

    Args:
        activity: rows of (day number of the last activity, count of days, count of events).
        ids: int64 [n]
        ids_of_day: int64 [m]; who was active today says which day number today has.
    """
    (rows, found), (of_day, known) = activity.lookup(ids), activity.lookup(ids_of_day)
    last = rows[found, 0]
    if not len(last):
        return None
    days = torch.cat([last, of_day[known, 0]]).max() - last
    return Staleness(
        quantiles=quantiles(days),
        mean=float(days.double().mean()),
        active_today=float((days == 0).double().mean()),
        active_days=quantiles(rows[found, 1]),
    )


def measure_drift(
    new: Table,
    previous: Table,
    vectors: Tensor,  # float32 [n, D], `new`'s of `sampled`
    sampled: Tensor,  # int64 [n]
    day: Tensor,  # int64 [m], distinct
    seed: int,
) -> Drift:
    """Compare the vectors that two tables of one space have of the same entities."""
    old, found = previous.lookup(sampled)
    vectors, old = vectors[found], old[found]
    (today, in_new), (before, in_old) = new.lookup(day), previous.lookup(day)
    both = in_new & in_old
    return Drift(
        version=previous.manifest.version,
        shared=len(old),
        cosine=_cosines(vectors, old),
        day_shared=int(both.sum()),
        day_cosine=_cosines(today[both], before[both]),
        neighbour_overlap=neighbour_overlap(vectors, old, seed=seed),
    )


def neighbour_overlap(
    new: Tensor,  # float [n, D]
    old: Tensor,  # float [n, D], the same entities
    *,
    k: int = NEIGHBOURS,
    seed: int = 0,
) -> float | None:
    """Mean share of each entity's k nearest by cosine that are the same in both; None for fewer than two entities.

    At most `QUERIES` entities are asked for, among the first `CANDIDATES`; the search is exact. An entity is not its
    own neighbour.
    """
    new, old = F.normalize(new[:CANDIDATES], dim=1), F.normalize(old[:CANDIDATES], dim=1)
    k = min(k, len(new) - 1)
    if k < 1:
        return None
    queries = draw(len(new), QUERIES, seed)
    found = [_nearest(vectors, queries, k) for vectors in (new, old)]
    same = (found[0][:, :, None] == found[1][:, None, :]).any(dim=2)
    return float(same.double().mean())


def _coverage(day: Tensor, counts: Tensor, previous: Table | None) -> Coverage:
    entities, events = len(day), int(counts.sum())
    if previous is None or not entities:
        return Coverage(entities=entities, events=events, by_entity=None, by_event=None)
    found = lookup_found(previous, day)
    return Coverage(
        entities=entities,
        events=events,
        by_entity=float(found.double().mean()),
        by_event=int(counts[found].sum()) / events,
    )


def _cosines(new: Tensor, old: Tensor) -> dict[str, float] | None:
    return quantiles(F.cosine_similarity(new, old, dim=1).clamp(-1, 1))  # rounding goes beyond 1


def _dimensions(vectors: Tensor) -> Dimensions | None:
    if not len(vectors):
        return None
    wide = vectors.double()
    return Dimensions(mean=wide.mean(dim=0).tolist(), std=wide.std(dim=0, unbiased=False).tolist())


def _nearest(vectors: Tensor, queries: Tensor, k: int) -> Tensor:
    """Rows of the k nearest of each query, without itself: int64 [Q, k]. Vectors are of unit length."""
    found = exact_top_k(vectors[queries], vectors, k + 1)
    itself = found == queries[:, None]
    itself[:, -1] |= ~itself.any(dim=1)  # among many equal vectors it need not be one of the first
    return found[~itself].view(len(queries), k)


def _activity(store: EmbeddingStore, snapshot: Snapshot) -> Snapshot | None:
    try:
        return store.series(f"{snapshot.series}.activity").as_of(snapshot.as_of)
    except (KeyError, VersionNotFoundError):
        return None
