"""A sharded table that follows a tag, or the newest version, with all ranks at one version in every lookup.

    live = ShardedLiveTable(store.series("user_ctr"), tag="prod", interval=5.0)  # every rank
    vectors, found = live.lookup(ids)                                            # every rank

The ranks load the next version beside the present one, on a group of their own. Each says in every lookup which is the
newest that it has, and all look up in the oldest of these: they change between the same two lookups, whenever each of
them was ready, and nobody waits for it.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
import weakref
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from embedding_store import arguments, times
from embedding_store.arguments import real
from embedding_store.errors import InvalidArgumentError, PinMismatchError, VersionNotFoundError
from embedding_store.format.manifest import Manifest
from embedding_store.read.snapshot import Snapshot
from embedding_store.series import Series
from embedding_store.serve.candidates import candidate_of, refuse_another_schema
from embedding_store.serve.live import MOST_PATIENCE, LiveStatus
from embedding_store.serve.ranks import Asked, Ranks
from embedding_store.serve.shard import Shard, load_shard
from embedding_store.serve.sharded import ShardedTable

_log = logging.getLogger(__name__)
_SILENCE = timedelta(days=7)
"""Longest wait of the ranks for the next look, and for each other's load: a version may take hours. A rank that dies
ends it at once."""


class _Plan(NamedTuple):
    """What a rank knows at a look. Of the next version the first rank's word counts."""

    stop: bool
    held: int
    """Versions that it holds: more than one until the lookup after a swap."""
    version: int | None = None
    content: str = ""
    error: Exception | None = None
    waiting: str | None = None


@dataclass(frozen=True)
class _Report:
    """What this rank is ready to serve, and how the last look ended: one assignment, so that a status is of one
    moment."""

    newest: _Generation | None = None
    swaps: int = -1
    checked: int = 0
    error: Exception | None = None
    waiting: str | None = None


class _Held(dict[int, "_Generation"]):
    """The versions that a rank holds, by number. Of a plain dict there is no weak reference."""


class _Generation(ShardedTable):
    """One version, by its number among those that were loaded. Which one a lookup is of, the ranks settle in it."""

    def __init__(self, manifest: Manifest, shard: Shard, ranks: Ranks, number: int, held: _Held) -> None:
        super().__init__(manifest, shard, ranks)
        self._token = self.number = number
        self._held = weakref.ref(held)  # in a circle the last one would stay in memory until a collection of garbage

    def _chosen(self, asked: Asked) -> ShardedTable:
        held = self._held()
        assert held is not None  # who looks up has the live table, which has it
        number = min(asked.tokens)  # the newest that every rank has
        for older in [one for one in list(held) if one < number]:
            del held[older]
        return held[number]


