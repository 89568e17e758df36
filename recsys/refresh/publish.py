"""Publish an upstream's vectors: user and item series together, whole or not at all, tagged when they pass; and with
them, where the config wants it, those of cross representations.

What is to be published (`Publication`) is decided and written down before the first commit. So a crash between two
commits is mended by the next call: it finds the same decision, and which series still lack their version.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from embedding_store import EmbeddingStore, Series, TagMovedError
from recsys.atomic import write_json
from recsys.config import STUDIED, RefreshConfig, RefreshSettings
from recsys.folders import store_of
from recsys.models.graph import GraphModel
from recsys.refresh.aggregate import DECAY, Aggregation
from recsys.refresh.aggregator import Aggregator, DayWriter, activity_series, newest_before
from recsys.refresh.arms import arm_of, cross_series, series_of
from recsys.refresh.content import Content, Part, Timer, cross_parts, tower_parts
from recsys.refresh.prior import prior_series, publish_prior, withdraw
from recsys.refresh.relations import publish_relations, relation_series
from recsys.train.distributed import Environment, barrier, broadcast
from recsys.train.heartbeat import beat
from recsys.train.watch import Pulse


def space_name(upstream: str, generation: int = 1) -> str:
    """The vector space of an upstream's first training run; each retraining from scratch opens the next."""
    return f"{upstream}-{generation}"


def cross_space(space: str) -> str:
    """The space of the cross representations that are published with vectors of a space: of users and items alike, and
    the vectors' own in nothing."""
    return f"{space}-cross"


