"""A table that follows a tag, or the newest version, while its process serves.

    live = LiveTable(store.series("user_ctr"), tag="prod")
    vectors, found = live.lookup(ids)

A thread looks for the next version, loads and checks it beside the present one, and swaps it in with one assignment.
Readers take no lock and wait for nothing; what goes wrong with a new version is in `status`, never in a lookup.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, overload

import torch
from torch import Tensor

from embedding_store import arguments, times
from embedding_store.arguments import real
from embedding_store.errors import InvalidArgumentError, StoreError, VersionNotFoundError
from embedding_store.native import gpu
from embedding_store.read.copying import StoppedError
from embedding_store.read.snapshot import Snapshot
from embedding_store.read.table import Table
from embedding_store.read.tiered import SAMPLE
from embedding_store.series import Series
from embedding_store.serve.candidates import candidate_of, refuse_another_schema
from embedding_store.serve.tiers import Tiers

_log = logging.getLogger(__name__)
_LINGER = 1.0
"""Most seconds for which the thread keeps a replaced version, so that no reader pays for giving its memory back."""
MOST_PATIENCE = 64
"""A version that failed is tried again after 1, 2, 4, ... intervals, at most this many."""


@dataclass(frozen=True, kw_only=True)
class LiveStatus:
    """What a LiveTable serves and how its last look for a newer version went."""

    version: int
    """The version that lookups are of; in the instant of a swap they may be of the next one already."""
    as_of: int
    """Its event time, ms since the epoch."""
    space: str
    """Its vector space."""
    age_ms: int
    """Time since its `as_of`, ms."""
    swaps: int
    """How often the version has changed."""
    checked: int
    """When it last looked for another version, ms since the epoch."""
    error: Exception | None
    """Why the version that should be served is not; None once it is."""
    waiting: str | None
    """How the followed series disagree; None as long as they do not."""
    following: bool
    """Whether the thread runs: False after `close`."""


@dataclass(frozen=True)
class Generation:
    """One version of every followed series. Never changes: a reader holds all of it or nothing."""

    version: int
    as_of: int
    space: str
    tables: Mapping[str, Table]

    def release_pages(self) -> None:
        """Do beforehand, without the GIL, most of the work of giving the memory back; lookups still work."""
        for table in self.tables.values():
            if table.mapping is not None:
                table.mapping.release_pages()


@dataclass(frozen=True)
class _Report:
    """What is served since the last check, and how that ended: one assignment, so that a status is of one moment."""

    generation: Generation
    swaps: int = 0
    checked: int = 0
    error: Exception | None = None
    waiting: str | None = None
    refused: int | None = None  # the version that failed to load
    attempts: int = 0  # how often it has failed in a row
    retry_at: float = 0.0  # of time.monotonic()


class LiveTable:
    """One series, or several that swap together, always at the version of a tag or the newest one not refused.

    Several series (`{"user": user_series, "item": item_series}`) are served in generations: one in which every series
    has the same version number, `as_of` and space. Until there is such a one the previous generation stays, so that
    the users and items of one upstream never mix; write, compact and tag such series together.

    A tag that moves back is followed too; without a tag the version before is served again where the present one was
    retracted or refused. A version that cannot be loaded, or has another dim or dtype than the present
    one, is not served: the present one stays, and `status.error` says why. While a version is loaded both are in
    memory; the old one's is given back a second after the swap, or when the last reader drops its tables.

    On a GPU a version is copied at the rate at which it is checked on the CPU. Its memory is freed when nothing can be
    reading it any more, on whatever stream; a graph that was captured goes on to read the version that it was captured
    with, which must be kept for it: see CapturableLiveTable.

    With `gpu_bytes` the tables are TieredTables: `tables()[name].hits()` says how many ids found their rows on the GPU,
    and `tables()[name].accesses()`, saved, gives the `hot_ids` of the next process. Versions that follow each other
    find theirs by themselves.

    Threads may share a LiveTable. After a fork parent and child each follow on their own; but not a child on a GPU,
    which it has not. The thread ends with `close`, with the last reference to the LiveTable, or with the process.

    Args:
        series: one series, or name -> series.
        tag: the tag to follow; None: the newest version that was not refused.
        interval: seconds between two looks at the store.
        device: where the vectors are served from; None: the CPU.
        gpu_bytes: for index and rows of a version in the device's memory, as for Snapshot.load, and for the counters of
            its rows, 4 bytes each; while the next one is loaded, twice that. Of several series a mapping from name to
            bytes; one that it leaves out lies on the device whole.
        hot_ids: int64 [N], whose rows the first version has in the device's memory, the most important one first; of
            several series a mapping from name. Later versions have there what was looked up most before.
        sample: with `gpu_bytes`, one lookup of so many is counted, see TieredTable.count_accesses; 0: none, and
            `hot_ids` are those of every version.

    Raises:
        VersionNotFoundError, TagNotFoundError: there is nothing to serve yet.
        CorruptStoreError: the first version, which is read in full, is corrupt; of the class that fits.
        NativeLibraryError, DeviceMemoryError: lookups do not run on the device, or it has too little memory.
        InvalidArgumentError: naming the argument and its value.
    """

    def __init__(
        self,
        series: Series | Mapping[str, Series],
        *,
        tag: str | None = None,
        interval: float = 5.0,
        device: torch.device | str | None = None,
        gpu_bytes: int | Mapping[str, int] | None = None,
        hot_ids: Tensor | Mapping[str, Tensor] | None = None,
        sample: int = SAMPLE,
    ) -> None:
        followed = dict(series) if isinstance(series, Mapping) else {series.name: series}
        if not followed:
            raise InvalidArgumentError("series is empty: give at least one to follow")
        interval = real(interval, "interval", "more than 0 seconds, at most a day", above=0, most=86_400)
        self._series = followed
        self._tag = tag
        self._interval = interval
        # Of a GPU with its number: the thread's may be another.
        self._device = gpu.usable(arguments.device("cpu" if device is None else device))
        self._tiers = Tiers(list(followed), gpu_bytes, hot_ids, sample, device)
        self._generation = Generation(0, 0, "", MappingProxyType({}))  # of nothing, until the first is loaded
        self._report = _Report(self._generation)
        self._stop = threading.Event()
        snapshots, waiting = candidate_of(followed, tag, present=0)
        if snapshots is None:
            raise VersionNotFoundError(f"nothing to serve: {waiting}; publish a version that all of them have")
        self._serve(self._load(snapshots))
        self._report = _Report(self._generation, checked=times.now())
        self._start()

    @overload
    def lookup(self, ids: Tensor, out_dtype: torch.dtype = ...) -> tuple[Tensor, Tensor]: ...
    @overload
    def lookup(self, ids: Any, out_dtype: torch.dtype = ...) -> tuple[Any, Any]: ...
    def lookup(self, ids: Any, out_dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
        """`Table.lookup` in the present version; for a LiveTable of one series. One call is of exactly one version.

        Raises:
            InvalidArgumentError: it follows several series: use `tables`.
            InvalidIdsError: as `Table.lookup`.
        """
        tables = self._generation.tables
        if len(tables) != 1:
            raise InvalidArgumentError(f"this LiveTable follows {', '.join(tables)}: use tables()[name].lookup")
        (table,) = tables.values()
        return table.lookup(ids, out_dtype)

    def tables(self) -> Mapping[str, Table]:
        """The present version of every series, by name, for several lookups that must agree.

        The mapping never changes: hold it for a request, then let it go, because it keeps its version in memory.
        """
        return self._generation.tables

    @property
    def status(self) -> LiveStatus:
        """What is served, and how the last look for another version went."""
        report = self._report
        generation = report.generation
        return LiveStatus(
            version=generation.version,
            as_of=generation.as_of,
            space=generation.space,
            age_ms=times.now() - generation.as_of,
            swaps=report.swaps,
            checked=report.checked,
            error=report.error,
            waiting=report.waiting,
            following=self._thread.is_alive() and not self._stop.is_set(),
        )

    def refresh(self) -> LiveStatus:
        """Look for another version now, in the caller's thread, and swap it in; says how that went, and never raises.

        Waits for a look that the thread has begun. Works after `close` too.
        """
        if replaced := self._check(patient=False):
            replaced.release_pages()
        return self.status

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is loaded or swapped in meanwhile; waits for the end of a check that has begun.

        Say for measurements. Not for captures: what the thread does disturbs none, see native/gpu.py.
        """
        with self._checking:
            yield

    def close(self) -> None:
        """End the thread. What was loaded last can still be read, until the LiveTable is dropped."""
        self._finalizer()

    def __enter__(self) -> LiveTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        what = "the newest version" if self._tag is None else f"tag {self._tag!r}"
        return f"{type(self).__name__}({', '.join(self._series)}: version {self._generation.version}, following {what})"

    def _start(self) -> None:
        """Begin to follow; anew in a forked child, where no thread but the forking one lives and locks may be held."""
        self._stop = threading.Event()
        self._checking = threading.Lock()
        arguments = (weakref.ref(self), self._stop, self._interval)
        self._thread = threading.Thread(
            target=_follow, args=arguments, name=f"LiveTable {', '.join(self._series)}", daemon=True
        )
        # Runs at interpreter exit too, before daemon threads are torn out of native code.
        self._finalizer = weakref.finalize(self, _end, self._stop, self._thread)
        self._thread.start()
        _following.add(self)

    def _check(self, *, patient: bool) -> Generation | None:
        """Look for another version and swap it in. Returns the generation that was replaced, if one was."""
        with self._checking:
            present, report = self._generation, self._report
            candidate = None
            try:
                snapshots, waiting = candidate_of(self._series, self._tag, present=present.version)
                if snapshots is None:
                    self._report = _Report(present, report.swaps, times.now(), waiting=waiting)
                    return None
                candidate = next(iter(snapshots.values())).version
                if patient and candidate == report.refused and time.monotonic() < report.retry_at:
                    self._report = replace(report, checked=times.now())
                    return None
                refuse_another_schema(snapshots, present.tables)
                generation = self._load(snapshots, until=self._stop if patient else threading.Event())
                if patient and self._stop.is_set():  # the check was broken off
                    return None
                self._serve(generation)
            except StoppedError:  # likewise
                return None
            except Exception as error:
                self._report = self._failed(error, candidate)
                return None
            self._report = _Report(generation, report.swaps + 1, times.now())
            _log.info("%s: replaced version %d", repr(self), present.version)
            return present

    def _load(self, snapshots: dict[str, Snapshot], until: threading.Event | None = None) -> Generation:
        """Load and check: with all threads at first, when nobody reads yet, else (`until`: to break off) unnoticed."""
        go_on = None if until is None else lambda *_: not until.is_set()
        tables = self._load_tables(snapshots, go_on, background=until is not None)
        first = next(iter(snapshots.values()))
        return Generation(first.version, first.as_of, first.space, tables)

    def _load_tables(
        self, snapshots: Mapping[str, Snapshot], go_on: Callable[..., bool] | None, *, background: bool
    ) -> Mapping[str, Table]:
        present, tables = self._generation.tables, dict[str, Table]()
        for name, snapshot in snapshots.items():
            load = partial(snapshot.load_checked, self._device, go_on, background=background)
            tables[name] = self._tiers.load(snapshot, name, present.get(name), load)
        return MappingProxyType(tables)

    def _serve(self, generation: Generation) -> None:
        """From here on lookups are of it."""
        self._generation = generation

    def _failed(self, error: Exception, candidate: int | None) -> _Report:
        before = self._report
        if type(error) is not type(before.error) or str(error) != str(before.error):
            known = isinstance(error, StoreError | OSError)  # of these the message says all
            message = f"{self!r}: stays, because the next version fails: {error}"  # handlers may keep arguments
            _log.warning("%s", message, exc_info=None if known else error)
        attempts = before.attempts + 1 if candidate is not None and candidate == before.refused else 1
        delay = self._interval * min(2 ** (attempts - 1), MOST_PATIENCE)
        # Its frames would keep the half-loaded version in memory; from Python 3.12 on in a circle of their own.
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = error.__cause__ = error.__context__ = None
        return _Report(
            before.generation,
            before.swaps,
            times.now(),
            error=error,
            refused=candidate,
            attempts=attempts,
            retry_at=time.monotonic() + delay,
        )


def _follow(reference: weakref.ref[LiveTable], stop: threading.Event, interval: float) -> None:
    """What the thread does; it holds no reference while it waits."""
    while not stop.wait(interval):
        live = reference()
        if live is None:
            return
        replaced = live._check(patient=True)
        del live
        if replaced is not None:
            stop.wait(min(_LINGER, interval))
            replaced.release_pages()
            del replaced


def _end(stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    if thread is not threading.current_thread():  # the thread itself dropped the last reference
        thread.join(timeout=10.0)


_following: weakref.WeakSet[LiveTable] = weakref.WeakSet()


def _after_fork() -> None:
    for live in list(_following):
        running = not live._stop.is_set() and live._device.type != "cuda"  # a child would fail at every version
        live._finalizer.detach()
        live._checking = threading.Lock()  # `refresh` works after `close` too
        if running:
            live._start()


os.register_at_fork(after_in_child=_after_fork)
