"""The sizes of tables that a schema leaves out, once they have been counted (`recsys.data.tables`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from recsys.data.schema import SPARSE_KINDS, Feature, Schema

Tables = Mapping[str, int]
"""`<owner>.<table>` -> rows."""


def key_of(feature: Feature) -> str:
    """Under which name its table is counted."""
    return f"{feature.owner}.{feature.table_name}"


def unsized(schema: Schema) -> tuple[Feature, ...]:
    """The features whose tables have no size yet."""
    return tuple(feature for feature in schema.features if feature.kind in SPARSE_KINDS and not feature.rows)


def with_tables(schema: Schema, tables: Tables) -> Schema:
    """The schema with these sizes where it says none.

    Raises:
        KeyError: a table without a size is not among them.
    """
    missing = {feature.name for feature in unsized(schema)}
    return replace(
        schema,
        features=tuple(replace(x, rows=tables[key_of(x)]) if x.name in missing else x for x in schema.features),
    )


def described(tables: Tables) -> str:
    """For a line in the terminal."""
    return ", ".join(f"{name} {rows:,}" for name, rows in tables.items())
