"""The schema that an upstream's source is read by. Nothing here imports torch."""

from __future__ import annotations

import json
from pathlib import Path

from recsys.config import UpstreamConfig
from recsys.data.errors import DataError
from recsys.data.schema import Schema
from recsys.data.tables import unsized, with_tables
from recsys.folders import upstream_folder

TABLES = "tables.json"
"""In the upstream's folder: rows of the tables for which the schema gives none, as they were counted once."""


def upstream_schema(upstream: UpstreamConfig, data: Path, out: Path | None = None) -> Schema:
    """The source's schema, narrowed to the features and tasks the upstream uses.

    Args:
        upstream: the upstream.
        data: folder of the events.
        out: folder of a run in which it has been trained: its tables have the sizes that they got there.

    Raises:
        SchemaError: the file is not a schema, or lacks a feature or label that the config names.
        DataError: there is no such file, or no size of a table.
    """
    path = data / upstream.source.schema
    if not path.is_file():
        raise DataError(f"{path}: no such schema; correct source.schema of upstream {upstream.name!r}, or --data")
    schema = Schema.load(path).select(features=upstream.features or None, labels=upstream.tasks or None)
    if out is None or not unsized(schema):
        return schema
    record = upstream_folder(out, upstream.name) / TABLES
    try:
        return with_tables(schema, json.loads(record.read_text()))
    except (OSError, KeyError) as error:
        raise DataError(
            f"{record} does not say how many rows the tables have for which {path} gives none ({error}): train the "
            "upstream first, into this folder"
        ) from None
