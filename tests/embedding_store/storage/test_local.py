"""The local disk as a Storage: what is put is put once, whole, and found again."""

from __future__ import annotations

import errno
import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedding_store import (
    EmbeddingStore,
    FileFormatError,
    FileSizeError,
    InvalidArgumentError,
    MissingFileError,
    StorageAccessError,
    StoreError,
)
from embedding_store.format.manifest import manifest_path
from embedding_store.native.mapping import crc32c_blocks
from embedding_store.storage import local
from embedding_store.storage.local import LocalStorage
from tests.embedding_store.helpers import publish


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "root")


def write(storage: LocalStorage, path: str, data: bytes) -> None:
    with storage.create(path) as sink:
        assert sink.write(data) == len(data)


def test_files_are_found_by_listing(storage: LocalStorage):
    assert (storage.names(), storage.entries("data")) == ([], [])
    write(storage, "data/one/b", b"22")
    write(storage, "data/one/a", b"1")
    storage.put_new("series.json", b"{}")
    assert storage.names() == ["data", "series.json"]
    assert storage.names("data/one") == ["a", "b"]
    assert storage.names("series.json") == []
    assert [entry.path for entry in storage.entries()] == ["data/one/a", "data/one/b", "series.json"]
    inner = storage.within("data")
    assert [entry.path for entry in inner.entries()] == ["one/a", "one/b"]
    assert inner.locate("one/a") == str(storage.root / "data" / "one" / "a")
    assert (inner.exists("one/a"), inner.exists("one"), inner.exists("two")) == (True, False, False)
    assert (inner.size("one/b"), inner.read("one/b")) == (2, b"22")


def test_a_local_file_is_itself(storage: LocalStorage):
    write(storage, "data/one/a", b"123")
    assert storage.local("data/one/a", 3, crc32c_blocks(b"123")) == storage.root / "data/one/a"
    with pytest.raises(FileSizeError, match=r"data/one/a: has 3 bytes, its manifest says 4"):
        storage.local("data/one/a", 4, crc32c_blocks(b"1234"))
    for ask in (storage.size, storage.read, lambda path: storage.local(path, 1, crc32c_blocks(b"1"))):
        with pytest.raises(MissingFileError, match=r"data/one/b: does not exist"):
            ask("data/one/b")


@pytest.mark.parametrize(
    "data", [b"abc", bytearray(b"abc"), memoryview(b"abc"), np.arange(6.0).reshape(2, 3), np.empty((0, 3), np.float32)]
)
def test_a_sink_takes_any_buffer_and_counts_bytes(storage: LocalStorage, data):
    size = memoryview(data).nbytes
    with storage.create("data/one/a") as sink:
        assert [sink.write(data), sink.write(data)] == [size, size]
        sink.flush()
        assert sink.write(b"!") == 1
        sink.flush()
        sink.flush()
        assert (sink.bytes, sink.closed) == (2 * size + 1, False)
    assert storage.read("data/one/a") == 2 * bytes(memoryview(data).tobytes()) + b"!"


def test_nothing_is_written_twice(storage: LocalStorage):
    write(storage, "data/one/a", b"1")
    storage.put_new("m/1.json", b"first")
    with pytest.raises(FileExistsError):
        write(storage, "data/one/a", b"2")
    with pytest.raises(FileExistsError):
        storage.put_new("m/1.json", b"second")
    assert (storage.read("data/one/a"), storage.read("m/1.json")) == (b"1", b"first")
    assert os.listdir(storage.root / "m") == ["1.json"]


