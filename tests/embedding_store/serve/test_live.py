"""LiveTable: every lookup is of one version, several series never mix, and a bad version disturbs nobody."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

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
    times,
)
from embedding_store.serve.live import Generation
from tests.embedding_store.helpers import folder
from tests.embedding_store.serve.following import IDS, NEVER, eventually, publish, spoil, version_of


@pytest.fixture
def items(store: EmbeddingStore) -> Series:
    return store.create("item_ctr", dim=3)


def test_follows_the_newest_version(series: Series):
    began = times.now()
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
    assert status.age_ms + 2 >= status.checked >= began
    assert repr(live) == "LiveTable(user_ctr: version 2, following the newest version)"
    assert not live.status.following
    publish(series)
    assert version_of(live.lookup) == 2
    assert live.refresh().version == 3


def test_a_status_is_of_one_moment(series: Series, monkeypatch: pytest.MonkeyPatch):
    """Lookups may be of the next version before it says so, however long the thread is held up in between."""
    served, go_on, serve = threading.Event(), threading.Event(), LiveTable._serve

    def held_up(live: LiveTable, generation: Generation) -> None:
        serve(live, generation)
        served.set()
        go_on.wait(600)

    publish(series)
    with LiveTable(series, interval=0.001) as live:
        monkeypatch.setattr(LiveTable, "_serve", held_up)
        publish(series)
        assert served.wait(600)
        looked_up, status = version_of(live.lookup), live.status
        go_on.set()
        assert (looked_up, status.version, status.as_of, status.swaps) == (2, 1, 1, 0)
        eventually(lambda: live.status.version == 2)
        assert (live.status.as_of, live.status.swaps, live.status.error) == (2, 1, None)


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
            eventually(lambda: all(seen))  # the first version too, however late a reader begins
            for version in range(2, 22):
                publish(series)
                if version % 2:  # else the thread may skip it
                    eventually(lambda version=version: all(mine[-1:] == [version] for mine in seen))
        finally:
            stop.set()
        for reader in readers:
            reader.result(600)
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

    def refuse(*_: object, **__: object) -> None:
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
