"""Servers and networks at fault: what comes of it is a StorageAccessError that says what to do, whatever was asked."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch

from embedding_store import EmbeddingStore, SeriesExistsError, StorageAccessError
from embedding_store.native.mapping import crc32c_blocks
from embedding_store.storage import objects
from embedding_store.storage.objects import ObjectStorage
from tests.embedding_store.helpers import publish
from tests.s3 import S3_BUCKET

LARGE = 12 << 20  # bytes: three parts


class Proxy:
    """A way to the server that ends each connection after `limit` bytes of either direction; None: never."""

    def __init__(self, port: int) -> None:
        self.limit: int | None = None
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                near = self._listener.accept()[0]
                far = socket.create_connection(("127.0.0.1", self._port))
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(1 << 16):
                passed += len(data)
                if self.limit is not None and passed > self.limit:
                    break
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(s3: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy that stores made from here on go through; they give up soon."""
    port = urlsplit(os.environ["AWS_ENDPOINT_URL"]).port
    assert port is not None
    proxy = Proxy(port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    soon = timedelta(milliseconds=1)
    retries = {
        "max_retries": 1,
        "backoff": {"init_backoff": soon, "max_backoff": soon, "base": 2},
        "retry_timeout": timedelta(seconds=10),
    }
    monkeypatch.setattr(objects, "from_url", partial(objects.from_url, retry_config=retries))
    monkeypatch.setattr(objects, "PART_BYTES", 5 << 20)
    yield proxy
    proxy.close()
    for upload in s3.list_multipart_uploads(Bucket=S3_BUCKET).get("Uploads", []):  # nobody could abort them
        s3.abort_multipart_upload(Bucket=S3_BUCKET, Key=upload["Key"], UploadId=upload["UploadId"])


def write(storage: ObjectStorage, path: str, data: bytes) -> None:
    with storage.create(path) as sink:
        sink.write(data)


@pytest.mark.parametrize(
    "ask",
    [
        lambda storage: storage.names("data"),
        lambda storage: storage.entries(),
        lambda storage: storage.exists("m/1.json"),
        lambda storage: storage.read("m/1.json"),
        lambda storage: storage.read_range("m/1.json", 0, 2),
        lambda storage: storage.local("m/1.json", 3, crc32c_blocks(b"123")),
        lambda storage: storage.put_new("m/2.json", b"2"),
        lambda storage: storage.check_put_new("m"),
        lambda storage: storage.delete("m/1.json"),
        lambda storage: storage.delete_folder("m"),
        lambda storage: write(storage, "data/one/a", b"small"),
        lambda storage: write(storage, "data/one/a", bytes(LARGE)),
    ],
    ids=[
        "names",
        "entries",
        "exists",
        "read",
        "read_range",
        "local",
        "put_new",
        "check_put_new",
        "delete",
        "delete_folder",
        "write",
        "write_parts",
    ],
)
def test_a_lost_connection_is_named(url: str, tmp_path: Path, proxy: Proxy, ask: Callable[[ObjectStorage], Any]):
    storage = ObjectStorage(url, tmp_path / "cache")
    storage.put_new("m/1.json", b"123")
    proxy.limit = 0
    with pytest.raises(StorageAccessError, match=r"s3://vectors/.*: check the URL's bucket"):
        ask(storage)
    proxy.limit = None
    assert [entry.path for entry in storage.entries()] == ["m/1.json"]


def test_a_connection_lost_in_the_middle_of_a_file(url: str, tmp_path: Path, proxy: Proxy):
    storage, data = ObjectStorage(url, tmp_path / "cache"), os.urandom(LARGE)
    write(storage, "data/one/a", data)
    proxy.limit = 3 << 20
    for ask in (
        lambda: write(storage, "data/one/b", data),
        lambda: storage.local("data/one/a", LARGE, crc32c_blocks(data)),
        lambda: storage.read("data/one/a"),
    ):
        with pytest.raises(StorageAccessError, match=r"s3://vectors/.*/data/one/"):
            ask()
    proxy.limit = None
    assert storage.names("data/one") == ["a"]
    assert storage.local("data/one/a", LARGE, crc32c_blocks(data)).read_bytes() == data


def test_a_writer_that_loses_the_connection_publishes_nothing(url: str, tmp_path: Path, proxy: Proxy):
    series = EmbeddingStore(url, cache=tmp_path / "cache").create("user_ctr", dim=64)

    def lose_it() -> None:
        with series.write(as_of=1, space="ctr-1") as writer:
            writer.append(torch.arange(50_000), torch.ones(50_000, 64))
            proxy.limit = 3 << 20

    with pytest.raises(StorageAccessError):
        lose_it()
    proxy.limit = None
    assert series.versions() == []
    assert publish(series, 1, [1]).version == 1


def test_what_the_writer_itself_raises_is_not_hidden_by_a_lost_connection(url: str, tmp_path: Path, proxy: Proxy):
    storage = ObjectStorage(url, tmp_path / "cache")

    def abort() -> None:
        with storage.create("data/one/a") as sink:
            sink.write(bytes(6 << 20))
            proxy.limit = 0
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        abort()


@pytest.fixture
def careless(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server ignores `If-None-Match`."""
    put = objects.obstore.put
    monkeypatch.setattr(objects.obstore, "put", lambda *a, **options: put(*a, **{**options, "mode": "overwrite"}))


def test_a_server_that_replaces_objects_is_refused(url: str, tmp_path: Path, careless: None):
    store = EmbeddingStore(url, cache=tmp_path)
    for _ in range(2):
        with pytest.raises(StorageAccessError, match=rf"{url}/user_ctr: .*ignores If-None-Match.*: .*upgrade"):
            store.create("user_ctr", dim=3)
    assert store._storage.entries() == []


def test_a_series_that_exists_is_never_put_again(url: str, tmp_path: Path, request: pytest.FixtureRequest):
    store = EmbeddingStore(url, cache=tmp_path)
    store.create("user_ctr", dim=3)
    request.getfixturevalue("careless")
    with pytest.raises(SeriesExistsError):
        store.create("user_ctr", dim=4)
    assert store.create("user_ctr", dim=3, exist_ok=True).dim == 3


def test_puts_are_tried_once_a_store_and_leave_nothing(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store, put, paths = EmbeddingStore(url, cache=tmp_path), objects.obstore.put, []

    def counted(store: Any, path: str, *arguments: Any, **options: Any) -> Any:
        paths.append(path)
        return put(store, path, *arguments, **options)

    monkeypatch.setattr(objects.obstore, "put", counted)
    for name in ("a", "b"):
        store.create(name, dim=3)
    assert [path.rpartition(".")[2] for path in paths] == ["tmp", "tmp", "json", "json"]
    assert [entry.path for entry in store._storage.entries()] == ["a/series.json", "b/series.json"]
