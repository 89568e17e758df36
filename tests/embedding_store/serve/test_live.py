"""LiveTable: every lookup is of one version, several series never mix, and a bad version disturbs nobody."""

from __future__ import annotations

import gc
import logging
import math
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from embedding_store import (
    EmbeddingStore,
    InvalidArgumentError,
    LiveTable,
    SchemaChangedError,
    Series,
    Snapshot,
    TagNotFoundError,
    VersionNotFoundError,
)
from embedding_store.native.mapping import Mapping
from tests.embedding_store.helpers import folder

IDS = torch.arange(-500, 500)
NEVER = 3600.0
"""An interval that does not end during a test: only `refresh` looks."""


@pytest.fixture
def items(store: EmbeddingStore) -> Series:
    return store.create("item_ctr", dim=3)


def publish(series: Series, as_of: int | None = None, space: str = "ctr-1") -> Snapshot:
    """A snapshot all of whose values are its version."""
    version = max(series.versions(), default=0) + 1
    with series.write(as_of=version if as_of is None else as_of, space=space) as writer:
        writer.append(IDS, torch.full((len(IDS), series.dim), float(version)))
    return writer.snapshot


def version_of(lookup: Callable) -> float:
    """The version that a whole lookup is of; fails if it is of several or of none."""
    vectors, found = lookup(IDS)
    assert bool(found.all())
    low, high = (float(x) for x in vectors.aminmax())
    assert low == high, f"a lookup of versions {low} and {high}"
    return low


def spoil(snapshot: Snapshot, series: Series) -> None:
    """Flip a bit of every data file."""
    for file in snapshot.manifest.data:
        path = folder(series) / file.path
        path.chmod(0o600)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def eventually(condition: Callable[[], object], seconds: float = 600.0) -> None:
    """Wait until it holds; fail if it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def test_follows_the_newest_version(series: Series):
    publish(series)
    with LiveTable(series, interval=0.01) as live:
        assert version_of(live.lookup) == 1
        publish(series)
        eventually(lambda: live.status.version == 2)
        assert version_of(live.lookup) == 2
        assert live.lookup(IDS, torch.float16)[0].dtype == torch.float16
        status = live.status
    assert (status.as_of, status.space, status.swaps) == (2, "ctr-1", 1)
    assert (status.error, status.waiting, status.following) == (None, None, True)
    assert status.age_ms + 2 >= status.checked > time.time() * 1000 - 60_000
    assert repr(live) == "LiveTable(user_ctr: version 2, following the newest version)"
    assert not live.status.following
    publish(series)
    assert version_of(live.lookup) == 2
    assert live.refresh().version == 3


def test_follows_a_tag_forth_and_back(series: Series):
    for _ in range(3):
        publish(series)
    series.tag("prod", 2)
    with LiveTable(series, tag="prod", interval=NEVER) as live:
        assert version_of(live.lookup) == 2
        series.tag("prod", 3)
        assert live.refresh().version == 3
        series.rollback("prod")
        assert live.refresh().version == 2
        assert version_of(live.lookup) == 2
        series.untag("prod")
        status = live.refresh()
        assert status.version == 2
        assert isinstance(status.error, TagNotFoundError)
        series.tag("prod", 1)
        assert (live.refresh().version, live.status.error, live.status.swaps) == (1, None, 3)


def test_what_cannot_work_is_refused(store: EmbeddingStore, series: Series, items: Series):
    with pytest.raises(VersionNotFoundError, match="nothing to serve: user_ctr has no snapshot yet"):
        LiveTable(series)
    publish(series)
    with pytest.raises(TagNotFoundError, match="'prod'"):
        LiveTable(series, tag="prod")
    with pytest.raises(VersionNotFoundError, match="the newest versions are user 1, item 0; publish"):
        LiveTable({"user": series, "item": items})
    with pytest.raises(InvalidArgumentError, match="series is empty"):
        LiveTable({})
    for interval in (0, -1, math.inf, math.nan, "5", True):
        with pytest.raises(InvalidArgumentError, match="interval is"):
            LiveTable(series, interval=interval)  # type: ignore[arg-type]
    publish(items)
    with LiveTable({"user": series, "item": items}) as live, pytest.raises(InvalidArgumentError, match="user, item"):
        live.lookup(IDS)


def test_every_lookup_of_many_readers_is_of_one_version(series: Series):
    publish(series)
    seen: list[list[float]] = [[], [], []]
    stop = threading.Event()

    def read(mine: list[float]) -> None:
        while not stop.is_set():
            mine.append(version_of(live.lookup))

    with LiveTable(series, interval=0.001) as live, ThreadPoolExecutor() as pool:
        readers = [pool.submit(read, mine) for mine in seen]
        try:
            for version in range(2, 22):
                publish(series)
                if version % 2:  # else the thread may skip it
                    eventually(lambda version=version: all(mine[-1:] == [version] for mine in seen))
        finally:
            stop.set()
        for reader in readers:
            reader.result(30)
    for mine in seen:
        assert mine == sorted(mine)
        assert len(set(mine)) > 10


PUBLISHER = """
import sys, torch
from embedding_store import EmbeddingStore
store = EmbeddingStore(sys.argv[1])
for version in range(2, 22):
    sys.stdin.readline()
    for name in ("user_ctr", "item_ctr")[:: 1 if version % 2 else -1]:
        with store.series(name).write(as_of=version, space="ctr-1") as writer:
            writer.append(torch.arange(-500, 500), torch.full((1000, 3), float(version)))
