"""What retrieval from an upstream's vectors finds of the test days' positives, beside what simpler ways find.

Every day's requests are answered with what was known when the day began: the newest vectors that were visible then, and
a prior of the log's events strictly before it, as a store that publishes it daily would have had it. The weight of the
prior and its window are chosen on the validation days; so are the settings of iALS. Rows, of the same users:

popularity      everybody gets the most frequent positives of the training events
popularity_day  those of the last 24 hours; absent without event times
ials            matrix factorisation of the source's and the rankers' positives; who is new gets its most popular items;
                absent without the extra `study`
prior           the prior alone, of the chosen window
vectors         u.v alone; a user without a vector gets nothing
stored_prior    u.v / temperature + the prior that was published with the vectors
fresh_prior     u.v / temperature + the prior of the newest events, `refresh.prior.hours` of them
two_tower       the same of a two-tower model that reads those vectors, where the study has one; its own weight and
                window chosen
chosen          u.v / temperature + weight * the prior of the newest events, weight and window chosen
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embedding_store import EmbeddingStore
from recsys.config import DaysConfig, RankerSettings, StudyConfig, UpstreamConfig
from recsys.data.files import find_files
from recsys.data.quarantine import Quarantine
from recsys.data.scan import Part
from recsys.data.schema import Schema
from recsys.data.stream import EventStream
from recsys.dates import DAY_MS, HOUR_MS, iso_day, iso_hour, number_of
from recsys.downstream.retrieval import most_popular, pairs_of, positions
from recsys.evaluate.nearest import exact_top_k
from recsys.folders import store_of
from recsys.prior import Prior
from recsys.refresh.days import window
from recsys.screening import screen
from recsys.source import ranker_schema, upstream_schema
from recsys.study import als
from recsys.study.found import Bucket, Found, Measures, Recall, RetrievalResult, Retriever, find
from recsys.study.latency import Point, latencies
from recsys.study.moments import Log, Moment, moments
from recsys.study.segments import BUCKETS, assign_bucket
from recsys.study.visible import Visible
from recsys.upstream import screen_source

HOURS = (6.0, 24.0, 72.0, 168.0, 0.0)
"""Windows of the prior to choose from; 0: everything."""
WEIGHTS = (0.5, 0.75, 1.0, 1.5, 3.0, 16.0)
"""Weights of the prior to choose from; the greatest leaves next to nothing of the vectors."""
CHOOSING = 4_000
"""Requests of the validation days that the choice is made by, at most."""
_SCAN_ROWS = 65_536
"""Rows of ids, times and labels that are read at once."""


def collect_retrieval(
    config: StudyConfig, rankers: RankerSettings, data: Path, out: Path, skip: Quarantine
) -> RetrievalResult | None:
    """Measure retrieval on the rankers' test events.

    Args:
        config: of the study.
        rankers: whose train, validation and test events are the log.
        data: folder of the events.
        out: folder of the run, whose store is read.
        skip: rows that are left out, of those screened for the rankers.

    Returns:
        None if the study wants none, or no test positive comes after the vectors.

    Raises:
        VersionSkewError: user and item snapshots do not belong together.
        DataError: there is no prior in the store.
    """
    wanted = config.retrieval
    if wanted is None:
        return None
    logs, timed = _logs(config, rankers, data, out, skip)
    (upstream,) = (each for each in config.trainings() if each.name == wanted.upstream)
    store, delay, towers = EmbeddingStore(store_of(out)), rankers.publish_delay_ms, config.two_tower
    vectors = Visible(store, upstream.name, upstream.loss.temperature, delay, timed=timed)
    two_tower = None if towers is None else Visible(store, towers.name, towers.temperature, delay, timed=timed)
    source = _source(config, upstream, rankers, data, out) if als.is_installed() or wanted.leave_out_seen else None
    days = config.refresh.days

    def requests(split: str, before: Sequence[Log], most: int | None = None) -> _Requests:
        each = moments(
            logs[split],
            Log.join(before),
            timed=timed,
            since=vectors.since,
            origin=None if days is None else rankers.publish_delay_ms + window(days, days.first)[0],
            length=DAY_MS if days is None else days.hours * HOUR_MS,
            shown=source if wanted.leave_out_seen else None,
            most=most,
        )
        return _Requests(list(each), Log.join([*before, *([source] if source is not None else [])]))

    validation = requests("validation", [logs["train"]], CHOOSING)
    test = requests("test", [logs["train"], logs["validation"]])
    if not test.moments:
        return None
    study = _Study(vectors, two_tower, logs["train"], tuple(wanted.k), config.refresh.prior.hours, timed, days)
    return study.result(validation, test)


@dataclass(frozen=True)
class _Requests:
    """Those of one split."""

    moments: Sequence[Moment]
    learned: Log
    """What iALS learns from, to answer them."""


@dataclass(frozen=True)
class _Study:
    """All ways to retrieve, and what they find."""

    vectors: Visible
    two_tower: Visible | None
    training: Log
    k: tuple[int, ...]
    hours: float
    """Configured window of the prior."""
    timed: bool
    days: DaysConfig | None
    """That requests are counted by."""

    def result(self, validation: _Requests, test: _Requests) -> RetrievalResult:
        """Choose on the validation days, measure once on the test days."""
        _tell("choosing the prior's window and weight", validation)
        hours, weight = self._choose(validation.moments, self.vectors)
        towers = None if self.two_tower is None else self._choose(validation.moments, self.two_tower)
        _tell("choosing the settings of iALS", validation)
        settings = self._choose_als(validation)
        _tell("measuring every way", test)
        found = {
            split: {
                name: find(requests.moments, way) for name, way in self._ways(requests, hours, weight, settings, towers)
            }
            for split, requests in (("validation", validation), ("test", test))
            if requests.moments
        }
        chosen = found["test"]["chosen"]
        return RetrievalResult(
            rows=self._measures(test.moments, found["test"]),
            validation=self._measures(validation.moments, found.get("validation", {})),
            lead={row: chosen.lead_over(each, self.k) for row, each in found["test"].items() if row != "chosen"},
            **self._by_day(test.moments, found["test"]),
            buckets=self._buckets(test.moments),
            hours=hours,
            weight=weight,
            ials="" if settings is None else settings.text,
            two_tower=towers,
            latency=self._latency(test.moments[-1], hours, weight),
            **self._facts(test.moments, hours, weight),
        )

    def _choose(self, requests: Sequence[Moment], vectors: Visible) -> tuple[float, float]:
        """Window and weight of the greatest recall, the mean over the cut-offs; what is configured, and 1, without
        validation requests."""
        if not requests:
            return self.hours, 1.0
        grid = product(HOURS if self.timed else (0.0,), WEIGHTS)

        def recall(each: tuple[float, float]) -> float:
            return _mean(find(requests, self._scored(each[0], each[1], vectors)).recall(self.k))

        return max(grid, key=recall)

    def _choose_als(self, requests: _Requests) -> als.Settings | None:
        if not als.is_installed():
            return None
        if not requests.moments:
            return als.GRID[0]

        def recall(settings: als.Settings) -> float:
            return _mean(find(requests.moments, self._factorised(requests.learned, settings)).recall(self.k))

        return max(als.GRID, key=recall)

    def _ways(
        self,
        requests: _Requests,
        hours: float,
        weight: float,
        settings: als.Settings | None,
        towers: tuple[float, float] | None,
    ) -> Iterator[tuple[str, Retriever]]:
        """Row -> how it retrieves, in the order of the report."""
        yield "popularity", self._listed(lambda _: _popular(self.training))
        if self.timed:
            yield "popularity_day", self._listed(lambda moment: _popular(moment.within(24)))
        if settings is not None:
            yield "ials", self._factorised(requests.learned, settings)
        yield "prior", self._scored_alone(hours, weight)
        yield "vectors", self._scored(hours, 0.0)
        yield "stored_prior", self._scored_by(self.vectors.stored_prior, 1.0)
        yield "fresh_prior", self._scored(self.hours, 1.0)
        if towers is not None:
            yield "two_tower", self._scored(*towers, self.two_tower)
        yield "chosen", self._scored(hours, weight)

    def _measures(self, requests: Sequence[Moment], found: Mapping[str, Found]) -> dict[str, Measures]:
        catalogues = [self.vectors.catalogue(moment) for moment in requests]
        places = self._bucket_of(requests)
        buckets = {name: places == number for number, name in enumerate(BUCKETS)}
        return {row: each.measure(self.k, catalogues, buckets) for row, each in found.items()}

    def _bucket_of(self, requests: Sequence[Moment]) -> Tensor:  # int8 [P]
        """The bucket of each positive, index into BUCKETS."""
        items = [np.empty(0, np.int64), *(moment.items.numpy() for moment in requests)]
        return torch.from_numpy(assign_bucket(self.training.items, np.concatenate(items)))

    def _buckets(self, requests: Sequence[Moment]) -> dict[str, Bucket]:
        items = np.bincount(assign_bucket(self.training.items, np.unique(self.training.items)), minlength=len(BUCKETS))
        positives = torch.bincount(self._bucket_of(requests), minlength=len(BUCKETS))
        return {name: Bucket(int(items[n]), int(positives[n])) for n, name in enumerate(BUCKETS)}

    def _by_day(self, requests: Sequence[Moment], found: Mapping[str, Found]) -> dict[str, Any]:
        """`by_day` and `users_by_day` of the result."""
        if not self.timed:
            return {"by_day": {}, "users_by_day": {}}
        days = [self._day(moment.time) for moment in requests]
        recalls = {row: each.by_moment(self.k) for row, each in found.items()}
        return {
            "by_day": {day: {row: each[at] for row, each in recalls.items()} for at, day in enumerate(days)},
            "users_by_day": {day: len(moment.users) for day, moment in zip(days, requests, strict=True)},
        }

    def _day(self, time: int) -> str:
        """ISO date of a time in ms, with its hour where days are shorter."""
        offset, hours = (0.0, 24) if self.days is None else (self.days.utc_offset_hours, self.days.hours)
        return iso_day(number_of(time, offset)) if hours >= 24 else iso_hour(time, offset)

    def _scored(self, hours: float, weight: float, vectors: Visible | None = None) -> Retriever:
        """By the vectors and the newest prior; as long as there are none by the prior."""
        vectors = vectors or self.vectors
        scored, alone = self._scored_by(lambda moment: _prior(moment, hours), weight, vectors), self._scored_alone
        return lambda moment: (scored if vectors.visible(moment) else alone(hours, weight or 1.0))(moment)

    def _scored_by(self, prior: Callable[[Moment], Prior], weight: float, vectors: Visible | None = None) -> Retriever:
        def retrieve(moment: Moment) -> tuple[Tensor, Tensor]:
            index = (vectors or self.vectors).index(moment, prior(moment), weight)
            queries, found = index.queries(moment.users)
            rows = index.search(queries, max(self.k), moment.without)
            if not weight:  # all items have a score of 0
                rows[~found] = -1
            return index.ids, rows

        return retrieve

    def _scored_alone(self, hours: float, weight: float) -> Retriever:
        """As a user without a vector is served, for everybody."""

        def retrieve(moment: Moment) -> tuple[Tensor, Tensor]:
            index = self.vectors.index(moment, _prior(moment, hours), weight)
            nobody = torch.zeros(len(moment.users), index.vectors.shape[1])
            nobody[:, -1] = 1
            if moment.without is None:
                return index.ids, index.search(nobody[:1], max(self.k)).expand(len(nobody), -1)
            return index.ids, index.search(nobody, max(self.k), moment.without)

        return retrieve

    def _listed(self, order: Callable[[Moment], Tensor]) -> Retriever:
        """The same list for everybody, less what one must not get."""

        def retrieve(moment: Moment) -> tuple[Tensor, Tensor]:
            ids = order(moment)
            ids = ids[~torch.isin(ids, self.vectors.withdrawn(moment))]
            if moment.without is None:
                return ids, torch.arange(min(max(self.k), len(ids))).expand(len(moment.users), -1)
            scores = -torch.arange(len(ids), dtype=torch.float32)[:, None]
            everybody = torch.ones(len(moment.users), 1)
            return ids, exact_top_k(everybody, scores, max(self.k), without=pairs_of(ids, moment.without))

        return retrieve

    def _factorised(self, log: Log, settings: als.Settings) -> Retriever:
        factors = als.factorise(log, settings)

        def retrieve(moment: Moment) -> tuple[Tensor, Tensor]:
            stays = ~torch.isin(factors.item_ids, self.vectors.withdrawn(moment))
            ids, (users, items) = factors.item_ids[stays], factors.index(moment.users)
            return ids, exact_top_k(users, items[stays], max(self.k), without=pairs_of(ids, moment.without))

        return retrieve

    def _latency(self, moment: Moment, hours: float, weight: float) -> tuple[Point, ...]:
        return latencies(self.vectors.index(moment, _prior(moment, hours), weight), moment.users, max(self.k))

    def _facts(self, requests: Sequence[Moment], hours: float, weight: float) -> dict[str, Any]:
        """What there was to retrieve from."""
        no_vector: list[Tensor] = []
        unknown: list[Tensor] = []
        for moment in requests:
            index = self.vectors.index(moment, _prior(moment, hours), weight)
            place = positions(index.ids, moment.items)
            has_vector = torch.cat([index.has_vector, torch.tensor([False])])
            no_vector.append(torch.stack([~has_vector[place], place < 0]))  # of no candidate it is the last one
            unknown.append(~index.queries(moment.users)[1])
        users, _ = self.vectors.snapshots(requests[-1])
        shares = torch.cat(no_vector, dim=1).double().mean(dim=1)
        return {
            "days": len(requests),
            "users": len(torch.cat([moment.users for moment in requests]).unique()),
            "users_without_vector": float(torch.cat(unknown).double().mean()),
            "items": len(index.ids),
            "positives_without_vector": float(shares[0]),
            "positives_not_retrievable": float(shares[1]),
            "space": users.space,
            "version": users.version,
            "as_of": users.as_of,
        }


def _tell(what: str, requests: _Requests) -> None:
    """Minutes, where there are many items."""
    count = sum(len(moment.users) for moment in requests.moments)
    if count:
        print(f"retrieval: {what}, {count:,} requests", flush=True)


def _mean(recall: Recall) -> float:
    return sum(recall.values()) / len(recall)


def _prior(moment: Moment, hours: float) -> Prior:
    known = moment.within(hours)
    return Prior.count(known.items, known.positive)


def _popular(log: Log) -> Tensor:
    """Ids of the items with an event, those with the most positives first."""
    ids, rows = np.unique(log.items, return_inverse=True)
    return torch.from_numpy(most_popular(ids, np.bincount(rows[log.positive], minlength=len(ids)), len(ids)))


def _logs(
    config: StudyConfig, rankers: RankerSettings, data: Path, out: Path, skip: Quarantine
) -> tuple[dict[str, Log], bool]:
    """Split -> its events with the label that is to be found, and whether they have times."""
    assert config.retrieval is not None
    label = config.retrieval.label or next(iter(rankers.tasks.values()))
    schema = ranker_schema(rankers, data, (label,)).select(features=())
    splits = {name: find_files(data, getattr(rankers, name)) for name in ("train", "validation", "test")}
    if label not in rankers.tasks.values():  # else it was screened with the rankers' rows
        parts = [Part(files=files, schema=schema) for files in splits.values()]
        skip = screen(out, "retrieval", parts, data).quarantine
    return {name: _read(files, schema, skip) for name, files in splits.items()}, schema.timed


def _source(config: StudyConfig, upstream: UpstreamConfig, rankers: RankerSettings, data: Path, out: Path) -> Log:
    """What the upstream learned from, with the label that is to be found, or else the one that it contrasts."""
    assert config.retrieval is not None
    schema = upstream_schema(upstream, data)
    names = [label.name for label in schema.labels]
    wanted = config.retrieval.label or next(iter(rankers.tasks.values()))
    label = wanted if wanted in names else upstream.loss.contrastive_label or names[0]
    skip = screen_source(upstream, schema, data, out, None).quarantine
    return _read(find_files(data, upstream.source.events), schema.select(features=(), labels=(label,)), skip)


def _read(files: Sequence[Path], schema: Schema, skip: Quarantine) -> Log:
    return Log.read(EventStream(files, schema, batch_size=_SCAN_ROWS, drop_last=False, skip=skip))
