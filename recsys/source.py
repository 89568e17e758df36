"""The schemas that an upstream's source and rankers' events are read by. Nothing here imports torch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from recsys.config import ConfigError, RankerConfig, RankerSettings, UpstreamConfig
from recsys.data.errors import DataError
from recsys.data.schema import Schema, SchemaError
from recsys.data.sizes import unsized, with_tables
from recsys.folders import upstream_folder
from recsys.mistakes import meant

TABLES = "tables.json"
"""In the upstream's folder: rows of the tables for which the schema gives none, as they were counted once."""


def load_schema(path: Path, key: str) -> Schema:
    """A schema as it is in its file, which the config names under this key.

    Raises:
        SchemaError: the file is not a schema.
        DataError: there is no such file.
    """
    if not path.is_file():
        there = sorted(other.name for other in path.parent.glob("*.toml"))
        like = meant(path.name, there)
        raise DataError(f"{path}: no such schema{like}; correct {key} in the config, or --data")
    return Schema.load(path)


def upstream_schema(upstream: UpstreamConfig, data: Path, out: Path | None = None, path: str = "") -> Schema:
    """The source's schema, narrowed to the features and tasks the upstream uses.

    Args:
        upstream: its config.
        data: folder that the config's paths are relative to.
        out: folder of a run in which it has been trained: its tables have the sizes that they got there.
        path: of its config in a study's, with a dot at the end.

    Raises:
        SchemaError: the file is not a schema, or lacks features or labels that the config names; or has none that an
            upstream of this kind needs, or others than it can read.
        DataError: there is no such file, or no size of a table.
    """
    file = data / upstream.source.schema
    schema = load_schema(file, f"{path}source.schema")
    default = None if upstream.kind == "derm" else _own_ids(schema)
    schema = _narrowed(schema, path, upstream.features or default, upstream.tasks or None)
    if upstream.kind != "derm":
        _refuse_others(schema, upstream, path, file)
    if out is None or not unsized(schema):
        return schema
    record = upstream_folder(out, upstream.name) / TABLES
    try:
        return with_tables(schema, json.loads(record.read_text()))
    except (OSError, KeyError) as error:
        raise DataError(
            f"{record} does not say how many rows the tables have for which {file} gives none ({error}): train the "
            "upstream first, into this folder"
        ) from None


def _own_ids(schema: Schema) -> tuple[str, ...]:
    """The features by which users and items are known."""
    return tuple(x.name for x in schema.features if x.name in (schema.user_id, schema.item_id))


def _refuse_others(schema: Schema, upstream: UpstreamConfig, path: str, file: Path) -> None:
    """Raise SchemaError unless the features are ids, the own ones of users and items among them."""
    kinds, mistakes = {x.name: (x.owner, x.kind) for x in schema.features}, list[str]()
    for owner in ("user", "item"):
        name = _own_id(schema, owner)
        if kinds.get(name) != (owner, "id"):
            mistakes.append(
                f"upstream {upstream.name!r} is of kind {upstream.kind!r}: it needs {name!r} as a feature of kind 'id' "
                f"and owner {owner!r}: list it in {file}, and in {path}features if these are given"
            )
    for name, (owner, kind) in kinds.items():
        if owner not in ("user", "item") or kind not in ("id", "ids"):
            mistakes.append(
                f"{path}features names {name!r}, a {owner} feature of kind {kind!r}: an upstream of kind "
                f"{upstream.kind!r} reads 'id' and 'ids' of users and items alone; leave it out"
            )
    if mistakes:
        raise SchemaError(*mistakes)


def sized_upstream(upstream: UpstreamConfig, out: Path) -> UpstreamConfig:
    """The same with the rows of a graph's tables, as they were counted for its first training.

    Raises:
        DataError: it has not been trained into this folder.
    """
    if upstream.kind != "graph" or upstream.graph.rows.keys() == set(upstream.graph.node_types):
        return upstream
    record = upstream_folder(out, upstream.name) / TABLES
    try:
        counted = json.loads(record.read_text())
    except OSError as error:
        raise DataError(
            f"{record} does not say how many rows the tables of graph {upstream.name!r} have ({error}): train the "
            "upstream first, into this folder"
        ) from None
    rows = {name: counted[name] for name in upstream.graph.node_types if name in counted}
    return replace(upstream, graph=replace(upstream.graph, rows=rows | upstream.graph.rows))