def aggregations(refresh: RefreshSettings, *, study: bool) -> dict[str, Aggregation]:
    """Arm -> what it does; the upstream's own first, the others of the table only for a `study`."""
    own = {arm_of(refresh): (refresh.aggregation, refresh.weight)}
    return {
        arm: Aggregation(
            method=method,
            weight=weight,
            time_to_live_days=refresh.time_to_live_days,
            renormalise=refresh.renormalise,
            delta_below=refresh.delta_below,
        )
        for arm, (method, weight) in (own | (STUDIED if study else {})).items()
    }


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What is about to be published."""

    key: Mapping[str, Any]
    """What it is of: another key is another publication."""
    as_of: int
    """Event time of the snapshots, ms."""
    space: str
    """Their space; that of cross representations is `cross_space` of it."""
    versions: dict[str, int]
    """Series -> the version it will have; equal for the user and the item series of an arm."""
    tags: dict[str, int | None]
    """Series that readers follow -> where the tag stood; None: nowhere."""
    done: bool = False
    """Whether the tag has been moved, for a publication that no record tells of."""


class Publisher:
    """The series of one upstream in a store, by default the run's; the same on every rank: all write vectors, rank 0
    alone commits, moves tags and expires.

    A collective, like its methods.

    Raises:
        StoreError: a series exists with another dim or dtype, or the store cannot be read.
    """

    def __init__(
        self, out: Path, config: RefreshConfig, environment: Environment, store: EmbeddingStore | None = None
    ) -> None:
        self._store = store or EmbeddingStore(store_of(out))
        self._environment = environment
        self._config = config
        self._ways = aggregations(config, study=config.study)
        self._pairs = {arm: series_of(arm, config.upstream.name, config) for arm in self._ways}
        self.plain = series_of(next(iter(self._ways)), config.upstream.name, config)
        """The series of the upstream's own way: user and item."""
        self._cross: tuple[str, ...] = ()
        if config.cross:
            self._cross = self._pairs[DECAY] = cross_series(config.upstream.name)
            self._ways[DECAY] = Aggregation(
                method=DECAY,
                weight=config.cross_decay,
                time_to_live_days=config.time_to_live_days,
                delta_below=config.delta_below,
            )
        self.expired: dict[str, int] = {}
        """Series -> entities that left it when it was last written; on rank 0."""
        if environment.is_main:
            for name in (name for pair in self._pairs.values() for name in pair):
                upstream = config.upstream
                dim = upstream.model.cross_dim if name in self._cross else upstream.network.vector_dim
                self._store.create(name, dim=dim, dtype=config.dtype, exist_ok=True)
                activity_series(self._store, name)
            prior_series(self._store, config.upstream.name)
        barrier()
        self._series = {name: self._store.series(name) for pair in self._pairs.values() for name in pair}
        self._activity = {name: activity_series(self._store, name) for name in self._series}
        self._prior = prior_series(self._store, config.upstream.name)

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that commits."""
        return self._environment.is_main

    @property
    def store(self) -> EmbeddingStore:
        """The store."""
        return self._store

    def decide(self, path: Path, key: Mapping[str, Any], as_of: int, space: str) -> Publication:
        """The publication of this key: the one written to `path` before, or a new one, which is written there.

        One of other series, by another config, is none of this key.
        """
        found = None
        if self._environment.is_main:
            found = Publication(**json.loads(path.read_text())) if path.is_file() else None
            same = found is not None and (found.key, found.as_of, found.space) == (key, as_of, space)
            if found is None or not same or found.versions.keys() != self._series.keys():
                free = {name: series.next_version for name, series in self._series.items()}
                versions = {name: max(free[n] for n in pair) for pair in self._pairs.values() for name in pair}
                found = Publication(key=key, as_of=as_of, space=space, versions=versions, tags=self._tags())
                write_json(path, asdict(found))
        return broadcast(found, self._environment)

    def publish(self, publication: Publication, content: Content, timer: Timer) -> bool:
        """Write every series that lacks its version, and tell whether one did. The others are left as they are.

        The vectors of users and items are complete before either is committed; the items' prior is there before them.
        Rank 0's time goes to `embed`, `cross`, `aggregate` and `store`.

        Raises:
            DataError: a row that cannot be read, naming file and row; nothing is published.
            StoreError: the store refuses a snapshot.
        """
        with Pulse("a publication", self._environment):
            rounds = self._owed(publication)
            for names in rounds:
                self._write(names, publication, content, timer)
            barrier()  # no rank reads on before rank 0 has committed
        return bool(rounds)

    def move_tags(self, publication: Publication, path: Path) -> None:
        """Point the tag that readers follow to what was published, if it still stands where the publication found it.

        Raises:
            TagMovedError: it does not; the next call takes it as it then is.
        """
        if not self._environment.is_main:
            return
        tag = self._config.tag
        for name in self._tagged:
            series, version = self._series[name], publication.versions[name]
            if series.tags().get(tag) == version:
                continue  # before a crash
            try:
                series.tag(tag, version, expected=publication.tags[name])
            except TagMovedError as error:
                write_json(path, asdict(publication) | {"tags": self._tags()})
                raise TagMovedError(
                    f"{error}. Version {version} of {name!r} is published and stays untagged; give the same command "
                    "again to tag it nevertheless"
                ) from error

    def followed(self, publication: Publication) -> bool:
        """Whether the tag stood on the newest versions before the publication that were not refused, on rank 0."""
        newest = {name: newest_before(self._series[name], publication.as_of - 1) for name in self._tagged}
        return publication.tags == {name: None if x is None else x.version for name, x in newest.items()}

    def refuse(self, publication: Publication, reasons: Sequence[str]) -> None:
        """Mark what was published as refused, on rank 0: nobody reads it as of a time, no later day builds on it."""
        for name, version in publication.versions.items():
            activity = self._activity[name].latest()  # published with the vectors, and before them
            if activity.as_of == publication.as_of:
                self._activity[name].refuse(activity.version, reasons)
            self._series[name].refuse(version, reasons)

    def note_done(self, publication: Publication, path: Path) -> None:
        """Note that the tags were moved: from now on they are free to be moved by others."""
        if self._environment.is_main:
            write_json(path, asdict(replace(publication, done=True)))

    def expire(self, before: int) -> None:
        """Let the versions go that the config's retention allows, on rank 0, and delete what is not needed any more.

        Their activity, the items' priors and a graph's relations go with them: none that a version which stays is
        read with.

        Args:
            before: the newest version before this time, ms, stays: a correction of the newest day goes on from it.
        """
        keep = self._config.retention
        if keep.keeps_all or not self._environment.is_main:
            return
        older_than = None if keep.keep_days is None else timedelta(days=keep.keep_days)
        for name, series in self._series.items():
            least = _count_since(series, before - 1)
            series.expire(keep_last=max(keep.keep_last or 1, least), older_than=older_than, dry_run=False)
            activity = self._activity[name]
            activity.expire(keep_last=_count_since(activity, series.history()[0].as_of), dry_run=False)
            series.clean()
            activity.clean()
        oldest = min(series.history()[0].as_of for series in self._series.values())
        for beside in (self._prior, *([self._relations()] if self._config.upstream.kind == "graph" else [])):
            if beside.versions():
                beside.expire(keep_last=_count_since(beside, oldest), dry_run=False)
                beside.clean()

    def whole(self, publication: Publication) -> dict[str, bool]:
        """Series -> whether its snapshot was written whole, not as a delta."""
        versions = publication.versions.items()
        return {name: self._series[name].version(version).manifest.base is None for name, version in versions}

    @property
    def _tagged(self) -> tuple[str, ...]:
        """The series that readers follow."""
        return (*self.plain, *self._cross)

    def _tags(self) -> dict[str, int | None]:
        return {name: self._series[name].tags().get(self._config.tag) for name in self._tagged}

    def _owed(self, publication: Publication) -> list[tuple[str, ...]]:
        """Round by round, the series to write; decided by rank 0 for all."""
        rounds = []
        if self._environment.is_main:
            newest = {name: self._series[name].next_version - 1 for name in publication.versions}
            rounds = owed(newest, publication.versions)
        return broadcast(rounds, self._environment)

    def _write(self, names: tuple[str, ...], publication: Publication, content: Content, timer: Timer) -> None:
        """Embed once, aggregate in each series' way, and commit all of them at the end, on rank 0."""
        main = self._environment.is_main
        opened: dict[str, DayWriter] = {}
        with ExitStack() as writers:  # commits at its end, or nothing if anything raises before
            for part in self._parts(names, content, timer):
                aggregators = {name: self._aggregator(name, part.owner, publication, content) for name in part.names}
                mine = {name: writers.enter_context(a.writer(part.size)) for name, a in aggregators.items()}
                self._append(part, aggregators, mine, content, timer)
                opened |= mine
            with timer("store"):
                for writer in opened.values():
                    writer.finish()
                if main:
                    self._publish_prior(content, publication.as_of)
                    if isinstance(content.model, GraphModel):
                        publish_relations(self._relations(), content.model, publication.as_of, publication.space)
                writers.close()
        if main:
            self.expired |= {name: writer.expired for name, writer in opened.items()}

    def _relations(self) -> Series:
        """Of a graph: what its relations make of vectors."""
        upstream = self._config.upstream
        return relation_series(self._store, upstream.name, upstream.graph.relation_width)

    def _publish_prior(self, content: Content, as_of: int) -> None:
        """The items' prior; and who is withdrawn, also where a later prior was published in between."""
        withdrawn = content.withdrawn.get("item", torch.empty(0, dtype=torch.int64))
        if content.prior is not None:
            publish_prior(self._prior, content.prior.without(withdrawn), as_of)
        if content.schema.withdrawn:
            withdraw(self._prior, withdrawn)

    def _parts(self, names: Sequence[str], content: Content, timer: Timer) -> Iterator[Part]:
        """What goes into these series."""
        cross, environment = [name for name in names if name in self._cross], self._environment
        yield from tower_parts(content, [name for name in names if name not in cross], environment)
        yield from cross_parts(content, cross, self._config.cross_decay, environment, timer)

    def _aggregator(self, name: str, owner: str, publication: Publication, content: Content) -> Aggregator:
        """What goes on with a series. No rotation takes cross representations from one space to another: a new one
        begins with all events that there are."""
        cross, space = name in self._cross, publication.space
        anew = cross and content.cross is not None and content.cross.fresh
        ways = {name: self._ways[arm] for arm, pair in self._pairs.items() for name in pair}
        return Aggregator(
            self._series[name],
            self._activity[name],
            ways[name],
            day=content.day,
            as_of=publication.as_of,
            space=cross_space(space) if cross else space,
            rotation=None if cross else content.rotation,
            fresh=content.fresh or anew,
            after_refused=content.after_refused,
            before=content.before,
            withdrawn=content.withdrawn.get(owner),
            environment=self._environment,
        )

    def _append(
        self,
        part: Part,
        aggregators: Mapping[str, Aggregator],
        writers: Mapping[str, DayWriter],
        content: Content,
        timer: Timer,
    ) -> None:
        """One owner's vectors: each rank computes, aggregates and writes its share."""
        while True:
            with timer(part.stage):
                some = next(part.batches, None)
            if some is None:
                return
            beat()
            days = some.days(content.utc_offset_hours)
            for name, aggregator in aggregators.items():
                with timer("aggregate"):
                    blended = aggregator.blend(some.ids, some.vectors, days, some.events)
                with timer("store"):
                    writers[name].append(blended)


def _count_since(series: Series, as_of: int) -> int:
    """How many snapshots are needed to read the series as of this time and later: at least one."""
    times = [snapshot.as_of for snapshot in series.history()]
    return len(times) - max(bisect_right(times, as_of) - 1, 0)


def owed(newest: Mapping[str, int], versions: Mapping[str, int]) -> list[tuple[str, ...]]:
    """The series to write, round by round: each ends at its version, and all that lack one share the last round.

    A series that lags behind by more than one, because a crash kept it from an earlier publication that has been
    replaced since, is written more than once: versions of users and items never part.
    """
    lacking = {name: version - newest[name] for name, version in versions.items()}
    rounds = range(max(lacking.values(), default=0), 0, -1)
    return [tuple(name for name, count in lacking.items() if count >= number) for number in rounds]
