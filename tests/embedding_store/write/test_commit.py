"""Real processes: killed at every step of a commit, and several publishing at once."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from embedding_store import EmbeddingStore, Series
from embedding_store.storage import local as storage
from tests.embedding_store.helpers import age, files, named_files, publish
from tests.processes import forkserver

TIMEOUT = 600.0
ROWS = 5


@pytest.fixture(scope="module")
def processes() -> multiprocessing.context.BaseContext:
    """Children forked from a server that has imported torch once."""
    return forkserver()


class Killer:
    """Stands in for `os` and `open` in embedding_store.storage; kills this process before the n-th change of the disk,
    a write after its first half."""

    def __init__(self, step: int) -> None:
        self.left = step

    def __getattr__(self, name: str) -> Any:
        function = getattr(os, name)
        return self._counted(function) if name in ("fsync", "link", "replace", "unlink") else function

    def open_file(self, path: Path, mode: str) -> Any:
        return HalfWritten(self._counted(open)(path, mode), self) if "x" in mode else open(path, mode)

    def reached(self) -> bool:
        self.left -= 1
        return self.left == 0

    def _counted(self, function: Callable) -> Callable:
        def call(*arguments: Any) -> Any:
            if self.reached():
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments)

        return call


class HalfWritten:
    """A new file whose write may be the process's last act."""

    def __init__(self, file: BinaryIO, killer: Killer) -> None:
        self.file, self.killer = file, killer

    def write(self, data: Any) -> None:
        view = memoryview(data).cast("B")
        if len(view) >= 64 and self.killer.reached():  # Arrow writes padding in tiny pieces
            self.file.write(view[: len(view) // 2])
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        self.file.write(view)

    def __enter__(self) -> HalfWritten:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def killed_writer(path: Path, step: int, kind: str) -> None:
    """Publish one version, most of whose values are its number, and tag it; or die at `step`."""
    killer = Killer(step)
    storage.os, storage.open = killer, killer.open_file  # type: ignore[assignment, attr-defined]
    series = EmbeddingStore(path).series("user_ctr")
    version = series.versions()[-1] + 1
    if kind == "compaction":
        series.compact()
    else:
        with series.write(
            as_of=1,
            space="ctr-1",
            duplicates="last",
            rows_per_batch=3,
            base=version - 1 if kind == "delta" else None,
        ) as writer:
            writer.append(torch.tensor([*range(ROWS), 0]), torch.full((ROWS + 1, 3), float(version)))
            if kind == "delta":
                writer.delete(torch.tensor([100]))
    series.tag("prod", version)


def written(series: Series) -> float:
    """The version that wrote the vectors of the newest one, all of which must say so."""
    snapshot = series.latest()
    snapshot.verify()
    vectors, found = snapshot.load().lookup(torch.arange(ROWS))
    assert bool(found.all())
    assert len(vectors.unique()) == 1, "torn vectors"
    return float(vectors[0, 0])


def run(process: Any) -> int:
    process.start()
    process.join(TIMEOUT)
    if process.is_alive():
        process.kill()
        pytest.fail(f"a writer did not end within {TIMEOUT} s")
    return process.exitcode


@pytest.mark.parametrize("kind", ["whole", "delta", "compaction"])
def test_kill_at_every_step(tmp_path: Path, processes: Any, kind: str):
    series = EmbeddingStore(tmp_path).create("user_ctr", dim=3)
    publish(series, 1, [*range(ROWS), 100, 101], torch.full((ROWS + 2, 3), 1.0))
    series.tag("prod", 1)
    outcomes = set()
    for step in range(1, 200):
        if kind == "compaction" and series.latest().manifest.base is None:
            with series.write(as_of=1, space="ctr-1", base=series.latest()) as writer:
                writer.append(torch.arange(ROWS), torch.full((ROWS, 3), float(series.versions()[-1] + 1)))
        before = series.versions()
        code = run(processes.Process(target=killed_writer, args=(tmp_path, step, kind)))
        assert code in (0, -signal.SIGKILL), f"step {step}: exit code {code}"
        reader = EmbeddingStore(tmp_path).series("user_ctr")
        after = reader.versions()
        assert after in (before, [*before, before[-1] + 1]), f"step {step}: versions {after} after {before}"
        assert written(reader) == before[-1] + (len(after) > len(before) and kind != "compaction"), f"step {step}"
        tagged = reader.tagged("prod").version
        assert tagged in (*before, after[-1])
        outcomes.add((code, len(after) - len(before), tagged == after[-1]))
        if code == 0:
            break
    else:
        pytest.fail("the writer never got to its end")
    # killed before the manifest; after it, before the tag; after the tag; not at all
    assert {(-9, 1, False), (-9, 1, True), (0, 1, True)} <= outcomes
    assert {outcome[:2] for outcome in outcomes} == {(-9, 0), (-9, 1), (0, 1)}
    assert step > 25
    assert files(series) > named_files(series)
    age(tmp_path, 7200)
    series.clean()
    tags = {path for path in files(series) if path.startswith("tags/")}
    assert files(series) == named_files(series) | tags


def limited_writer(path: Path) -> None:
    """Publish again and again while files may have at most so many bytes: as on a disk that fills up at this point."""
    series, published = EmbeddingStore(path).series("user_ctr"), 0
    for limit in range(600, 12_000, 600):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            publish(series, 1, [*range(200), 0], duplicates="last", rows_per_batch=50)
            published += 1
        except OSError as error:
            assert error.errno == errno.EFBIG  # noqa: PT017 (not under pytest)
    assert 0 < published < 15


def test_a_disk_that_is_full_at_any_point(tmp_path: Path, processes: Any):
    series = EmbeddingStore(tmp_path).create("user_ctr", dim=3)
    assert run(processes.Process(target=limited_writer, args=(tmp_path,))) == 0
    for snapshot in series.history():
        snapshot.verify()
        assert snapshot.rows == 200
    leftovers = {path for path in files(series) - named_files(series) if not path.endswith(".tmp")}
    assert leftovers == set()


def racing_writer(path: Path, barrier: Any, number: int, snapshots: int) -> None:
    """Publish snapshots that all hold ids 10 and 11; the values tell the writer and its turn."""
    series = EmbeddingStore(path).series("user_ctr")
    barrier.wait(TIMEOUT)
    for turn in range(snapshots):
        publish(series, 5, [10, 11], torch.full((2, 3), float(100 * number + turn)), rows_per_batch=1)


def test_writers_at_once_get_a_version_each(tmp_path: Path, processes: Any):
    series = EmbeddingStore(tmp_path).create("user_ctr", dim=3)
    barrier, snapshots = processes.Barrier(2), 10
    writers = [processes.Process(target=racing_writer, args=(tmp_path, barrier, n, snapshots)) for n in (1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(TIMEOUT)
        writer.kill()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert series.versions() == list(range(1, 2 * snapshots + 1))
    published = []
    for snapshot in series.history():
        snapshot.verify()
        vectors, found = snapshot.load().lookup(torch.tensor([10, 11]))
        assert found.all()
        assert len(vectors.unique()) == 1
        published.append(int(vectors[0, 0]))
    for number in (1, 2):  # each writer's own snapshots are there, in its order
        assert [v for v in published if v // 100 == number] == [100 * number + turn for turn in range(snapshots)]
    assert files(series) == named_files(series)


def busy_writer(path: Path, barrier: Any, enough: Any) -> None:
    """Publish 30 snapshots, and more until it is enough; the values are the version."""
    series = EmbeddingStore(path).series("user_ctr")
    barrier.wait(TIMEOUT)
    while (version := series.latest().version + 1) < 32 or not enough.is_set():
        publish(series, version, [10, 11], torch.full((2, 3), float(version)), rows_per_batch=1)


def test_readers_see_whole_snapshots_while_one_publishes(tmp_path: Path, processes: Any):
    series = EmbeddingStore(tmp_path).create("user_ctr", dim=3)
    publish(series, 1, [10, 11], torch.full((2, 3), 1.0))
    barrier, seen_enough = processes.Barrier(2), processes.Event()
    writer = processes.Process(target=busy_writer, args=(tmp_path, barrier, seen_enough), daemon=True)
    writer.start()
    barrier.wait(TIMEOUT)
    seen = set()
    while writer.is_alive():
        snapshot = series.latest()
        vectors, found = snapshot.load(verify=True).lookup(torch.tensor([10, 11]))
        assert found.all()
        assert float(vectors.min()) == float(vectors.max()) == snapshot.version
        seen.add(snapshot.version)
        if len(seen) > 2:
            seen_enough.set()
    writer.join(TIMEOUT)
    assert writer.exitcode == 0
