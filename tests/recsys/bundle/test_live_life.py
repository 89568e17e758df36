"""A bundle that follows its folder: what it reads while that changes, its pipeline, its memory, its end."""

from __future__ import annotations

import gc
import itertools
import math
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch import Tensor

from embedding_store import EmbeddingStore
from embedding_store.native.mapping import Mapping
from recsys.bundle import LiveBundle, load_bundle
from recsys.bundle import bundle as loading
from recsys.bundle.manifest import BundleError, Manifest
from recsys.bundle.repin import repin
from recsys.bundle.write import train_bundle
from recsys.data.errors import DataError
from recsys.folders import bundle_folder
from recsys.models.vocabulary import Vocabulary
from tests.recsys.bundle.conftest import ARM, CONFIG
from tests.recsys.bundle.live import OFTEN_S, Answer, Place, answers_of, same, until
from tests.recsys.bundle.test_bundle import HISTORIES
from tests.recsys.downstream.example import publish_vectors


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """What happens once each, between the check of a bundle's files and the load of its program."""
    events: list[Callable[[], object]] = []
    program = loading._program

    def load(*arguments: object) -> Callable[..., Tensor]:
        if events:
            events.pop(0)()
        return program(*arguments)

    monkeypatch.setattr(loading, "_program", load)
    return events


def test_a_link_that_is_switched_while_a_bundle_is_read(
    place: Place, requests: list[pa.Table], said: dict[str, list[Answer]], meanwhile: list[Callable[[], object]]
) -> None:
    """What was read is one bundle, and is not taken for the one that the link points to now."""
    place.deploy("b")
    meanwhile.append(lambda: place.deploy("a"))
    live = place.serve(interval_s=0)
    assert all(map(same, answers_of(live.bundle, requests), said["b"]))
    assert live.refresh()
    assert all(map(same, answers_of(live.bundle, requests), said["a"]))
    place.deploy("b")
    meanwhile.append(lambda: place.deploy("a"))
    assert live.refresh()
    assert live.refresh()
    assert all(map(same, answers_of(live.bundle, requests), said["a"]))
    assert not live.refresh()
    assert live.swaps == 3


def test_a_folder_that_is_replaced_while_it_is_read_is_read_again(
    place: Place, requests: list[pa.Table], said: dict[str, list[Answer]], meanwhile: list[Callable[[], object]]
) -> None:
    """The manifest of one bundle and the program of another would make a third."""
    for name in "ab":
        shutil.copytree(place.folder / name, place.folder / f"new {name}")
    live = place.serve(interval_s=0)

    def swap(name: str) -> None:
        shutil.rmtree(place.folder / "a")
        (place.folder / f"new {name}").rename(place.folder / "a")

    repin(place.folder / "a", store=place.store)
    meanwhile.append(lambda: swap("b"))
    assert not live.refresh()
    assert isinstance(live.error, BundleError)
    assert "were replaced while they were read: load it again" in str(live.error)
    assert live.refresh()
    assert live.error is None
    assert all(map(same, answers_of(live.bundle, requests), said["b"]))


def test_a_request_that_is_refused_is_answered_with_its_error(place: Place, requests: list[pa.Table]) -> None:
    with place.serve(interval_s=0) as live:
        wanted = answers_of(live.bundle, requests)
        asked = [*requests[:2], requests[0].drop_columns(["price"]), *requests[2:]]
        found = list(live.answers(asked))
        refused = found.pop(2)
        assert isinstance(refused, DataError)
        assert "price" in str(refused)
        assert all(map(same, found, wanted))
        assert list(live.answers([])) == []


def test_an_answer_does_not_wait_for_the_next_request_to_come(
    place: Place, requests: list[pa.Table], said: dict[str, list[Answer]]
) -> None:
    """A caller may ask when it has the answer; and each request is of the bundle that was there when it came."""
    answered = threading.Event()
    live = place.serve(interval_s=0)

    def asked() -> Iterator[pa.Table]:
        yield requests[0]
        assert answered.wait(600)
        place.deploy("b")
        assert live.refresh()
        yield requests[0]
        raise ConnectionError("no more")

    found = live.answers(asked())
    assert same(next(found), said["a"][0])
    answered.set()
    assert same(next(found), said["b"][0])
    with pytest.raises(ConnectionError, match="no more"):
        next(found)


def test_answers_that_nobody_wants_any_more_leave_no_thread(place: Place, requests: list[pa.Table]) -> None:
    live = place.serve(interval_s=0)
    before = set(threading.enumerate())
    found = live.answers(itertools.cycle(requests))
    next(found)
    assert set(threading.enumerate()) - before
    found.close()
    assert not set(threading.enumerate()) - before
    assert same(live.predict(requests[0]), live.bundle.predict(requests[0]))


def test_the_memory_of_the_one_before_is_given_back(place: Place, requests: list[pa.Table]) -> None:
    """Without a garbage collection, which would stop all threads."""
    gc.collect()
    gc.disable()
    try:
        with place.serve() as live:
            live.predict(requests[0])
            bundle = live.bundle
            held = [bundle, *bundle._program.parameters(), bundle._features._tables[0][0]]
            gone = [weakref.ref(x) for x in held]
            del bundle, held
            place.deploy("b")
            until(lambda: not any(reference() is not None for reference in gone))
            assert live.swaps == 1
            assert same(live.predict(requests[0]), live.bundle.predict(requests[0]))
    finally:
        gc.enable()


