"""An S3 server on loopback."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

S3_BUCKET = "vectors"


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A boto3 client of an S3 server on loopback with one bucket; the environment leads obstore there."""
    import boto3  # here, as few tests need them
    from moto import server as server_module

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    _, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        environment.setenv("AWS_REGION", "us-east-1")
        environment.setenv("AWS_ALLOW_HTTP", "true")
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket=S3_BUCKET)
        yield client
    server.stop()


@pytest.fixture
def url(s3: Any, request: pytest.FixtureRequest) -> str:
    return f"s3://{S3_BUCKET}/{request.node.name}/store"


def s3_environment() -> dict[str, str]:
    """What leads another process to the server of `s3`."""
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
