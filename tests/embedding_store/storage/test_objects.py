"""Object stores, on moto's S3 server on loopback, where there is no rename."""

from __future__ import annotations

import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from embedding_store import (
    EmbeddingStore,
    InvalidArgumentError,
    MissingDependencyError,
    MissingFileError,
    StorageAccessError,
)
from embedding_store.native.mapping import crc32c_blocks
from embedding_store.storage import objects
from embedding_store.storage.objects import ObjectStorage
from tests.s3 import S3_BUCKET


@pytest.fixture
def storage(url: str, tmp_path: Path) -> ObjectStorage:
    return ObjectStorage(url, tmp_path / "cache")


def write(storage: ObjectStorage, path: str, data: bytes) -> None:
    with storage.create(path) as sink:
        sink.write(data)


def cached(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())


def uploads(s3: Any) -> int:
    return len(s3.list_multipart_uploads(Bucket=S3_BUCKET).get("Uploads", []))


def test_files_are_found_by_listing(storage: ObjectStorage, url: str):
    assert (storage.names(), storage.entries()) == ([], [])
    began = time.time()
    write(storage, "data/one/b", b"22")
    write(storage, "data/one/a", b"1")
    storage.put_new("series.json", b"{}")
    assert storage.names() == ["data", "series.json"]
    assert storage.names("data/one") == ["a", "b"]
    assert (storage.names("series.json"), storage.names("dat")) == ([], [])
    assert [entry.path for entry in storage.entries()] == ["data/one/a", "data/one/b", "series.json"]
    assert began - 1 < storage.entries()[0].modified < time.time() + 1  # the server says whole seconds
    inner = storage.within("data")
    assert [entry.path for entry in inner.entries("one")] == ["one/a", "one/b"]
    assert inner.names("one") == ["a", "b"]
    assert (inner.locate("one/a"), inner.locate("")) == (f"{url}/data/one/a", f"{url}/data")
    assert (inner.exists("one/a"), inner.exists("one"), inner.exists("two")) == (True, False, False)
    assert (inner.size("one/b"), inner.read("one/b")) == (2, b"22")
    for ask in (inner.size, inner.read, lambda path: inner.local(path, 1, crc32c_blocks(b"1"))):
        with pytest.raises(MissingFileError, match=rf"{url}/data/one/c: does not exist"):
            ask("one/c")


def test_nothing_is_put_twice(storage: ObjectStorage):
    storage.put_new("m/1.json", b"first")
    with pytest.raises(FileExistsError):
        storage.put_new("m/1.json", b"first")
    assert storage.read("m/1.json") == b"first"


def test_of_many_that_put_one_file_exactly_one_succeeds(storage: ObjectStorage):
    barrier, winners = threading.Barrier(6), []

    def put() -> None:
        barrier.wait()
        try:
            storage.put_new("m/1.json", b"the same bytes")
        except FileExistsError:
            return
        winners.append(1)

    threads = [threading.Thread(target=put) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1


def test_a_put_whose_answer_was_lost_knows_its_own_object(storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch):
    put = objects.obstore.put

    def twice(*arguments: Any, **options: Any) -> Any:
        put(*arguments, **options)  # the answer is lost, so obstore sends it again
        return put(*arguments, **options)

    monkeypatch.setattr(objects.obstore, "put", twice)
    storage.put_new("m/1.json", b"mine")
    assert storage.read("m/1.json") == b"mine"
    with pytest.raises(FileExistsError):
        storage.put_new("m/1.json", b"mine")


def test_a_put_that_met_another_one_that_failed_tries_again(storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch):
    put = objects.obstore.put

    def conflict(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(objects.obstore, "put", put)
        raise objects.AlreadyExistsError("409 Conflict")

    monkeypatch.setattr(objects.obstore, "put", conflict)
    storage.put_new("m/1.json", b"mine")
    assert storage.read("m/1.json") == b"mine"


@pytest.mark.parametrize("size", [3, 12 << 20])
def test_a_streamed_file_appears_at_its_end_or_never(
    storage: ObjectStorage, s3: Any, monkeypatch: pytest.MonkeyPatch, size: int
):
    monkeypatch.setattr(objects, "PART_BYTES", 5 << 20)
    data = os.urandom(size)
    with storage.create("data/one/a") as sink:
        buffer = bytearray(data)
        assert sink.write(buffer) == size
        buffer[:] = bytes(size)  # a writer uses its buffer again
        sink.flush()
        assert not storage.exists("data/one/a")
    assert storage.read("data/one/a") == data

    def abort() -> None:
        with storage.create("data/one/b") as sink:
            sink.write(data)
            raise FileNotFoundError("the writer's own")

    with pytest.raises(FileNotFoundError, match="the writer's own"):
        abort()
    assert storage.names("data/one") == ["a"]
    assert uploads(s3) == 0


def test_deleting_what_is_gone_is_fine(storage: ObjectStorage, tmp_path: Path):
    for name in ("a", "b"):
        write(storage, f"data/one/{name}", b"1")
    storage.local("data/one/a", 1, crc32c_blocks(b"1"))
    for _ in range(2):
        storage.delete("data/one/a")
    assert (storage.names("data/one"), cached(tmp_path)) == (["b"], [])
    for _ in range(2):
        storage.delete_folder("data/one")
    assert storage.names() == []


def test_a_bucket_that_does_not_exist_is_named(s3: Any, tmp_path: Path):
    store = EmbeddingStore("s3://nowhere/store", cache=tmp_path)
    for ask in (store.list, lambda: store.series("user_ctr"), lambda: store.create("user_ctr", dim=4)):
        with pytest.raises(StorageAccessError, match=r"s3://nowhere/store.*: the bucket does not exist: check the URL"):
            ask()


class Forbidden(BaseHTTPRequestHandler):
    """A server that lets nobody in."""

    def do_GET(self) -> None:
        body = b"<Error><Code>InvalidAccessKeyId</Code><Message>No such key</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""


def test_wrong_credentials_say_so(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with HTTPServer(("127.0.0.1", 0), Forbidden) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(StorageAccessError, match=r"s3://vectors/x.*403.*environment's credentials"):
            EmbeddingStore("s3://vectors/x", cache=tmp_path).list()
        server.shutdown()


def test_urls_that_no_store_has(tmp_path: Path):
    for url in ("nonsense://bucket/store", "s3://"):
        with pytest.raises(InvalidArgumentError, match=f"path is '{url}'"):
            EmbeddingStore(url, cache=tmp_path)


def test_without_obstore_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.delitem(sys.modules, "embedding_store.storage.objects")
    monkeypatch.delattr("embedding_store.storage.objects")
    with pytest.raises(MissingDependencyError, match=r"'s3://b/x'.*pip install 'recsys-derm\[objects\]'"):
        EmbeddingStore("s3://b/x")


def test_a_range_of_a_file(storage: ObjectStorage):
    write(storage, "data/one/a", b"0123456789")
    ranges = [(0, 3), (2, 10), (8, 20), (10, 11), (15, 20)]
    assert [storage.read_range("data/one/a", *ends) for ends in ranges] == [b"012", b"23456789", b"89", b"", b""]
    with pytest.raises(MissingFileError, match="data/one/b: does not exist"):
        storage.read_range("data/one/b", 0, 1)
