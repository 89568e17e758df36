"""Cleaning up what expired snapshots and dead writers leave."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from embedding_store import (
    EmbeddingStore,
    InvalidArgumentError,
    MissingFileError,
    Series,
    VersionExpiredError,
    VersionNotFoundError,
    times,
)
from embedding_store.format.manifest import Manifest, manifest_path
from embedding_store.history import clean as clean_module
from embedding_store.history.tombstones import TOMBSTONES, gone
from embedding_store.storage.local import LocalStorage
from tests.embedding_store.bare import DATA_BYTES, INDEX_BYTES, age_tombstones, numbers, publish_bare
from tests.embedding_store.helpers import age, files, folder, publish


def test_a_delta_keeps_the_data_of_its_base(series: Series):
    whole = publish_bare(series)
    delta = publish_bare(series, base=whole)
    publish_bare(series, base=delta)
    alone = publish_bare(series)
    publish_bare(series)
    series.tag("prod", 3)
    going = series.expire(keep_last=1)
    assert numbers(going) == [1, 2, 4]
    freed = 2 * INDEX_BYTES + (DATA_BYTES + INDEX_BYTES)  # two bases' indexes, and all of version 4
    assert series.freed_bytes(going) == freed
    assert series.freed_bytes(series.history()) == 5 * (DATA_BYTES + INDEX_BYTES)
    assert numbers(series.expire(keep_last=1, dry_run=False)) == [1, 2, 4]
    assert series.freed_bytes(going) == freed
    age(folder(series), 7200)
    sizes = {path: (folder(series) / path).stat().st_size for path in files(series)}
    age_tombstones(series, 7200)
    deleted = series.clean()
    assert deleted == sorted(
        [alone.index.path.rpartition("/")[0], *(p for m in (whole, delta) for p in (m.index.path, m.index.crc_path))]
    )
    gone = set(sizes) - files(series)
    assert sum(sizes[path] for path in gone if not path.endswith(".crc")) == freed
    for file in series.version(3).manifest.files:
        assert {file.path, file.crc_path} <= files(series)
    assert series.clean() == []


def test_data_stay_for_an_hour(series: Series):
    first = publish_bare(series)
    publish_bare(series)
    age(folder(series), 100_000)
    series.expire(keep_last=1, dry_run=False)
    age_tombstones(series, 1800)
    assert series.clean() == []
    assert series._storage.exists(first.data[0].path)
    age_tombstones(series, 1900)
    assert series.clean(timedelta(hours=3)) == []
    with pytest.raises(InvalidArgumentError, match="grace is 0:59:59; use at least 1:00:00"):
        series.clean(timedelta(minutes=59, seconds=59))
    assert series.clean() == [first.data[0].path.rpartition("/")[0]]
    assert gone(series._storage, 1) is not None


def test_clean_takes_remains_and_leaves_what_is_not_its_own(store: EmbeddingStore, series: Series):
    manifest = publish_bare(series)
    for name in ("dead", "fresh"):
        (folder(series) / "data" / name / "deep").mkdir(parents=True)
        (folder(series) / "data" / name / "vectors-00000.arrow").write_bytes(b"x")
        (folder(series) / "data" / name / "deep" / "more").write_bytes(b"x")
    (folder(series) / "data" / "stray.txt").write_bytes(b"x")
    (folder(series) / "manifests" / ".00000002.json.0a.tmp").write_bytes(b"x")
    unneeded = manifest.data[0].path.replace("00000", "00001")
    (folder(series) / unneeded).write_bytes(b"x")
    age(folder(series), 7200)
    age(folder(series) / "data" / "fresh" / "deep", 1800)
    assert store.clean(timedelta(hours=3)) == []
    expected = ["data/dead", "manifests/.00000002.json.0a.tmp", unneeded]
    assert store.clean() == sorted(f"user_ctr/{path}" for path in expected)
    assert store.clean() == []
    assert (folder(series) / "data" / "stray.txt").exists()
    assert (folder(series) / "data" / "fresh" / "vectors-00000.arrow").exists()


def test_clean_deletes_nothing_when_a_tombstone_cannot_be_read(series: Series):
    for _ in range(6):
        publish_bare(series)
    series.expire(keep_last=3, dry_run=False)
    path = folder(series) / TOMBSTONES.path(2)
    age(folder(series), 7200)
    path.write_bytes(path.read_bytes()[:-9])
    before = files(series)
    with pytest.raises(Exception, match=r"expired/00000002\.json"):
        series.clean()
    assert files(series) == before


def test_a_table_outlives_its_version_and_a_handle_its_manifest(series: Series):
    publish(series, 1, [1, 2], torch.ones(2, 3))
    opened, table = series.version(1), series.version(1).load()
    publish(series, 2, [1, 2], torch.zeros(2, 3))
    age(folder(series), 7200)
    series.expire(keep_last=1, dry_run=False)
    series.clean()
    assert opened.load(verify=True).lookup(torch.tensor([1, 2]))[0].tolist() == [[1, 1, 1], [1, 1, 1]]
    age_tombstones(series, 7200)
    assert len(series.clean()) == 1
    assert table.lookup(torch.tensor([2, 1]))[0].tolist() == [[1, 1, 1], [1, 1, 1]]
    with pytest.raises(VersionExpiredError, match="version 1"):
        opened.load()


@pytest.mark.parametrize(("minutes", "survives"), [(29, True), (31, False)])
def test_a_delta_on_a_base_that_is_expired_meanwhile(
    series: Series, monkeypatch: pytest.MonkeyPatch, minutes: int, survives: bool
):
    publish(series, 1, [1, 2], torch.ones(2, 3))
    publish(series, 1, [9])
    now = times.now()
    monkeypatch.setattr(times, "now", lambda: now)

    def write() -> None:
        with series.write(as_of=2, space="ctr-1", base=1) as writer:
            series.expire(keep_last=1, dry_run=False)
            monkeypatch.setattr(times, "now", lambda: now + minutes * 60_000)
            writer.append(torch.tensor([2, 3]), torch.zeros(2, 3))

    if not survives:
        with pytest.raises(VersionExpiredError, match="version 1 of 'user_ctr', the delta's base, is gone"):
            write()
        assert series.versions() == [2]
        return
    write()
    monkeypatch.undo()
    age(folder(series), 7200)
    age_tombstones(series, 7200)
    series.clean()
    series.latest().verify()
    assert series.latest().load().ids().tolist() == [1, 2, 3]


def test_a_silent_writer_that_commits_after_the_listing_keeps_its_files(
    series: Series, monkeypatch: pytest.MonkeyPatch
):
    publish(series, 1, [1])
    publish(series, 2, [2])
    path, names = folder(series) / manifest_path(2), LocalStorage.names
    content = path.read_bytes()
    path.unlink()  # not committed yet
    age(folder(series), 7200)

    def overtaken(self: LocalStorage, where: str = "") -> list[str]:
        found = names(self, where)
        if where == "manifests":
            path.write_bytes(content)
        return found

    monkeypatch.setattr(LocalStorage, "names", overtaken)
    assert series.clean() == []
    series.latest().verify()


def test_a_writer_that_is_cleaned_away_during_its_commit_takes_it_back(series: Series, monkeypatch: pytest.MonkeyPatch):
    put_new = LocalStorage.put_new

    def stalled(self: LocalStorage, path: str, data: bytes) -> None:
        if path == manifest_path(1):
            monkeypatch.setattr(LocalStorage, "put_new", put_new)
            age(folder(series), 7200)
            assert len(series.clean()) == 1
        put_new(self, path, data)

    monkeypatch.setattr(LocalStorage, "put_new", stalled)
    with pytest.raises(MissingFileError, match="does not exist"):
        publish(series, 1, [1])
    assert series.versions() == []
    assert publish(series, 1, [1]).version == 2


def test_empty_folders_go_once_they_are_old(series: Series):
    publish_bare(series)
    for name in ("data/dead", "data/fresh", "schemas"):
        (folder(series) / name).mkdir()
    age(folder(series), 7200)
    age(folder(series) / "data" / "fresh", 1800)
    assert series.clean() == ["data/dead", "schemas"]
    assert series.clean() == []
    assert (folder(series) / "data" / "fresh").is_dir()
    assert series.evolve(dim=2).schema == 2


class Fault(BaseException):
    """Ends a run as a killed process would: nothing catches it."""


class Faulty:
    """Ends the run before its n-th change of the storage."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
        self.left = step
        for name in ("put_new", "delete", "delete_folder"):
            monkeypatch.setattr(LocalStorage, name, self.counted(getattr(LocalStorage, name)))

    def counted(self, function: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            self.left -= 1
            if self.left == 0:
                raise Fault
            function(*arguments)

        return call


@pytest.mark.parametrize("step", range(1, 10))
def test_a_run_may_die_at_any_step(series: Series, step: int):
    manifests = [publish_bare(series)]
    manifests += [publish_bare(series, base=manifests[0]), publish_bare(series), publish_bare(series)]
    series.tag("prod", 2)
    age(folder(series), 7200)
    now = time.time()
    with pytest.MonkeyPatch.context() as monkeypatch:
        Faulty(monkeypatch, step)
        try:
            series.expire(keep_last=1, dry_run=False)
            monkeypatch.setattr(clean_module.time, "time", lambda: now + 7200)
            series.clean()
            died = False
        except Fault:
            died = True
    assert died == (step <= 8)  # what goes; two versions in two steps each; a folder; a base's index and its checksums
    reopened = Series(series._storage, series.name)
    assert reopened.tagged("prod").version == 2
    assert reopened.latest().version == 4
    for snapshot in reopened.history():
        assert {p for f in snapshot.manifest.files for p in (f.path, f.crc_path)} <= files(series)
    reopened.expire(keep_last=1, dry_run=False)
    age(folder(series), 7200)
    age_tombstones(series, 7200)
    reopened.clean()
    assert reopened.versions() == [2, 4]
    needed = {p for m in (manifests[1], manifests[3]) for f in m.files for p in (f.path, f.crc_path)}
    assert {path for path in files(series) if path.startswith("data/")} == needed


class StoreMachine(RuleBasedStateMachine):
    """Publishing, tags, expiring, cleaning and time, against a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = 1_000_000_000_000
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(times, "now", lambda: self.clock)
        self.patch.setattr(clean_module.time, "time", lambda: self.clock / 1000)
        self.series = EmbeddingStore(self.folder.name).create("user_ctr", dim=1)
        self.alive: dict[int, Manifest] = {}
        self.expired: dict[int, tuple[Manifest, int]] = {}
        self.tags: dict[str, int] = {}
        self.last = 0

    def teardown(self) -> None:
        self.patch.undo()
        self.folder.cleanup()

    @rule(delta=st.booleans())
    def publish(self, delta: bool) -> None:
        base = self.alive.get(self.last) if delta else None
        manifest = publish_bare(self.series, base=base)
        for path in (folder(self.series) / manifest.data[-1].path).parent.iterdir():
            os.utime(path, (self.clock / 1000,) * 2)
        self.last += 1
        assert manifest.version == self.last
        self.alive[self.last] = manifest

    @precondition(lambda self: self.last)
    @rule(tag=st.sampled_from(["prod", "canary"]), data=st.data())
    def move(self, tag: str, data: st.DataObject) -> None:
        version = data.draw(st.integers(1, self.last + 1))
        if version in self.alive:
            self.series.tag(tag, version)
            self.tags[tag] = version
        else:
            with pytest.raises(VersionExpiredError if version in self.expired else VersionNotFoundError):
                self.series.tag(tag, version)

    @rule(tag=st.sampled_from(["prod", "canary"]))
    def remove(self, tag: str) -> None:
        if self.tags.pop(tag, None):
            self.series.untag(tag)

    @rule(keep_last=st.integers(1, 3), hours=st.one_of(st.none(), st.integers(0, 3)), dry_run=st.booleans())
    def expire(self, keep_last: int, hours: int | None, dry_run: bool) -> None:
        before = self.clock - 3_600_000 * (hours or 0)
        beyond = sorted(self.alive)[:-keep_last]
        wanted = [v for v in beyond if hours is None or self.alive[v].created < before]
        wanted = [v for v in wanted if v not in self.tags.values()]
        older_than = None if hours is None else timedelta(hours=hours)
        assert numbers(self.series.expire(keep_last=keep_last, older_than=older_than, dry_run=dry_run)) == wanted
        if not dry_run:
            self.expired |= {v: (self.alive.pop(v), self.clock) for v in wanted}

    @rule(minutes=st.sampled_from([1, 59, 61, 150]))
    def wait(self, minutes: int) -> None:
        self.clock += minutes * 60_000

    @rule()
    def clean(self) -> None:
        self.series.clean()
        young = [m for m, at in self.expired.values() if self.clock - at <= 3_600_000]
        needed = {p for m in (*self.alive.values(), *young) for f in m.files for p in (f.path, f.crc_path)}
        stored = {path for path in files(self.series) if path.startswith("data/")}
        assert needed <= stored
        gone = [m for m, at in self.expired.values() if self.clock - at > 3_600_000]
        released = {p for m in gone for f in m.files for p in (f.path, f.crc_path)} - needed
        held = {p.rpartition("/")[0] for m in self.alive.values() if self.clock - m.created < 3_600_000 for p in needed}
        assert all(path.rpartition("/")[0] in held for path in released & stored)

    @invariant()
    def agrees(self) -> None:
        series = Series(self.series._storage, self.series.name)
        assert series.versions() == sorted(self.alive)
        assert {t.manifest.version: t.expired for t in series.expired()} == {
            v: at for v, (_, at) in self.expired.items()
        }
        assert series.tags() == self.tags
        for timestamp in range(self.last + 2):
            older = [version for version in self.alive if version <= timestamp]
            if older:
                assert series.as_of(timestamp).version == max(older)


StoreMachine.TestCase.settings = settings(max_examples=12, stateful_step_count=20, deadline=None)
TestStoreMachine = StoreMachine.TestCase