class ShardedLiveTable:
    """A `ShardedTable` of the version of a tag, or of the newest one that was not refused: made, looked up in,
    refreshed and closed by all ranks of a group.

    The first rank looks what the next version is. It is served when every rank has loaded its part of it; if one
    cannot, or it has another dim or dtype than the present one, all stay where they are and `status.error` says why.
    While a version is loaded both are in memory. It follows a tag backwards, and withdrawn versions, as `LiveTable`
    does.

    Args:
        series: the same on every rank.
        tag: the tag to follow; None: the newest version that was not refused.
        interval: seconds between two looks of a thread; None: there is none, and `refresh` looks.
        group: of torch.distributed, whose collectives lookups are; None: all ranks.
        device: where the vectors are served from.

    Raises:
        VersionNotFoundError, TagNotFoundError: there is nothing to serve yet.
        RankFailedError: another rank cannot load it. CorruptStoreError: this one cannot; of the class that fits.
        InvalidArgumentError: naming the argument and its value.
    """

    def __init__(
        self,
        series: Series,
        *,
        tag: str | None = None,
        interval: float | None = None,
        group: dist.ProcessGroup | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if interval is not None:
            interval = real(interval, "interval", "more than 0 seconds, at most a day", above=0, most=86_400)
        self._series, self._tag, self._interval = series, tag, interval
        self._device = arguments.device(device)
        self._ranks = Ranks(group, self._device)
        members = dist.get_process_group_ranks(self._ranks.group)
        apart = dist.new_group(members, timeout=_SILENCE, backend="gloo", use_local_synchronization=True)
        self._control = Ranks(apart, torch.device("cpu"))
        self._held = _Held()
        self._report = _Report()
        self._refused, self._attempts, self._retry_at = 0, 0, 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._look(patient=False)
        if self._report.error is not None:
            raise self._report.error
        if self._report.newest is None:
            raise VersionNotFoundError(f"nothing to serve: {self._report.waiting}; publish a version")
        if interval is not None:
            follow = (weakref.ref(self), self._stop, interval, self._ranks.rank)
            self._thread = threading.Thread(target=_follow, args=follow, name=repr(self), daemon=True)
            self._thread.start()

    def lookup(self, ids: Any, out_dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
        """`ShardedTable.lookup`; one call is of exactly one version, the same on every rank. Raises as that does."""
        return self._table.lookup(ids, out_dtype)

    def lookup_pooled(
        self,
        ids: Tensor,  # int64 [N]
        offsets: Tensor,  # int64 [B + 1]
        weights: Tensor | None = None,  # float32 [N]
        mode: str = "sum",
        out_dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor]:
        """`ShardedTable.lookup_pooled`, of one version as `lookup`."""
        return self._table.lookup_pooled(ids, offsets, weights, mode, out_dtype)

    @property
    def status(self) -> LiveStatus:
        """What this rank is ready to serve, and how the last look for another version went."""
        report = self._report
        assert report.newest is not None  # else it was not made
        manifest = report.newest.manifest
        return LiveStatus(
            version=manifest.version,
            as_of=manifest.as_of,
            space=manifest.space,
            age_ms=times.now() - manifest.as_of,
            swaps=report.swaps,
            checked=report.checked,
            error=report.error,
            waiting=report.waiting,
            following=self._thread is not None and self._thread.is_alive() and not self._stop.is_set(),
        )

    def refresh(self) -> LiveStatus:
        """Look for another version now, load it, and serve it from the next lookup on. A collective; says how that
        went, and does not raise for the store's or another rank's sake.

        Raises:
            InvalidArgumentError: a thread does that: `interval` was given.
        """
        if self._interval is not None:
            raise InvalidArgumentError(f"interval is {self._interval}, so a thread looks: make it None to call refresh")
        self._look(patient=False)
        for older in [one for one in self._held if one < self._table.number]:  # all ranks are here: none looks up
            del self._held[older]
        return self.status

    def close(self) -> None:
        """End the following, on all ranks. What is loaded can still be looked up in."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=10.0)

    def __enter__(self) -> ShardedLiveTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        what = "the newest version" if self._tag is None else f"tag {self._tag!r}"
        return f"ShardedLiveTable({self._series.name}: {what}, rank {self._ranks.rank} of {self._ranks.size})"

    @property
    def _table(self) -> _Generation:
        newest = self._report.newest
        assert newest is not None  # else it was not made
        return newest

    def _look(self, *, patient: bool) -> bool:
        """One look of all ranks, and what follows from it; False: one of them wants no more."""
        plans: list[_Plan] = self._control.all_objects(self._plan(patient=patient))
        if any(plan.stop for plan in plans):
            self._stop.set()
            return False
        plan, waiting = plans[0], None
        if any(each.held > 1 for each in plans) and patient:
            plan, waiting = _Plan(False, 0), "a version is ready, and is served from the next lookup on"
        if plan.version is None:
            error = plan.error or (self._report.error if plan.waiting is None and waiting is None else None)
            waiting = waiting or plan.waiting
            self._report = replace(self._report, checked=times.now(), error=error, waiting=waiting)
            return True
        try:
            newest = self._load(plan)
        except Exception as error:
            self._fail(error, plan.version)
            return True
        self._held[newest.number] = newest
        self._refused, self._attempts = 0, 0
        self._report = _Report(newest, self._report.swaps + 1, times.now())
        _log.info("%r: version %d is ready", self, plan.version)
        return True

    def _plan(self, *, patient: bool) -> _Plan:
        plain = _Plan(self._stop.is_set() and patient, len(self._held))
        if self._ranks.rank:
            return plain
        newest = self._report.newest
        present = 0 if newest is None else newest.manifest.version
        try:
            snapshots, waiting = candidate_of({self._series.name: self._series}, self._tag, present)
            if snapshots is None:
                return plain._replace(waiting=waiting)
            snapshot = snapshots[self._series.name]
            if patient and snapshot.version == self._refused and time.monotonic() < self._retry_at:
                return plain
            return plain._replace(version=snapshot.version, content=snapshot.manifest.content)
        except Exception as error:  # of whatever kind: the others wait for the plan
            return plain._replace(error=error)

    def _load(self, plan: _Plan) -> _Generation:
        """This rank's part of the version, when every rank has its own; raises on all ranks if one has not."""
        snapshot, error = None, None
        try:
            snapshot = self._open(plan)
        except Exception as raised:
            error = raised
        self._control.agree(error)
        assert snapshot is not None
        shard = load_shard(snapshot._storage, snapshot.manifest, self._control)
        try:
            shard = shard.to(self._device)
        except Exception as raised:  # out of its memory
            error = raised
        self._control.agree(error)
        return _Generation(snapshot.manifest, shard, self._ranks, self._report.swaps + 1, self._held)

    def _open(self, plan: _Plan) -> Snapshot:
        assert plan.version is not None
        snapshot = self._series.version(plan.version)
        if snapshot.manifest.content != plan.content:
            what = f"version {plan.version} of series {self._series.name!r}"
            raise PinMismatchError(
                f"{what} is another snapshot on this rank than on the first: give all the same store"
            )
        newest = self._report.newest
        if newest is not None:
            refuse_another_schema({self._series.name: snapshot}, {self._series.name: newest})
        return snapshot

    def _fail(self, error: Exception, version: int | None) -> None:
        if str(error) != str(self._report.error):
            _log.warning("%r: stays, because version %s fails: %s", self, version, error)
        self._attempts = self._attempts + 1 if version == self._refused else 1
        self._refused = version or 0
        wait = (self._interval or 0.0) * min(2 ** (self._attempts - 1), MOST_PATIENCE)
        self._retry_at = time.monotonic() + wait
        traceback.clear_frames(error.__traceback__)  # they hold what was loaded
        error.__traceback__ = error.__cause__ = error.__context__ = None
        self._report = replace(self._report, checked=times.now(), error=error, waiting=None)


def _follow(reference: weakref.ref[ShardedLiveTable], stop: threading.Event, interval: float, rank: int) -> None:
    """What the thread does. The first rank's sets the pace; the others' wait for it in their next look."""
    while True:
        if rank == 0:
            stop.wait(interval)
        live = reference()
        if live is None:
            return
        try:
            if not live._look(patient=True):
                return
        except Exception as error:  # the group is gone: another rank is, or this process ends
            live._fail(error, None)
            return
        del live
