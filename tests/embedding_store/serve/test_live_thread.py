"""The thread of a LiveTable: what it gives back, and how it ends."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from embedding_store import (
    EmbeddingStore,
    LiveTable,
    Series,
    Snapshot,
)
from embedding_store.native.mapping import Mapping
from tests.embedding_store.helpers import folder
from tests.embedding_store.serve.following import NEVER, eventually, publish, spoil, version_of


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
        # Other tests of this process may have left some that go meanwhile: connections to a server that has ended.
        assert all(now <= then for now, then in zip(resources(), before, strict=True))


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
on_gpu = LiveTable(series, interval=3600.0)
on_gpu._device = torch.device("cuda", 0)  # as far as it knows
child = os.fork()
assert on_gpu.status.following == bool(child)  # a child has no GPU
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
    quiet = ["-W", "ignore::DeprecationWarning"]  # Python 3.12 warns of a fork amid threads
    command = [sys.executable, *quiet, "-c", PROCESS, str(store.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert (done.returncode, done.stderr) == (0, "")