"""


def test_several_series_never_mix_while_a_process_publishes_them_in_turn(
    store: EmbeddingStore, series: Series, items: Series
):
    publish(series)
    publish(items)
    command = [sys.executable, "-c", PUBLISHER, str(store.path)]
    with (
        LiveTable({"user": series, "item": items}, interval=0.001) as live,
        subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as child,
    ):
        assert child.stdin is not None
        for version in range(2, 22):
            child.stdin.write("\n")
            child.stdin.flush()
            deadline = time.monotonic() + 600
            while True:
                tables = live.tables()
                user = version_of(tables["user"].lookup)
                assert user == version_of(tables["item"].lookup)
                if user == version:
                    break
                assert time.monotonic() < deadline
        assert live.status.error is None
        assert child.wait(600) == 0


def test_a_generation_needs_the_same_version_as_of_and_space(series: Series, items: Series):
    for one in (series, items):
        publish(one, 10)
    with LiveTable({"user": series, "item": items}, interval=NEVER) as live:
        publish(series, 20)
        assert (live.refresh().version, live.status.waiting) == (1, "the newest versions are user 2, item 1")
        publish(items, 21)
        assert live.refresh().version == 1
        assert live.status.waiting == "as_of of version 2 is 20 of user, 21 of item"
        publish(series, 30, "ctr-1")
        publish(items, 30, "ctr-2")
        assert live.refresh().version == 1
        assert live.status.waiting == "space of version 3 is 'ctr-1' of user, 'ctr-2' of item"
        publish(series, 40)
        publish(items, 40)
        publish(series, 50)  # item 5 is not there yet: version 4 is the newest that both have
        assert (live.refresh().version, live.status.waiting, live.status.error) == (4, None, None)
        assert {name: table.manifest.version for name, table in live.tables().items()} == {"user": 4, "item": 4}


def test_tags_of_several_series_must_agree(series: Series, items: Series):
    for one in (series, items):
        publish(one)
        publish(one)
        one.tag("prod", 1)
    with LiveTable({"user": series, "item": items}, tag="prod", interval=NEVER) as live:
        series.tag("prod", 2)
        assert (live.refresh().version, live.status.waiting) == (1, "tag 'prod': version is 2 of user, 1 of item")
        items.tag("prod", 2)
        assert (live.refresh().version, live.status.waiting) == (2, None)
        assert version_of(live.tables()["item"].lookup) == 2


def test_a_corrupt_version_disturbs_nobody_and_is_told_once(series: Series, caplog: pytest.LogCaptureFixture):
    publish(series)
    series.tag("prod", 1)
    with LiveTable(series, tag="prod", interval=0.01) as live, caplog.at_level(logging.WARNING):
        spoil(publish(series), series)
        series.tag("prod", 2)
        eventually(lambda: live.status.error is not None)
        checked = live.status.checked
        live.refresh()
        eventually(lambda: live.status.checked > checked)
        assert version_of(live.lookup) == 1
        assert "vectors-00000" in str(live.status.error)
        assert len([record for record in caplog.records if "vectors-00000" in record.message]) == 1
        series.tag("prod", publish(series).version)
        eventually(lambda: live.status.version == 3)
        assert live.status.error is None
        assert version_of(live.lookup) == 3


def test_a_version_that_failed_is_not_tried_at_every_interval(series: Series, monkeypatch: pytest.MonkeyPatch):
    loads = []

    def refuse(*_: object) -> None:
        loads.append(time.monotonic())
        raise OSError("no such disk")

    publish(series)
    with LiveTable(series, interval=0.002) as live:
        monkeypatch.setattr(Snapshot, "load", refuse)
        publish(series)
        eventually(lambda: len(loads) == 5)
    assert loads[4] - loads[3] >= 8 * 0.002  # the fourth failure costs eight intervals
    monkeypatch.undo()
    assert live.refresh().version == 2


def test_missing_files_and_an_expired_version_disturb_nobody(series: Series):
    publish(series)
    with LiveTable(series, interval=NEVER) as live:
        gone = publish(series)
        for file in gone.manifest.data:
            (folder(series) / file.path).unlink()
        status = live.refresh()
        assert status.version == 1
        assert status.error is not None
        publish(series)
        publish(series)
        publish(series)
        assert live.refresh().version == 5
        assert [s.version for s in series.expire(keep_last=1, dry_run=False)] == [1, 2, 3, 4]
        assert version_of(live.lookup) == 5


def test_another_schema_is_refused_not_followed(series: Series):
    publish(series)
    with LiveTable(series, interval=NEVER) as live:
        publish(series.evolve(dim=5))
        status = live.refresh()
        assert status.version == 1
        assert isinstance(status.error, SchemaChangedError)
        assert "version 2 of user_ctr has dim 5, dtype float32" in str(status.error)
        assert live.lookup(IDS)[0].shape == (len(IDS), 3)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_memory_of_the_old_version_is_given_back(series: Series):
    def mapped(snapshot: Snapshot) -> bool:
        maps = Path("/proc/self/maps").read_text()
        return any(file.path in maps for file in snapshot.manifest.data)

    first = publish(series)
    with LiveTable(series, interval=NEVER) as live:
        held = live.tables()
        second = publish(series)
        live.refresh()
        gc.collect()
        assert mapped(first)  # a reader still has it
        assert version_of(held["user_ctr"].lookup) == 1
        del held
        assert not mapped(first)
        assert mapped(second)
        spoil(third := publish(series), series)
        assert live.refresh().error is not None
        assert not mapped(third)
        publish(series)
        with LiveTable(series, interval=0.01) as other:
            table = weakref.ref(other.tables()["user_ctr"])
            publish(series)
            eventually(lambda: other.status.version == 5 and table() is None)
    del live
    assert not mapped(second)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_thousands_of_swaps_leak_nothing(series: Series):
    publish(series)
    publish(series)
    series.tag("prod", 1)

    def resources() -> tuple[int, int, int]:
        gc.collect()
        maps = Path("/proc/self/maps").read_text().count(str(folder(series)))
        return len(os.listdir("/proc/self/fd")), threading.active_count(), maps

    with LiveTable(series, tag="prod", interval=NEVER) as live:
        live.refresh()
        before = resources()
        for swap in range(2000):
            version = 2 - swap % 2
            series.tagged = lambda _, version=version: series.version(version)  # type: ignore[method-assign]
            assert live.refresh().version == version
        assert live.status.swaps == 2000
        assert resources() == before


def test_the_thread_ends_with_close_and_with_the_last_reference(series: Series):
    publish(series)
    closed, dropped = LiveTable(series, interval=0.001), LiveTable(series, interval=NEVER)
    threads = closed._thread, dropped._thread
    assert all(thread.is_alive() and thread.daemon for thread in threads)
    closed.close()
    closed.close()
    del dropped
    assert not any(thread.is_alive() for thread in threads)


def test_close_breaks_off_a_check(series: Series, monkeypatch: pytest.MonkeyPatch):
    publish(series)
    begun = threading.Event()

    def check_without_end(_: Mapping, progress: Callable[[int, int], bool], *, background: bool) -> None:
        assert background
        begun.set()
        while progress(0, 1):
            time.sleep(0.001)

    with LiveTable(series, interval=0.001) as live:
        monkeypatch.setattr(Mapping, "check", check_without_end)
        publish(series)
        assert begun.wait(600)
        assert version_of(live.lookup) == 1
    assert not live._thread.is_alive()
    assert (live.status.version, live.status.error) == (1, None)


PROCESS = """
import os, sys, time, torch
from embedding_store import EmbeddingStore, LiveTable
series = EmbeddingStore(sys.argv[1]).series("user_ctr")
live = LiveTable(series, interval=0.001)
closed = LiveTable(series, interval=0.001)
closed.close()
child = os.fork()
if child == 0:
    with series.write(as_of=2, space="ctr-1") as writer:
        writer.append(torch.tensor([1]), torch.full((1, 3), 2.0))
deadline = time.monotonic() + 600
while live.status.version != 2:
    assert time.monotonic() < deadline and live.status.following
    time.sleep(0.001)
assert live.lookup(torch.tensor([1]))[0].tolist() == [[2.0] * 3]
assert closed.status.version == 1 and not closed.status.following
if child:
    assert os.waitpid(child, 0)[1] == 0
"""


def test_a_forked_child_follows_on_its_own_and_both_exit_cleanly(series: Series, store: EmbeddingStore):
    publish(series)
    done = subprocess.run([sys.executable, "-c", PROCESS, str(store.path)], capture_output=True, text=True, timeout=900)
    assert (done.returncode, done.stderr) == (0, "")
