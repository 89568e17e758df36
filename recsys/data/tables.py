"""How many rows a table needs whose schema does not say: counted in the events that it is to be trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from recsys.data.batch import Batch
from recsys.data.quarantine import NOTHING, Quarantine
from recsys.data.schema import SPARSE_KINDS, Feature, Schema
from recsys.data.seen import SCAN_ROWS, Distinct, Ints
from recsys.data.stream import EventStream

Tables = Mapping[str, int]
"""`<owner>.<table>` -> rows."""
_ROOM = 2
"""Rows for each id: more would rarely be trained, fewer would make ids share one."""
_SPARSE = 4
"""Ids that begin at 0 keep rows of their own, as long as the greatest is less than so many times their number."""


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


def count_tables(files: Sequence[Path], schema: Schema, skip: Quarantine = NOTHING) -> dict[str, int]:
    """Sizes for the tables that have none: twice the different ids in these events, or one for each id from 0 to the
    greatest where most of these are there. Nothing is read where every table has a size.

    Raises:
        DataError: what `EventStream` raises.
    """
    features = unsized(schema)
    if not features:
        return {}
    facts = schema.select(features=tuple(feature.name for feature in features), labels=())
    found = {key_of(feature): Distinct() for feature in features}

    def collect(batch: Batch) -> Batch:
        for feature in features:
            found[key_of(feature)].add(batch.sparse[feature.name].values())
        return batch

    for _ in EventStream(files, facts, batch_size=SCAN_ROWS, drop_last=False, skip=skip, transform=collect):
        pass
    return {key: _rows(distinct.merged()) for key, distinct in found.items()}


def described(tables: Tables) -> str:
    """For a line in the terminal."""
    return ", ".join(f"{name} {rows:,}" for name, rows in tables.items())


def _rows(ids: Ints) -> int:  # ascending
    room = _ROOM * max(1, len(ids))
    dense = len(ids) > 0 and ids[0] >= 0 and ids[-1] < _SPARSE * len(ids)
    return max(room, int(ids[-1]) + 1) if dense else room
