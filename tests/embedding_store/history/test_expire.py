"""Expiring snapshots: which ones go, and what readers, writers and tags see of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embedding_store import (
    EmbeddingStore,
    InvalidArgumentError,
    InvalidTimeError,
    Series,
    Table,
    VersionExpiredError,
    VersionNotFoundError,
    times,
)
from embedding_store.format.manifest import manifest_path
from embedding_store.history import expire
from embedding_store.storage.local import LocalStorage
from tests.embedding_store.bare import numbers, publish_bare
from tests.embedding_store.helpers import age, files, folder, publish
from tests.processes import forkserver

DAY = 86_400_000
TIMEOUT = 600.0


@pytest.fixture
def days(series: Series, monkeypatch: pytest.MonkeyPatch) -> Series:
    """A series with versions 1 to 6, published on days 1 to 6; now it is day 6, noon."""
    for day in range(1, 7):
        monkeypatch.setattr(times, "now", lambda day=day: day * DAY)
        publish_bare(series)
    monkeypatch.setattr(times, "now", lambda: 6 * DAY + DAY // 2)
    return series


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"keep_last": 1}, [1, 2, 3, 5]),
        ({"keep_last": 3}, [1, 2, 3]),
        ({"keep_last": 6}, []),
        ({"keep_last": 99}, []),
        ({"older_than": timedelta(days=2)}, [1, 2, 3]),
        ({"older_than": timedelta(0)}, [1, 2, 3, 5]),
        ({"older_than": 3 * DAY}, [1, 2]),
        ({"older_than": datetime(1970, 1, 3, tzinfo=UTC)}, [1]),
        ({"keep_last": 4, "older_than": timedelta(days=1)}, [1, 2]),
        ({"keep_last": 2, "older_than": timedelta(days=4)}, [1, 2]),
    ],
)
def test_both_rules_must_allow_it(days: Series, rules: dict[str, Any], expected: list[int]):
    days.tag("prod", 4)
    before = files(days)
    assert numbers(days.expire(**rules)) == expected
    assert files(days) == before  # a dry run
    assert numbers(days.expire(**rules, dry_run=False)) == expected
    assert days.versions() == [v for v in range(1, 7) if v not in expected]
    assert days.expire(**rules, dry_run=False) == []


@given(
    created=st.lists(st.integers(0, 9), max_size=7),
    tagged=st.sets(st.integers(1, 8)),
    refused=st.sets(st.integers(1, 8)),
    keep_last=st.one_of(st.none(), st.integers(1, 8)),
    before=st.one_of(st.none(), st.integers(0, 10)),
)
def test_the_rules_against_a_model(created, tagged, refused, keep_last, before):
    class Bare:
        def __init__(self, version: int, created: int) -> None:
            self.version, self.created = version, created

    history: Any = [Bare(version, at) for version, at in enumerate(created, start=1)]
    rules = {"tagged": tagged, "refused": refused, "keep_last": keep_last, "before": before}
    if keep_last is None and before is None:
        with pytest.raises(InvalidArgumentError, match="give one or both"):
            expire.candidates(history, **rules)
        return
    expected = []
    for version, at in enumerate(created, start=1):
        from_the_end = len(created) - version  # the newest has 0
        too_many = keep_last is None or from_the_end >= keep_last
        too_old = before is None or at < before
        last_good = version == max(set(range(1, len(created) + 1)) - refused, default=None)
        if from_the_end > 0 and not last_good and version not in tagged and too_many and too_old:
            expected.append(version)
    assert expire.candidates(history, **rules) == expected


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        ({}, InvalidArgumentError, "keep_last and older_than are None"),
        ({"keep_last": 0}, InvalidArgumentError, "keep_last is 0; use 1 or more"),
        ({"keep_last": True}, InvalidArgumentError, "keep_last is True"),
        ({"older_than": timedelta(-1)}, InvalidArgumentError, "older_than is -1 day"),
        ({"older_than": datetime(2022, 5, 1)}, InvalidTimeError, "older_than is"),
        ({"older_than": 1.5}, InvalidTimeError, "older_than is 1.5"),
    ],
)
def test_rules_that_cannot_be(days: Series, rules: dict[str, Any], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        days.expire(**rules)


def test_an_expired_version_says_what_became_of_it(days: Series):
    days.expire(keep_last=2, dry_run=False)
    for handle in (days, Series(days._storage, days.name)):
        with pytest.raises(
            VersionExpiredError, match=r"version 2 of series 'user_ctr' was expired at 1970-01-07 12:00:00"
        ):
            handle.version(2)
        with pytest.raises(VersionNotFoundError, match="has no version 7; versions: 5-6"):
            handle.version(7)
        assert numbers(handle.history()) == [5, 6]
        assert [(t.manifest.version, t.manifest.as_of, t.expired) for t in handle.expired()] == [
            (version, version, 6 * DAY + DAY // 2) for version in (1, 2, 3, 4)
        ]
        assert handle.latest().version == 6
        assert [handle.as_of(t).version for t in (5, 6, 9)] == [5, 6, 6]
        with pytest.raises(VersionNotFoundError, match="no snapshot as of 4 or earlier; the first is as of 5"):
            handle.as_of(4)
    for wrong in (-1, 0):
        with pytest.raises(VersionNotFoundError, match="has no version"):
            days.version(wrong)  # type: ignore[arg-type]
    with pytest.raises(VersionExpiredError):
        days.tag("prod", 1)


def test_as_of_goes_by_what_exists(days: Series):
    days.tag("archive", 2)
    days.expire(keep_last=1, dry_run=False)
    assert [days.as_of(t).version for t in (2, 5, 6)] == [2, 2, 6]


def test_versions_are_never_used_again(days: Series):
    for _ in range(3):
        days.expire(keep_last=1, dry_run=False)
        assert len(days.versions()) == 1
        newest = days.latest().version
        assert publish_bare(days).version == newest + 1
    assert [t.manifest.version for t in days.expired()] == list(range(1, 8))


def test_a_run_that_dies_between_the_steps_is_finished_by_the_next(days: Series, monkeypatch: pytest.MonkeyPatch):
    delete = LocalStorage.delete

    def dies(self: LocalStorage, path: str) -> None:
        if path == manifest_path(2):
            raise KeyboardInterrupt
        delete(self, path)

    monkeypatch.setattr(LocalStorage, "delete", dies)
    with pytest.raises(KeyboardInterrupt):
        days.expire(keep_last=2, dry_run=False)
    monkeypatch.setattr(LocalStorage, "delete", delete)
    assert days.versions() == [2, 3, 4, 5, 6]
    assert days.version(2).rows == 1  # it exists: its manifest does
    assert [t.manifest.version for t in days.expired()] == [1]
    assert days.expire(keep_last=6, dry_run=False) == []  # by the rules of this run
    assert numbers(days.expire(keep_last=2, dry_run=False)) == [2, 3, 4]
    assert days.versions() == [5, 6]


def test_a_tag_is_not_moved_to_what_a_dead_run_let_go(days: Series, monkeypatch: pytest.MonkeyPatch):
    days.tag("prod", 6)
    monkeypatch.setattr(LocalStorage, "delete", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        days.expire(keep_last=5, dry_run=False)
    monkeypatch.undo()
    assert days.version(1).rows == 1
    with pytest.raises(VersionExpiredError, match="version 1 of series 'user_ctr' was expired"):
        days.tag("prod", 1)
    assert days.versions() == [2, 3, 4, 5, 6]  # the move has ended the run's work
    assert [move.version for move in days.moves("prod")] == [6]


def test_a_tag_that_comes_in_between_saves_the_version(days: Series, monkeypatch: pytest.MonkeyPatch):
    put, delete = LocalStorage.put_new, LocalStorage.delete

    def tagged_before(self: LocalStorage, path: str, data: bytes) -> None:
        if path.startswith("tags/"):
            monkeypatch.setattr(LocalStorage, "put_new", put)
            days.tag("prod", 2)
        put(self, path, data)

    def tagged_after(self: LocalStorage, path: str) -> None:
        if path == manifest_path(3):
            monkeypatch.setattr(LocalStorage, "delete", delete)
            with pytest.raises(VersionExpiredError):
                days.tag("prod", 3)
        delete(self, path)

    monkeypatch.setattr(LocalStorage, "put_new", tagged_before)
    monkeypatch.setattr(LocalStorage, "delete", tagged_after)
    assert numbers(days.expire(keep_last=2, dry_run=False)) == [1, 3, 4]
    assert days.tags() == {"prod": 2}
    days.untag("prod")
    assert days.expire(keep_last=3, dry_run=False) == []  # nothing of the run before is left
    days.tag("prod", 2)
    assert days.tagged("prod").version == 2


def test_the_requests_of_a_run(series: Series, monkeypatch: pytest.MonkeyPatch):
    for _ in range(19):
        publish_bare(series)
    for version in range(1, 11):
        series.tag(f"tag{version}", version)
    handle, asked = Series(series._storage, series.name), []
    for name in ("names", "entries", "read", "size", "exists", "put_new", "delete"):
        function = getattr(LocalStorage, name)

        def counted(*arguments: Any, name: str = name, function: Any = function) -> Any:
            asked.append(name)
            return function(*arguments)

        monkeypatch.setattr(LocalStorage, name, counted)
    assert len(handle.expire(keep_last=1, dry_run=False)) == 8
    assert len(asked) == 42


@pytest.mark.parametrize(
    ("ask", "expected"),
    [(lambda s: s.latest().version, 7), (lambda s: s.as_of(9).version, 7), (lambda s: len(s.history()), 0)],
)
def test_what_is_expired_while_it_is_being_looked_for(
    days: Series, monkeypatch: pytest.MonkeyPatch, ask: Callable[[Series], int], expected: int
):
    """Versions are listed, then those listed are expired, and a newer one published."""
    handle, read = Series(days._storage, days.name), LocalStorage.read

    def overtaken(self: LocalStorage, path: str) -> bytes:
        if path.startswith("manifests/"):
            monkeypatch.setattr(LocalStorage, "read", read)
            publish_bare(days)
            days.expire(keep_last=1, dry_run=False)
        return read(self, path)

    monkeypatch.setattr(LocalStorage, "read", overtaken)
    assert ask(handle) == expected


def publishing_process(path: Path, barrier: Any, enough: Any) -> None:
    """Publish snapshots whose values are their version, tag each, and keep the newest alone: 25, more until enough."""
    series = EmbeddingStore(path).series("user_ctr")
    barrier.wait(TIMEOUT)
    while (version := series.latest().version + 1) < 27 or not enough.is_set():
        publish(series, version, [10, 11], torch.full((2, 3), float(version)))
        series.tag("prod", version)
        series.expire(keep_last=1, dry_run=False)


def test_readers_during_expire(store: EmbeddingStore, series: Series):
    publish(series, 1, [10, 11], torch.ones(2, 3))
    series.tag("prod", 1)
    context = forkserver()
    barrier, enough = context.Barrier(2), context.Event()
    writer = context.Process(target=publishing_process, args=(store.location, barrier, enough), daemon=True)
    writer.start()
    barrier.wait(TIMEOUT)
    ids, reader = torch.tensor([10, 11]), EmbeddingStore(store.location).series("user_ctr")
    tables = dict[int, Table]()  # one a version: a process has only so many mappings
    asks = [reader.latest, lambda: reader.tagged("prod"), lambda: reader.as_of(2**62), lambda: reader.history()[-1]]
    deadline = time.monotonic() + TIMEOUT
    while writer.is_alive() and time.monotonic() < deadline:
        for ask in asks:
            table = ask().load()
            vectors, found = table.lookup(ids)
            assert found.all()
            assert vectors.unique().tolist() == [table.manifest.version]
            tables.setdefault(table.manifest.version, table)
        if len(tables) > 2:
            enough.set()
    writer.join(TIMEOUT)
    assert writer.exitcode == 0
    (newest,) = reader.versions()
    assert newest > 25
    for version, table in tables.items():
        assert table.lookup(ids)[0].unique().tolist() == [version]


def test_a_slow_writer_does_not_take_an_expired_version(series: Series, monkeypatch: pytest.MonkeyPatch):
    publish(series, 1, [1])
    put_new = LocalStorage.put_new

    def stalled(self: LocalStorage, path: str, data: bytes) -> None:
        if path == manifest_path(2):
            monkeypatch.setattr(LocalStorage, "put_new", put_new)
            for _ in range(2):
                publish(series, 2, [2])
            assert numbers(series.expire(keep_last=1, dry_run=False)) == [1, 2]
        put_new(self, path, data)

    monkeypatch.setattr(LocalStorage, "put_new", stalled)
    assert publish(series, 2, [3]).version == 4
    assert series.versions() == [3, 4]
    assert series.latest().load().ids().tolist() == [3]


def test_a_writer_that_dies_over_an_expired_version_does_not_bring_it_back(
    series: Series, monkeypatch: pytest.MonkeyPatch
):
    publish(series, 1, [1])
    put_new = LocalStorage.put_new

    def stalled(self: LocalStorage, path: str, data: bytes) -> None:
        if path == manifest_path(2):
            monkeypatch.setattr(LocalStorage, "put_new", put_new)
            for _ in range(2):
                publish(series, 2, [2])
            series.expire(keep_last=1, dry_run=False)
            put_new(self, path, data)
            raise KeyboardInterrupt
        put_new(self, path, data)

    monkeypatch.setattr(LocalStorage, "put_new", stalled)
    with pytest.raises(KeyboardInterrupt):
        publish(series, 2, [3])
    assert (folder(series) / manifest_path(2)).exists()
    for handle in (series, Series(series._storage, series.name)):
        assert handle.versions() == [3]
        with pytest.raises(VersionExpiredError):
            handle.version(2)
        assert [t.manifest.version for t in handle.expired()] == [1, 2]
    age(folder(series) / "manifests", 7200)
    assert series.clean() == [manifest_path(2)]
    assert publish(series, 2, [4]).version == 4
