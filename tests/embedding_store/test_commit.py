"""Real processes: killed at every step of a commit, and several publishing at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from embedding_store import EmbeddingStore, storage

from .helpers import age, files, named_files, publish

TIMEOUT = 60.0
ROWS = 5


@pytest.fixture(scope="module")
def processes() -> multiprocessing.context.BaseContext:
    """Children forked from a server that has imported torch once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", __name__])
    return context


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


def killed_writer(path: Path, step: int, version: int) -> None:
    """Publish `version`, all of whose values are its number, with a duplicate, and tag it; or die at `step`."""
    killer = Killer(step)
    storage.os, storage.open = killer, killer.open_file  # type: ignore[assignment, attr-defined]
    series = EmbeddingStore(path).series("user_ctr")
    ids = [*range(ROWS), 0]
    vectors = torch.full((ROWS + 1, 3), float(version))
    publish(series, version, ids, vectors, duplicates="last", rows_per_file=3)
    series.tag("prod", version)


def run(process: Any) -> int:
    process.start()
    process.join(TIMEOUT)
    if process.is_alive():
        process.kill()
        pytest.fail(f"a writer did not end within {TIMEOUT} s")
    return process.exitcode


def test_kill_at_every_step(tmp_path: Path, processes: Any):
    series = EmbeddingStore(tmp_path).create("user_ctr", dim=3)
    publish(series, 1, list(range(ROWS)), torch.full((ROWS, 3), 1.0))
    series.tag("prod", 1)
    outcomes = set()
    for step in range(1, 200):
        before = series.versions()
        code = run(processes.Process(target=killed_writer, args=(tmp_path, step, before[-1] + 1)))
        assert code in (0, -signal.SIGKILL), f"step {step}: exit code {code}"
        reader = EmbeddingStore(tmp_path).series("user_ctr")
        after = reader.versions()
        assert after in (before, [*before, before[-1] + 1]), f"step {step}: versions {after} after {before}"
        reader.latest().verify()
        vectors, found = reader.latest().load().lookup(torch.arange(ROWS))
        assert found.all()
        assert bool((vectors == after[-1]).all()), f"step {step}: torn vectors"
        tagged = reader.tagged("prod").version
        assert tagged in (*before, after[-1])
        outcomes.add((code, len(after) - len(before), tagged == after[-1]))
        if code == 0:
            break
    else:
        pytest.fail("the writer never got to its end")
    # killed before the manifest; after it, before the tag; after the tag; not at all
    assert outcomes == {(-9, 0, True), (-9, 1, False), (-9, 1, True), (0, 1, True)}
    assert step > 25
    assert files(series) > named_files(series)
    age(tmp_path, 7200)
    series.clean()
    assert files(series) == named_files(series) | {"tags/prod.json"}


def racing_writer(path: Path, barrier: Any, number: int, snapshots: int) -> None:
    """Publish snapshots that all hold ids 10 and 11; the values tell the writer and its turn."""
    series = EmbeddingStore(path).series("user_ctr")
    barrier.wait(TIMEOUT)
    for turn in range(snapshots):
        publish(series, 5, [10, 11], torch.full((2, 3), float(100 * number + turn)), rows_per_file=1)


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


def test_readers_see_whole_snapshots_while_one_publishes(tmp_path: Path, processes: Any):
    series = EmbeddingStore(tmp_path).create("user_ctr", dim=3)
    publish(series, 1, [10, 11], torch.full((2, 3), 1.0))
    barrier = processes.Barrier(2)
    writer = processes.Process(target=racing_writer, args=(tmp_path, barrier, 7, 30))
    writer.start()
    barrier.wait(TIMEOUT)
    seen = set()
    while writer.is_alive():
        snapshot = series.latest()
        vectors, found = snapshot.load(verify=True).lookup(torch.tensor([10, 11]))
        assert found.all()
        assert (
            float(vectors.min()) == float(vectors.max()) == (1.0 if snapshot.version == 1 else 698.0 + snapshot.version)
        )
        seen.add(snapshot.version)
    writer.join(TIMEOUT)
    assert writer.exitcode == 0
    assert len(seen) > 2
