"""One day of one series: read the snapshot of the day before, blend today's vectors in, publish what came of it.

    aggregator = Aggregator(series, activity, Aggregation(), day=19_500, as_of=day_end, space="ctr-1")
    with aggregator.writer(entities=len(events)) as writer:
        for ids, vectors, days in ...:
            writer.append(aggregator.blend(ids, vectors, days, events))

Beside the vectors lies the series' activity: for each entity the day it was last active, how many days its vector is
made of, and how many events it had on them. It is published just before the vectors, as of the same time, and always
read as of the vectors' own time: what a crash between the two leaves behind is never looked at, and the next try's
activity, later and as of the same time, wins.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import cached_property
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from embedding_store import (
    EmbeddingStore,
    Series,
    Snapshot,
    SpaceMismatchError,
    Table,
    VersionNotFoundError,
    WriterClosedError,
)
from recsys.dates import DAY_MS
from recsys.refresh.aggregate import DECAY, Aggregation, aggregate, expired
from recsys.refresh.sharing import SharedIds, SharedWriter, is_in
from recsys.train.distributed import Environment
from recsys.train.exchange import ALONE, in_step, total

ACTIVITY_DIM = 3
"""What is known of an entity beside its vector, see `Blended.activity`."""
_CHUNK = 65_536
"""Rows handled at once where all of a snapshot is gone through."""


class Blended(NamedTuple):
    """What a day makes of n of its entities."""

    ids: Tensor  # int64 [n]
    vectors: Tensor  # float32 [n, D]
    activity: Tensor  # float32 [n, 3]: day of the last event, days counted, events so far


def activity_series(store: EmbeddingStore, name: str) -> Series:
    """The companion series `<name>.activity` of series `name`, made if it is not there."""
    return store.create(activity_name(name), dim=ACTIVITY_DIM, dtype="float32", exist_ok=True)


def activity_name(name: str) -> str:
    """Of the companion of series `name`."""
    return f"{name}.activity"


class Aggregator:
    """Reads what was published before a day and blends that day's vectors in. Every rank may have one of its own.

    Args:
        series: the vectors' series.
        activity: its companion, see `activity_series`.
        aggregation: how.
        day: the day's number, by any count of days that never changes.
        as_of: of what is published, ms: the end of the day, or later.
        before: what the day starts from is the newest snapshot before this time: a day that is published again, as a
            correction, starts where it started the first time. None: `as_of`.
        space: of the day's vectors.
        rotation: float32 [D, D]; turns vectors of another space into this one (see align.py).
        fresh: start anew: carry nothing over.
        after_refused: start from the newest snapshot before even if it was refused, not from the newest that was not.
        withdrawn: int64 [w], ascending: entities that leave the series; none of them may be one of the day's.
        environment: this rank, which has a share of the day's entities and of what was there before.

    Raises:
        SpaceMismatchError: the newest snapshot is of another space, and neither `rotation` nor `fresh` is given.
        CorruptStoreError: it cannot be read; naming the file.
    """

    def __init__(
        self,
        series: Series,
        activity: Series,
        aggregation: Aggregation,
        *,
        day: int,
        as_of: int,
        space: str,
        rotation: Tensor | None = None,
        fresh: bool = False,
        after_refused: bool = False,
        before: int | None = None,
        withdrawn: Tensor | None = None,
        environment: Environment = ALONE,
    ) -> None:
        self.environment = environment
        self.series, self.activity, self.aggregation = series, activity, aggregation
        self.day, self.as_of, self.space = day, as_of, space
        self._withdrawn = torch.empty(0, dtype=torch.int64) if withdrawn is None else withdrawn
        self.previous = None if fresh else newest_before(series, (before or as_of) - 1, after_refused)
        """The snapshot that the day goes on from."""
        self.previous_activity = None
        if self.previous is not None:
            self.previous_activity = newest_before(activity, self.previous.as_of, after_refused)
        if self.previous is not None and self.previous.space != space and rotation is None:
            raise SpaceMismatchError(
                f"version {self.previous.version} of series {series.name!r} is in space {self.previous.space!r}, the "
                f"day's vectors are in {space!r}: align the old space to the new one, or start the new one afresh"
            )
        turned = self.previous is not None and self.previous.space != space
        self._rotation = rotation if turned else None  # a correction, or a second try, may be in the new space already
        self._table = _load(self.previous)
        self._activity_table = _load(self.previous_activity)

    def blend(
        self,
        ids: Tensor,  # int64 [n], distinct over the whole day
        today: Tensor,  # float [n, D]
        days: Tensor,  # int64 [n], the number of the day that each entity's event is of
        events: Tensor,  # int64 [n], how many the day has of each
    ) -> Blended:
        """Today's aggregates of some of the day's entities.

        An event of a late day changes no vector where the series knows a later one: the last event by time counts,
        whatever brings it. It is counted nevertheless; and where vectors are means over events (`decay`) it is one of
        them, as if it had been the entity's newest. An entity whose time to live had ended before today starts anew,
        whether or not it was deleted.
        """
        ids, today, days, events = ids.cpu(), today.detach().cpu(), days.cpu(), events.cpu()
        past, activity, found = self._past(ids, today.shape[1])
        known = found & ~expired(activity[:, 0], self.day, self.aggregation.time_to_live_days)
        late = found & (activity[:, 0] > days)
        if bool((late & ~known).any()):  # nothing is left of what they were, and their event is older still
            kept = known | ~late
            parts = (ids, today, days, events, past, activity, known, late)
            ids, today, days, events, past, activity, known, late = (x[kept] for x in parts)
        counts = torch.where(known, activity[:, 1], 0)
        so_far = torch.where(known, activity[:, 2], 0) + events
        how, stored = self.aggregation, past[late]
        of_events = how.method == DECAY
        before = so_far - events if of_events else counts
        vectors = aggregate(
            how.method, how.weight, past, before, known, today, news=events, renormalise=how.renormalise, out=past
        )
        if not of_events:
            vectors[late] = stored
        now = torch.stack([days.to(counts.dtype), counts + 1, so_far], dim=1)
        now[late, :2] = activity[late, :2]
        return Blended(ids, vectors, now)

    def writer(self, entities: int) -> DayWriter:
        """This rank's writer of the day's snapshot; `entities` is how many ids the day has on all of them. A
        collective."""
        return DayWriter(self, entities)

    def writes_whole(self, entities: int) -> bool:
        """Whether the day is published whole and not as a delta: much changes, the base's rows are of another kind, or
        it would have more dead rows than live ones. A collective."""
        previous, activity = self.previous, self.previous_activity
        if previous is None or activity is None or activity.as_of != previous.as_of:
            return True
        if previous.space != self.space or previous.manifest.schema != self.series.schema:
            return True
        changed = entities + total(len(self.expired_ids), self.environment)
        stored = previous.manifest.stored_rows + entities
        return changed >= self.aggregation.delta_below * previous.rows or stored > 2 * max(previous.rows, entities)

    @cached_property
    def expired_ids(self) -> Tensor:
        """Of this rank's share of the entities that the series has, those that are withdrawn, and those whose time to
        live ends unless they are active today; int64 [n], ascending."""
        gone = [torch.empty(0, dtype=torch.int64)]
        if self.previous_activity is not None:
            for batch in self.previous_activity.batches(_CHUNK, **self._share):
                over = expired(batch.vectors[:, 0], self.day, self.aggregation.time_to_live_days)
                gone.append(batch.ids[over | is_in(batch.ids, self._withdrawn)])
        return torch.cat(gone).sort().values

    def carried(self) -> Iterator[Blended]:
        """This rank's share of what the series had before, as it stays."""
        for batch in self.previous.batches(_CHUNK, **self._share) if self.previous else ():
            yield Blended(batch.ids, self._turned(batch.vectors), self._activity_of(batch.ids))

    @property
    def _share(self) -> dict[str, int]:
        return {"part": self.environment.rank, "of": self.environment.world_size}

    def _past(self, ids: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        """What the day goes on from: vectors float32 [n, D] in the day's space, activity float32 [n, 3], found [n]."""
        if self._table is None:
            nothing = torch.zeros(len(ids), ACTIVITY_DIM)
            return torch.zeros(len(ids), dim), nothing, torch.zeros(len(ids), dtype=torch.bool)
        vectors, found = self._table.lookup(ids)
        return self._turned(vectors), self._activity_of(ids), found

    def _turned(self, vectors: Tensor) -> Tensor:
        return vectors if self._rotation is None else vectors @ self._rotation

    def _activity_of(self, ids: Tensor) -> Tensor:
        """Day last active, days counted and events of ids of the previous snapshot, float32 [n, 3].

        Where none is stored, the snapshot was not made by a day: each vector counts as one day's, that day as the last,
        of events that nobody has counted.
        """
        assert self.previous is not None
        days_ago = -(-(self.as_of - self.previous.as_of) // DAY_MS)
        counted = torch.tensor([float(self.day - days_ago), 1.0, 0.0]).repeat(len(ids), 1)
        if self._activity_table is None:
            return counted
        stored, found = self._activity_table.lookup(ids)
        return torch.where(found[:, None], stored, counted)


class DayWriter:
    """Publishes a day with all ranks, in a `with` block: nothing is visible until it ends cleanly: then activity, then
    vectors. A collective, as its methods are but `append`.

    To publish several series together, enter them into one ExitStack, append to all, call `finish` on all, and end it.
    """

    def __init__(self, aggregator: Aggregator, entities: int) -> None:
        self._aggregator = aggregator
        self.whole = aggregator.writes_whole(entities)
        """Whether all rows are written, or only what changes."""
        self.expired = 0
        """After `finish`: entities that the series had and has no more, the withdrawn ones included; on all ranks."""
        self._seen: list[Tensor] = [torch.empty(0, dtype=torch.int64)]
        self._finished = False
        self._writers = ExitStack()
        self._vectors = self._open(aggregator.series, aggregator.previous)
        self._activity = self._open(aggregator.activity, aggregator.previous_activity)

    @property
    def snapshot(self) -> Snapshot:
        """The vectors that were published, on rank 0. Raises WriterClosedError before."""
        return _published(self._vectors)

    @property
    def activity_snapshot(self) -> Snapshot:
        """The activity that was published, on rank 0. Raises WriterClosedError before."""
        return _published(self._activity)

    def append(self, blended: Blended) -> None:
        """Add entities of the day, each once on one rank. Raises what FragmentWriter.append raises."""
        if self._finished:
            raise WriterClosedError("the day is finished: append before `finish`")
        self._write(blended)
        self._seen.append(blended.ids)

    def finish(self) -> None:
        """Write what follows from the day's entities: the others as they were, without those whose time is over. All is
        on the disk then, and nothing visible.

        Raises:
            StoreError: what a rank's disk or rows are the cause of, on every rank.
        """
        if self._finished:
            return
        self._finished = True
        aggregator, environment = self._aggregator, self._aggregator.environment
        today, over = torch.cat(self._seen), aggregator.expired_ids
        gone = over[~SharedIds(today, environment).has(over)]
        self.expired = total(len(gone), environment)
        if self.whole:
            self._write_carried(SharedIds(torch.cat([today, gone]), environment))
        else:
            self._vectors.delete(gone)
            self._activity.delete(gone)
        for writer in (self._activity, self._vectors):
            writer.finish()

    def _write_carried(self, without: SharedIds) -> None:
        nobody = torch.empty(0, dtype=torch.int64)
        for carried in in_step(self._aggregator.carried(), self._aggregator.environment):
            stays = ~without.has(nobody if carried is None else carried.ids)
            if carried is not None:
                self._write(Blended(*(column[stays] for column in carried)))

    def __enter__(self) -> DayWriter:
        with ExitStack() as writers:
            writers.enter_context(self._vectors)
            writers.enter_context(self._activity)  # the stack ends in reverse order: this one commits first
            self._writers = writers.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._writers.__exit__(kind, error, trace)
            return
        with self._writers:
            self.finish()

    def _open(self, series: Series, base: Snapshot | None) -> SharedWriter:
        aggregator, base = self._aggregator, None if self.whole else base
        return SharedWriter(series, aggregator.environment, as_of=aggregator.as_of, space=aggregator.space, base=base)

    def _write(self, rows: Blended) -> None:
        self._vectors.append(rows.ids, rows.vectors)
        self._activity.append(rows.ids, rows.activity)


def _published(writer: SharedWriter) -> Snapshot:
    if writer.snapshot is None:
        raise WriterClosedError("nothing is published yet: the snapshot exists after the writer's `with` block")
    return writer.snapshot


def _load(snapshot: Snapshot | None) -> Table | None:
    return None if snapshot is None else snapshot.load()


def newest_before(series: Series, timestamp: int, refused: bool = False) -> Snapshot | None:
    """The newest snapshot as of a time, if there is one; `refused`: also of those that were refused."""
    try:
        return series.as_of(timestamp, refused=refused)
    except VersionNotFoundError:
        return None
