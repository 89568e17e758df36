"""Google Cloud Storage as obstore speaks it, with a server on loopback: moto's S3 behind a door that translates the
headers of GCS's XML interface, which is S3's otherwise."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch

from embedding_store import EmbeddingStore, StorageAccessError, TagMovedError
from tests.embedding_store.helpers import publish
from tests.s3 import S3_BUCKET

SIGNED = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=none"
UNKNOWN = {"host", "authorization", "content-length", "x-goog-if-generation-match"}


class Door(BaseHTTPRequestHandler):
    """Hands each request on to S3."""

    protocol_version = "HTTP/1.1"
    s3: str
    heeds_conditions: bool

    def _hand_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items() if name.lower() not in UNKNOWN}
        if self.headers.get("x-goog-if-generation-match") == "0" and self.heeds_conditions:
            headers["if-none-match"] = "*"
        headers = {name.replace("x-goog-", "x-amz-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection(self.s3, timeout=600)
        connection.request(self.command, self.path, body, {**headers, "authorization": SIGNED})
        answer = connection.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name.lower().replace("x-amz-meta-", "x-goog-meta-"), value)
        self.send_header("x-goog-generation", "1")
        length = answer.getheader("content-length", "0") if self.command == "HEAD" else str(len(content))
        self.send_header("content-length", length)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else content)
        connection.close()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _hand_on  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture(params=[True])
def gs(s3: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a store; the parameter: whether the server heeds conditions."""
    door = type("OneDoor", (Door,), {"s3": urlsplit(s3.meta.endpoint_url).netloc, "heeds_conditions": request.param})
    server = ThreadingHTTPServer(("127.0.0.1", 0), door)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    key = {"gcs_base_url": f"http://127.0.0.1:{server.server_port}", "disable_oauth": True}
    key |= {"client_email": "", "private_key": "", "private_key_id": ""}
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(key))
    yield f"gs://{S3_BUCKET}/gcs-{request.param}/store"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_series_in_a_bucket_of_google(gs: str, tmp_path: Path):
    store = EmbeddingStore(gs, cache=tmp_path)
    series = store.create("user_ctr", dim=3)
    publish(series, 1, [1, 2, 3])
    publish(series, 2, [3, 4], base=1)
    vectors, found = series.latest().load(verify=True).lookup(torch.tensor([1, 2, 3, 4, 5]))
    assert found.tolist() == [True] * 4 + [False]
    assert vectors[:, 0].tolist() == [0, 1, 0, 1, 0]
    series.tag("prod", 1)
    with pytest.raises(TagMovedError):
        series.tag("prod", 2, expected=2)
    assert EmbeddingStore(gs, cache=tmp_path / "other").series("user_ctr").tagged("prod").version == 1
    series.retract(2)
    assert series.versions() == [1]
    with pytest.raises(FileExistsError):
        series._storage.put_new("series.json", b"{}")


@pytest.mark.parametrize("gs", [False], indirect=True)
def test_a_server_that_replaces_objects_is_refused(gs: str, tmp_path: Path):
    store = EmbeddingStore(gs, cache=tmp_path)
    with pytest.raises(StorageAccessError, match="the server replaces an object"):
        store.create("user_ctr", dim=3)
    assert store._storage.entries() == []
