"""The schema that an upstream's source is read by. Nothing here imports torch."""

from __future__ import annotations

from pathlib import Path

from recsys.config import UpstreamConfig
from recsys.data.errors import DataError
from recsys.data.schema import Schema


def upstream_schema(upstream: UpstreamConfig, data: Path) -> Schema:
    """The source's schema, narrowed to the features and tasks the upstream uses.

    Raises:
        SchemaError: the file is not a schema, or lacks a feature or label that the config names.
        DataError: there is no such file.
    """
    path = data / upstream.source.schema
    if not path.is_file():
        raise DataError(f"{path}: no such schema; correct source.schema of upstream {upstream.name!r}, or --data")
    return Schema.load(path).select(features=upstream.features or None, labels=upstream.tasks or None)
