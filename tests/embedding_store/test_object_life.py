"""The life of a series in an object store: moto's S3 server on loopback, where there is no rename."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from embedding_store import EmbeddingStore, SeriesExistsError, Snapshot, VersionExpiredError, hash_keys
from embedding_store.storage.objects import ObjectStorage
from tests.embedding_store.helpers import publish
from tests.s3 import S3_BUCKET


def write(storage: ObjectStorage, path: str, data: bytes) -> None:
    with storage.create(path) as sink:
        sink.write(data)


def uploads(s3: Any) -> int:
    return len(s3.list_multipart_uploads(Bucket=S3_BUCKET).get("Uploads", []))


def test_the_whole_life_of_a_series(url: str, tmp_path: Path):
    store = EmbeddingStore(url, cache=tmp_path / "cache")
    assert (store.path, store.location, store.list()) == (None, url, [])
    series = store.create("user_ctr", dim=3)
    with pytest.raises(SeriesExistsError):
        store.create("user_ctr", dim=3)
    publish(series, 1, [1, 2, 3], torch.ones(3, 3), rows_per_batch=1)
    with series.write(as_of=2, space="ctr-1", base=1) as writer:
        writer.append(torch.tensor([3, 4]), torch.full((2, 3), 2.0))
        writer.delete(torch.tensor([1]))
    series.tag("prod", 1)
    series.tag("prod", 2, expected=1)
    assert series.rollback("prod").version == 1

    reader = EmbeddingStore(url, cache=tmp_path / "cold").series("user_ctr")
    assert [(s.version, s.rows, s.tags) for s in reader.history()] == [(1, 3, ("prod",)), (2, 3, ())]
    reader.latest().verify()
    table = reader.latest().load()
    vectors, found = table.lookup(torch.tensor([1, 2, 3, 4]))
    assert found.tolist() == [False, True, True, True]
    assert vectors[:, 0].tolist() == [0, 1, 2, 2]
    changes = reader.diff(1, 2)
    assert (changes.added, changes.removed, changes.kept, changes.moved) == (1, 1, 2, 1)

    assert series.compact().version == 3
    series.untag("prod")
    assert [s.version for s in series.expire(keep_last=1)] == [1, 2]
    assert reader.versions() == [1, 2, 3]
    series.expire(keep_last=1, dry_run=False)
    assert reader.versions() == [3]
    with pytest.raises(VersionExpiredError):
        reader.version(2)
    assert series.clean() == []  # nothing is an hour old
    assert reader.latest().load().lookup(torch.tensor([4]))[0].tolist() == [[2, 2, 2]]
    assert publish(series, 2, [5]).version == 4
    assert store.list() == ["user_ctr"]


def test_clean_after_an_hour(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    began = time.time()
    series = EmbeddingStore(url, cache=tmp_path / "cache").create("user_ctr", dim=3)
    for as_of in (1, 2):
        publish(series, as_of, [as_of])
    write(series._storage, "data/dead/vectors-00000.arrow", b"x")
    series.version(1).load()
    series.expire(keep_last=1, dry_run=False)
    ended = time.time()
    monkeypatch.setattr(time, "time", lambda: began + 3500)
    assert series.clean() == []
    monkeypatch.setattr(time, "time", lambda: ended + 3700)
    deleted = series.clean()
    assert len(deleted) == 2
    assert "data/dead" in deleted
    monkeypatch.undo()
    assert len(series._storage.names("data")) == 1
    assert series.latest().load().ids().tolist() == [2]
    with pytest.raises(VersionExpiredError):
        Snapshot(series._storage, series.expired()[0].manifest).load()


def test_a_series_of_text(url: str, tmp_path: Path):
    series = EmbeddingStore(url, cache=tmp_path / "cache").create("film", dim=2, dtype="int8", ids="text")
    with series.write(as_of=1, space="s") as writer:
        writer.append(["alien", "brazil"], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    vectors, found = (
        EmbeddingStore(url, cache=tmp_path / "cold")
        .series("film")
        .latest()
        .load()
        .lookup(hash_keys(["brazil", "casablanca"]))
    )
    assert found.tolist() == [True, False]
    assert vectors.tolist() == [pytest.approx([3.0, 4.0], abs=0.01), [0.0, 0.0]]


def test_an_aborted_writer_leaves_nothing_to_see(url: str, s3: Any, tmp_path: Path):
    series = EmbeddingStore(url, cache=tmp_path / "cache").create("user_ctr", dim=3)

    def write_a_half() -> None:
        with series.write(as_of=1, space="s", rows_per_batch=2) as writer:
            writer.append(torch.arange(10), torch.ones(10, 3))
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        write_a_half()
    assert [entry.path for entry in series._storage.entries()] == ["series.json"]
    assert uploads(s3) == 0
    assert publish(series, 1, [1]).version == 1


def racing_writer(url: str, cache: Path, barrier: Any, number: int, snapshots: int) -> None:
    """Publish snapshots whose values tell the writer and its turn, and move the tag to each."""
    series = EmbeddingStore(url, cache=cache).series("user_ctr")
    barrier.wait(600)
    for turn in range(snapshots):
        version = publish(series, 5, [10, 11], torch.full((2, 3), float(100 * number + turn))).version
        series.tag("prod", version)


def test_two_processes_that_write_get_a_version_each(url: str, tmp_path: Path):
    series = EmbeddingStore(url, cache=tmp_path / "cache").create("user_ctr", dim=3)
    context = multiprocessing.get_context("spawn")  # they need this process's environment
    barrier, snapshots = context.Barrier(2), 4
    writers = [
        context.Process(target=racing_writer, args=(url, tmp_path / str(n), barrier, n, snapshots)) for n in (1, 2)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(600)
        writer.kill()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert series.versions() == list(range(1, 2 * snapshots + 1))
    published = []
    for snapshot in series.history():
        vectors, found = snapshot.load(verify=True).lookup(torch.tensor([10, 11]))
        assert found.all()
        assert len(vectors.unique()) == 1
        published.append(int(vectors[0, 0]))
    for number in (1, 2):
        assert [v for v in published if v // 100 == number] == [100 * number + turn for turn in range(snapshots)]
    moves = [move.version for move in series.moves("prod")]
    assert sorted(moves) == series.versions()
    assert series.tagged("prod").version == moves[-1]