def test_of_many_that_put_one_file_exactly_one_succeeds(storage: LocalStorage):
    barrier, winners = threading.Barrier(8), []

    def put(number: int) -> None:
        barrier.wait()
        try:
            storage.put_new("m/1.json", b"%d" % number * 1000)
        except FileExistsError:
            return
        winners.append(number)

    threads = [threading.Thread(target=put, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1
    assert storage.read("m/1.json") == b"%d" % winners[0] * 1000


def test_deleting_what_is_gone_is_fine(storage: LocalStorage):
    write(storage, "data/one/a", b"1")
    write(storage, "data/one/b", b"1")
    for _ in range(2):
        storage.delete("data/one/a")
    assert storage.names("data/one") == ["b"]
    for _ in range(2):
        storage.delete_folder("data")
    assert storage.names() == []


def test_scratch_is_where_the_system_says(storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert storage.scratch() == tmp_path


def test_a_link_whose_answer_was_lost_knows_its_own_file(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch):
    link = os.link

    def lose_the_answer(*paths: Path) -> None:
        link(*paths)
        link(*paths)  # as a network disk sends it again

    monkeypatch.setattr(os, "link", lose_the_answer)
    storage.put_new("m/1.json", b"mine")
    assert storage.read("m/1.json") == b"mine"
    with pytest.raises(FileExistsError):
        storage.put_new("m/1.json", b"mine")
    assert os.listdir(storage.root / "m") == ["1.json"]


def test_a_lost_answer_publishes_once(store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch):
    series, link = store.create("user_ctr", dim=3), os.link

    def lose_the_answer(*paths: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        link(*paths)
        link(*paths)

    monkeypatch.setattr(os, "link", lose_the_answer)
    assert publish(series, 1, [1]).version == 1
    assert series.versions() == [1]


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
def test_a_disk_without_hard_links_is_named(store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch, code: int):
    def refuse(*_: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StorageAccessError, match=r"user_ctr/series\.json: .* no hard links .*: use a local disk"):
        store.create("user_ctr", dim=3)
    assert [path for path in (store.path or Path()).rglob("*") if path.is_file()] == []


def full_file(path: Path, mode: str) -> Any:
    """A new file on a disk that is full."""
    open(path, mode).close()
    return open("/dev/full", "wb")


@pytest.mark.parametrize("step", ["write", "fsync", "link"])
def test_a_full_disk_leaves_nothing(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, step: str):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    storage.put_new("m/1.json", b"1")
    if step == "write":
        monkeypatch.setattr(local, "open", full_file, raising=False)
    else:
        monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        storage.put_new("m/2.json", b"2")
    assert os.listdir(storage.root / "m") == ["1.json"]


@pytest.mark.parametrize("url", [False, True])
def test_a_relative_path_keeps_meaning_the_folder_it_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: bool):
    monkeypatch.chdir(tmp_path)
    store = EmbeddingStore(f"file://{tmp_path}/a%20store" if url else "a store")
    series = store.create("user_ctr", dim=3)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert publish(series, 1, [1]).version == 1
    assert (store.list(), store.series("user_ctr").versions()) == (["user_ctr"], [1])
    assert (store.path, store.location) == (tmp_path / "a store", str(tmp_path / "a store"))


@pytest.mark.parametrize("url", ["file://a/store", "file://", "file://host.example"])
def test_a_file_url_holds_a_whole_path(url: str):
    with pytest.raises(InvalidArgumentError, match=rf"path is '{url}': .* file:///folder/store"):
        EmbeddingStore(url)


def test_a_network_disk_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shared = tmp_path / "a share"
    (shared / "inner").mkdir(parents=True)
    octal = str(shared).replace(" ", "\\040")
    mounts = tmp_path / "mounts"
    monkeypatch.setattr(local, "_MOUNTS", mounts)
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\nserver:/x {octal} nfs4 rw 0 0\ntmpfs {octal}/inner tmpfs rw 0 0\n")
    with pytest.warns(UserWarning, match=r"a share/store lies on a network disk \(nfs4\): .*object store") as warned:
        EmbeddingStore(shared / "store")
    assert [warning.filename for warning in warned] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EmbeddingStore(tmp_path / "store")
        EmbeddingStore(shared / "inner" / "store")
        monkeypatch.setattr(local, "_MOUNTS", tmp_path / "there are none")
        EmbeddingStore(shared / "store")


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_link_to_itself(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (make_pipe, FileFormatError, "is a folder, a pipe or a device, not a file"),
        (Path.mkdir, FileFormatError, "is a folder, a pipe or a device, not a file"),
        (lambda path: path.symlink_to("/dev/zero"), FileFormatError, "is a folder, a pipe or a device, not a file"),
        (make_link_to_itself, StorageAccessError, "Too many levels of symbolic links"),
    ],
)
@pytest.mark.parametrize("what", ["data", "manifest"])
def test_what_is_no_file_is_named_and_not_waited_for(
    tmp_path: Path, make: Callable[[Path], None], error: type[Exception], message: str, what: str
):
    series = EmbeddingStore(tmp_path).create("user_ctr", dim=3)
    manifest = publish(series, 1, [1, 2]).manifest
    path = tmp_path / "user_ctr" / (manifest.data[0].path if what == "data" else manifest_path(1))
    path.unlink()
    make(path)
    with pytest.raises(error, match=message):
        EmbeddingStore(tmp_path).series("user_ctr").latest().load().lookup(torch.tensor([1]))


@pytest.mark.parametrize("make", [Path.touch, make_pipe, make_link_to_itself, lambda path: path.symlink_to("nowhere")])
@pytest.mark.parametrize("folder", ["data", "manifests", "tags"])
def test_what_stands_in_the_place_of_a_folder_is_named(tmp_path: Path, make: Callable[[Path], None], folder: str):
    series = EmbeddingStore(tmp_path).create("user_ctr", dim=3)
    make(tmp_path / "user_ctr" / folder)

    def publish_and_tag() -> None:
        publish(series, 1, [1])
        series.tag("prod", 1)

    with pytest.raises(StoreError, match=rf"user_ctr/{folder}\b"):
        publish_and_tag()


def test_a_range_of_a_file(storage: LocalStorage):
    write(storage, "data/one/a", b"0123456789")
    ranges = [(0, 3), (2, 10), (8, 20), (10, 11), (15, 20)]
    assert [storage.read_range("data/one/a", *ends) for ends in ranges] == [b"012", b"23456789", b"89", b"", b""]
    with pytest.raises(MissingFileError, match="data/one/b: does not exist"):
        storage.read_range("data/one/b", 0, 1)
