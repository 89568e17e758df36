"""The cache before an object store: what comes in is checked, what changes is fetched anew, and a host fetches once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from embedding_store import (
    ChecksumError,
    EmbeddingStore,
    FileSizeError,
    LiveTable,
    MissingFileError,
    Snapshot,
    StorageAccessError,
)
from embedding_store.native.mapping import BLOCK, crc32c_blocks
from embedding_store.storage import objects
from embedding_store.storage.objects import ObjectStorage, default_cache
from tests.embedding_store.helpers import publish
from tests.s3 import S3_BUCKET


@pytest.fixture
def storage(url: str, tmp_path: Path) -> ObjectStorage:
    return ObjectStorage(url, tmp_path / "cache")


@pytest.fixture
def snapshot(url: str, tmp_path: Path) -> Snapshot:
    """A delta: an index, an overlay and two data files, read through an empty cache."""
    series = EmbeddingStore(url, cache=tmp_path / "writers").create("user_ctr", dim=64)
    publish(series, 1, list(range(1000)), torch.ones(1000, 64))
    publish(series, 2, [1], torch.full((1, 64), 2.0), base=1)
    return EmbeddingStore(url, cache=tmp_path / "cache").series("user_ctr").latest()


def write(storage: ObjectStorage, path: str, data: bytes) -> None:
    with storage.create(path) as sink:
        sink.write(data)


def fetch(storage: ObjectStorage, path: str, data: bytes) -> Path:
    return storage.local(path, len(data), crc32c_blocks(data))


def cached(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())


def damage(snapshot: Snapshot) -> dict[Path, bytes]:
    """Flip a bit in the last quarter of each cached file, in place; returns what they held."""
    before = {}
    for file in snapshot.manifest.files:
        local = snapshot._storage.local(file.path, file.bytes, None)
        before[local] = local.read_bytes()
        with open(local, "r+b") as opened:
            position = len(before[local]) * 3 // 4 if file in snapshot.manifest.data else 64
            opened.seek(position)
            opened.write(bytes([before[local][position] ^ 1]))
    return before


def together(count: int, run: Callable[[], None]) -> None:
    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_reads_go_through_the_cache(storage: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(objects, "RANGE_BYTES", BLOCK)
    data = os.urandom(5 * BLOCK + 123)
    write(storage, "data/one/a", data)
    file = fetch(storage, "data/one/a", data)
    assert file.read_bytes() == data
    assert file.is_relative_to(tmp_path / "cache" / "s3" / S3_BUCKET)
    assert cached(tmp_path) == ["a"]
    objects.obstore.delete(storage._store, "data/one/a")
    assert fetch(storage, "data/one/a", data).read_bytes() == data  # no request: it is there
    write(storage, "data/one/a", data)
    file.write_bytes(data[:-1])
    assert fetch(storage, "data/one/a", data).read_bytes() == data  # of the wrong size: again
    with pytest.raises(FileSizeError, match=rf"data/one/a: has {len(data)} bytes, its manifest says {len(data) + 1}"):
        fetch(storage, "data/one/a", data + b"1")


def test_an_empty_file(storage: ObjectStorage):
    with storage.create("data/one/a"):
        pass
    assert fetch(storage, "data/one/a", b"").read_bytes() == b""


class StoppedPool(ThreadPoolExecutor):
    """Tells those that work in it that nothing more will be begun."""

    stopped = threading.Event()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait=False, cancel_futures=cancel_futures)
        self.stopped.set()
        super().shutdown(wait=wait)


def test_a_failed_download_leaves_nothing(storage: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(objects, "RANGE_BYTES", BLOCK)
    monkeypatch.setattr(objects, "ThreadPoolExecutor", StoppedPool)
    StoppedPool.stopped.clear()
    data = bytes(50 * BLOCK)
    write(storage, "data/one/a", data)
    get_range, calls = objects.obstore.get_range, []

    def gone(*arguments: Any, start: int, **options: Any) -> Any:
        calls.append(1)
        if start < 3 * BLOCK:
            return get_range(*arguments, start=start, **options)
        if start > 3 * BLOCK:
            StoppedPool.stopped.wait(600)
        raise FileNotFoundError("deleted meanwhile")

    monkeypatch.setattr(objects.obstore, "get_range", gone)
    with pytest.raises(MissingFileError, match="data/one/a"):
        fetch(storage, "data/one/a", data)
    assert cached(tmp_path) == []
    assert len(calls) <= 4 + objects.CONNECTIONS  # the rest was not asked for


@pytest.mark.parametrize("times", [1, 2])
def test_what_is_fetched_is_checked(
    storage: ObjectStorage, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
):
    data = os.urandom(BLOCK + 10)
    write(storage, "data/one/a", data)
    get_range, calls = objects.obstore.get_range, []

    def changed(*arguments: Any, **options: Any) -> Any:
        got = bytearray(get_range(*arguments, **options))
        calls.append(1)
        if len(calls) <= times:
            got[BLOCK + 3] ^= 1
        return got

    monkeypatch.setattr(objects.obstore, "get_range", changed)
    if times == 1:
        assert fetch(storage, "data/one/a", data).read_bytes() == data
        return
    where = re.escape(f"{url}/data/one/a")
    with pytest.raises(ChecksumError, match=rf"{where}: .* fetched twice.* the object itself is damaged"):
        fetch(storage, "data/one/a", data)
    assert cached(tmp_path) == []


def test_one_of_many_fetches_a_file(storage: ObjectStorage, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = os.urandom(1000)
    write(storage, "data/one/a", data)
    get_range, calls = objects.obstore.get_range, []
    barrier, results = threading.Barrier(4), []

    def slow(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        time.sleep(0.3)  # while the others come
        return get_range(*arguments, **options)

    def download() -> None:
        barrier.wait()
        results.append(fetch(ObjectStorage(url, tmp_path / "cache"), "data/one/a", data).read_bytes() == data)

    monkeypatch.setattr(objects.obstore, "get_range", slow)
    together(4, download)
    assert (results, len(calls)) == ([True] * 4, 1)
    assert cached(tmp_path) == ["a"]


def test_a_dead_download_is_taken_over(storage: ObjectStorage, tmp_path: Path):
    data = os.urandom(1000)
    write(storage, "data/one/a", data)
    target = storage._cache / "data/one/a"
    target.parent.mkdir(parents=True)
    code = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'wb'); fcntl.flock(file, fcntl.LOCK_EX); "
        "file.write(b'x' * 5000); file.flush(); print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(target.with_name(".a.tmp"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        reader = threading.Thread(target=fetch, args=(storage, "data/one/a", data))
        reader.start()
        reader.join(0.3)
        assert (reader.is_alive(), target.exists()) == (True, False)  # another process is at it
        holder.kill()
        reader.join()
    assert target.read_bytes() == data
    assert cached(tmp_path) == ["a"]


def test_the_cache_forgets_what_the_store_has_deleted(storage: ObjectStorage, url: str, tmp_path: Path):
    for name in ("one", "two", "three"):
        write(storage, f"data/{name}/{name}", b"1")
    for name in ("one", "two"):
        fetch(storage, f"data/{name}/{name}", b"1")
    storage.delete_folder("data/one")
    assert cached(tmp_path) == ["two"]  # this process deleted it
    elsewhere = ObjectStorage(url, tmp_path / "another cache")
    elsewhere.delete_folder("data/two")
    assert cached(tmp_path) == ["two"]
    folder = fetch(storage, "data/three/three", b"1").parent
    assert cached(tmp_path) == ["three"]
    (folder / ".dead.tmp").touch()
    write(storage, "data/three/more", b"1")
    with objects._locked(folder / ".alive.tmp"):
        fetch(storage, "data/three/more", b"1")
        assert cached(tmp_path) == [".alive.tmp", "more", "three"]
    assert cached(tmp_path) == ["more", "three"]


def test_a_cache_that_cannot_lock_says_so(storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any) -> None:
        raise OSError(38, "Function not implemented")

    write(storage, "data/one/a", b"1")
    monkeypatch.setattr(objects.fcntl, "flock", refuse)
    with pytest.raises(StorageAccessError, match=r"cannot lock it .*not implemented.* cache= a folder"):
        fetch(storage, "data/one/a", b"1")


def test_a_snapshots_files_are_fetched_together(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch):
    get_range, barrier = objects.obstore.get_range, threading.Barrier(4)

    def all_at_once(*arguments: Any, **options: Any) -> Any:
        barrier.wait(600)  # for the other three files
        return get_range(*arguments, **options)

    monkeypatch.setattr(objects.obstore, "get_range", all_at_once)
    vectors, _ = snapshot.load().lookup(torch.tensor([0, 1]))
    assert vectors[:, 0].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "read",
    [lambda snapshot: snapshot.load(verify=True), Snapshot.verify, lambda snapshot: list(snapshot.batches())],
    ids=["load", "verify", "batches"],
)
def test_a_damaged_copy_is_fetched_anew(snapshot: Snapshot, read: Callable[[Snapshot], Any]):
    snapshot.load()
    before = damage(snapshot)
    read(snapshot)
    assert {file: file.read_bytes() for file in before} == before


def test_a_live_table_begins_over_a_damaged_copy(snapshot: Snapshot, url: str, tmp_path: Path):
    snapshot.load()
    before = damage(snapshot)
    with LiveTable(EmbeddingStore(url, cache=tmp_path / "cache").series("user_ctr")) as live:
        assert live.lookup(torch.arange(1000))[1].all()
    assert {file: file.read_bytes() for file in before} == before


def test_a_lookup_in_a_damaged_copy_fails_once(snapshot: Snapshot):
    snapshot.load()
    before = damage(snapshot)
    for _ in snapshot.manifest.data:
        with pytest.raises(ChecksumError, match=r"/cache/.* the copy was deleted, load again to fetch another"):
            snapshot.load().lookup(torch.arange(1000))
    assert snapshot.load().lookup(torch.arange(1000))[1].all()
    assert {file: file.read_bytes() for file in before} == before


def test_a_table_over_a_damaged_copy_leaves_the_new_one_alone(snapshot: Snapshot):
    table = snapshot.load()
    files = list(damage(snapshot))
    for _ in range(2):
        with pytest.raises(ChecksumError, match="the copy was deleted"):
            table.ids()
        sound = snapshot.load(verify=True)
        assert [file.exists() for file in files] == [True] * 4
    assert len(sound.ids()) == 1000


def test_a_damaged_object_is_blamed_after_all(snapshot: Snapshot, s3: Any, tmp_path: Path):
    storage, file = snapshot._storage, snapshot.manifest.data[0]
    data = bytearray(storage.read(file.path))
    data[-1] ^= 1
    key = storage.locate(file.path).removeprefix(f"s3://{S3_BUCKET}/")
    s3.put_object(Bucket=S3_BUCKET, Key=key, Body=bytes(data))
    for read in (snapshot.load, snapshot.verify, lambda: list(snapshot.batches())):
        with pytest.raises(ChecksumError, match=rf"s3://.*/{file.path}: .* the object itself is damaged"):
            read()


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "embedding_store"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "embedding_store"
