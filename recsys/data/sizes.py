"""The sizes of tables that a schema leaves out, once they have been counted (`recsys.data.tables`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from recsys.data.schema import SPARSE_KINDS, Feature, Schema

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


def described(tables: Tables) -> str:
    """For a line in the terminal."""
    return ", ".join(f"{name} {rows:,}" for name, rows in tables.items())


def room_for(ids: NDArray[np.int64]) -> int:
    """Rows of a table for these ids, int64 [N], ascending; see `room_of`."""
    return room_of(len(ids), int(ids[0]), int(ids[-1])) if len(ids) else room_of(0, 0, 0)


def room_of(count: int, least: int, greatest: int) -> int:
    """Rows of a table for so many ids: twice as many, or one for each id from 0 to the greatest where most of these are
    there. Of no ids the other arguments say nothing."""
    room = _ROOM * max(1, count)
    dense = count > 0 and least >= 0 and greatest < _SPARSE * count
    return max(room, greatest + 1) if dense else room
