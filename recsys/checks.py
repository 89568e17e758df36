"""What can be seen to be wrong with a run before it starts: config against schemas, schemas against files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from recsys.config import ConfigError, RunConfig
from recsys.data.files import check_files, find_files
from recsys.data.schema import Schema
from recsys.downstream.ranking import downstream_schema, populations
from recsys.upstream import upstream_schema


def check_run(config: RunConfig, data: Path) -> None:
    """Check names, columns, types and row counts of everything the run will read; only Parquet footers are opened.

    Raises:
        ConfigError: a name in the config that its schema lacks, or too few rows for one step on every rank.
        SchemaError, DataError: a schema or a file that does not fit.
    """
    for upstream in config.upstreams:
        schema = upstream_schema(upstream, data)
        names = [label.name for label in schema.labels]
        wanted = upstream.loss.contrastive_label
        if wanted and wanted not in names:
            raise ConfigError(
                f"upstreams.{upstream.name}.loss.contrastive_label is {wanted!r}; use one of its tasks: {names}"
            )
        for owner in ("user", "item"):
            if not schema.owned_by(owner):
                raise ConfigError(f"upstream {upstream.name!r} has no {owner} feature: its {owner} tower needs one")
        rows = check_files(find_files(data, upstream.source.events), schema)
        needed = upstream.training.batch_size * config.ranks
        if rows < needed:
            raise ConfigError(
                f"upstream {upstream.name!r} has {rows} rows, less than one step of {config.ranks} ranks x "
                f"{upstream.training.batch_size}: lower upstreams.{upstream.name}.training.batch_size or ranks"
            )
        for owner, patterns in (("user", upstream.source.users), ("item", upstream.source.items)):
            if patterns:
                check_files(find_files(data, patterns), entity_schema(schema, owner))
    for downstream in populations(config).values():
        schema = downstream_schema(downstream, data, tuple(downstream.tasks.values()))
        for patterns in (downstream.train, downstream.validation, downstream.test):
            check_files(find_files(data, patterns), schema)


def entity_schema(schema: Schema, owner: str) -> Schema:
    """What of a schema an entity's own rows hold: its features, no labels."""
    narrow = schema.select(features=tuple(feature.name for feature in schema.owned_by(owner)), labels=())
    return replace(narrow, outcomes=())