def test_what_failed_is_given_back_too(place: Place, meanwhile: list[Callable[[], object]]) -> None:
    """An error's frames hold nothing, not even one that is in a circle with itself, as they all are from Python 3.12 on
    once somebody has looked at their variables."""
    live = place.serve(interval_s=0)
    place.deploy("b")
    loaded = list[weakref.ref[Vocabulary]]()

    def fail() -> None:
        frame = sys._getframe()  # noqa: F841  # the circle
        loaded.extend(weakref.ref(x) for x in gc.get_objects() if type(x) is Vocabulary and x not in others)
        raise OSError("gone")

    gc.collect()  # what other tests have left
    others = weakref.WeakSet(x for x in gc.get_objects() if type(x) is Vocabulary)
    meanwhile.append(fail)
    gc.disable()
    try:
        assert not live.refresh()
        assert loaded
        assert not [vocabulary() for vocabulary in loaded if vocabulary() is not None]
    finally:
        gc.enable()
    assert isinstance(live.error, OSError)
    assert live.error.__traceback__ is None
    assert live.refresh()
    assert live.error is None


def test_it_closes_while_it_checks(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = threading.Event()

    def check_without_end(_: Mapping, progress: Callable[[int, int], bool], *, background: bool) -> None:
        assert background
        begun.set()
        while progress(0, 1):
            time.sleep(OFTEN_S)

    with place.serve() as live:
        monkeypatch.setattr(Mapping, "check", check_without_end)
        place.deploy("b")
        assert begun.wait(600)
    assert not live._thread.is_alive()
    assert (live.swaps, live.error) == (0, None)
    monkeypatch.undo()
    assert live.refresh()


def test_the_thread_ends_with_the_last_reference(place: Place) -> None:
    live = place.serve()
    thread = live._thread
    assert thread.is_alive()
    del live
    until(lambda: not thread.is_alive())


def test_it_serves_on_from_versions_that_have_expired(
    place: Place, data: Path, tmp_path: Path, requests: list[pa.Table]
) -> None:
    """Those of histories too, which are opened beforehand."""
    arms = [replace(arm, **HISTORIES["mean"]) if arm.series else arm for arm in CONFIG.arms]
    train_bundle(replace(CONFIG, arms=tuple(arms)), ARM, data, tmp_path / "out", str(place.store))
    live = LiveBundle(bundle_folder(tmp_path / "out"), interval_s=0)
    wanted = answers_of(load_bundle(bundle_folder(tmp_path / "out")), requests)
    publish_vectors(data, place.store, later_ms=2000)
    for name in ("user_ctr", "item_ctr"):
        EmbeddingStore(place.store).series(name).expire(keep_last=1, dry_run=False)
    with pytest.raises(BundleError, match="expired"):
        load_bundle(bundle_folder(tmp_path / "out"))
    assert all(map(same, answers_of(live.bundle, requests), wanted))


def test_a_figure_that_is_nan_is_no_change(place: Place) -> None:
    manifest = Manifest.load(place.link)
    task = replace(manifest.tasks[0], validation={**manifest.tasks[0].validation, "auc": math.nan})
    replace(manifest, tasks=(task, *manifest.tasks[1:])).save(place.link)
    assert not place.serve(interval_s=0).refresh()


@pytest.mark.parametrize("interval_s", [-1, math.nan, math.inf])
def test_a_bad_interval_is_named(place: Place, interval_s: float) -> None:
    with pytest.raises(ValueError, match="interval_s is"):
        place.serve(interval_s=interval_s)


def test_bundles_are_loaded_by_several_threads(place: Place, requests: list[pa.Table]) -> None:
    """A process may serve several rankers."""
    found = list[Answer]()
    wanted = load_bundle(place.link, store=place.store).predict(requests[0])
    threads = [
        threading.Thread(target=lambda: found.append(place.serve(interval_s=0).predict(requests[0]))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [same(answer, wanted) for answer in found] == [True] * 4


PROCESS = """
import os, sys, time
import pyarrow.parquet as pq, torch
from pathlib import Path
from recsys.bundle import LiveBundle
torch.set_num_threads(1)  # OpenMP's threads do not outlive a fork
folder = Path(sys.argv[1])
live, closed = (LiveBundle(folder / "deployed", store=folder / "store", interval_s=0.001) for _ in range(2))
closed.close()
on_gpu = LiveBundle(folder / "deployed", store=folder / "store", interval_s=3600.0)
on_gpu._device = torch.device("cuda", 0)  # as far as it knows
rows = pq.read_table(folder / "rows.parquet")
before = live.predict(rows)["ctr"]
child = os.fork()
assert on_gpu._thread.is_alive() == bool(child)  # a child has no GPU
if child == 0:
    (folder / "next").symlink_to(folder / "b")
    (folder / "next").replace(folder / "deployed")
deadline = time.monotonic() + 600
while not live.swaps:
    assert time.monotonic() < deadline
    time.sleep(0.001)
assert not torch.equal(live.predict(rows)["ctr"], before)
assert torch.equal(closed.predict(rows)["ctr"], before) and closed.refresh()
if child:
    assert os.waitpid(child, 0)[1] == 0
"""


def test_a_forked_child_follows_on_its_own_and_both_exit_cleanly(place: Place, requests: list[pa.Table]) -> None:
    pq.write_table(requests[0], place.folder / "rows.parquet")
    command = [sys.executable, "-c", PROCESS, str(place.folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