def ranker_schema(rankers: RankerSettings, data: Path, labels: tuple[str, ...], path: str = "") -> Schema:
    """The rankers' schema, narrowed to their features and these labels.

    Args:
        rankers: their config.
        data: folder that the config's paths are relative to.
        labels: of the tasks that are asked for.
        path: of their config in a study's, with a dot at the end.

    Raises:
        SchemaError: the file is not a schema, or lacks features or labels that the config names.
        DataError: there is no such file.
        ConfigError: a `publish_delay_ms` where there are no event times to hold it against.
    """
    file = data / rankers.schema
    schema = load_schema(file, f"{path}schema")
    if rankers.publish_delay_ms and not schema.timed:
        raise ConfigError(
            f"{path}publish_delay_ms is {rankers.publish_delay_ms}, but by {file} the rankers' events have no times "
            '(timestamp = ""), so that none is later than a snapshot: set publish_delay_ms = 0'
        )
    return _narrowed(schema, path, rankers.features or None, tuple(dict.fromkeys(labels)))


def refuse_values(schema: Schema, path: str = "") -> None:
    """Raise ConfigError if a task's label is a value: what compares rankers is made for 0 and 1.

    Args:
        schema: narrowed to the tasks' labels.
        path: what the sentence begins with.
    """
    values = [label.name for label in schema.labels if label.is_value]
    if values:
        raise ConfigError(
            f"{path}labels {values} are of kind 'value': what is compared, rankers and retrieval, is judged by labels "
            "of 0 and 1. Leave them out here; `recsys bundle` trains a ranker of both kinds of tasks"
        )


def refuse_unowned(config: RankerConfig, schema: Schema) -> None:
    """Raise ConfigError where an arm learns tables of entities whose own id is no feature: it says whose row is whose.

    Args:
        config: of the rankers.
        schema: from `ranker_schema`.
    """
    own = {owner: _own_id(schema, owner) for owner in ("user", "item")}
    mistakes = [
        f"arms.{arm.name}.tables names {name!r}, but {own[owner]!r} is not among the rankers' features as an id of the "
        f"{owner}, whose rows they would be: list it in features, and in {config.schema}"
        for arm in config.arms
        for name in arm.tables
        if (owner := name.split("_", 1)[0]) in own
        and not any((x.name, x.owner, x.kind) == (own[owner], owner, "id") for x in schema.features)
    ]
    if mistakes:
        raise ConfigError(*mistakes)


def _own_id(schema: Schema, owner: str) -> str:
    return schema.user_id if owner == "user" else schema.item_id


def _narrowed(schema: Schema, path: str, features: tuple[str, ...] | None, labels: tuple[str, ...] | None) -> Schema:
    """The schema with these features and labels. Raises SchemaError with the key that names what is not there."""
    mistakes = list[str]()
    for key, narrow in (("features", {"features": features}), ("tasks", {"labels": labels})):
        try:
            schema.select(**narrow)
        except SchemaError as error:
            mistakes += [f"{path}{key}: {told}" for told in error.told]
    if mistakes:
        raise SchemaError(*mistakes)
    return schema.select(features=features, labels=labels)


def known_part(schema: Schema, features: tuple[str, ...], labels: tuple[str, ...]) -> Schema:
    """The schema with those of these features and labels that it has; an empty tuple keeps all."""
    known = {entry.name for entry in schema.features}, {entry.name for entry in schema.labels}
    chosen = [
        tuple(dict.fromkeys(name for name in names if name in there))
        for names, there in zip((features, labels), known, strict=True)
    ]
    return schema.select(features=chosen[0] if features else None, labels=chosen[1] if labels else None)
