"""Rows of entities that no event brings: files of one owner's rows, and what these say of who is withdrawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from recsys.data.delivered import column_names, id_column
from recsys.data.quarantine import Quarantine
from recsys.data.scan import Part, Window
from recsys.data.schema import Label, Schema, entity_schema
from recsys.data.stream import EventStream

_SCAN_ROWS = 65_536
"""Rows of ids, times and flags that are read at once."""


def entity_parts(
    files: Sequence[Path], schema: Schema, owner: str, *, window: Window | None = None, distinct: bool = False
) -> list[Part]:
    """What is to be found out about these rows before they are used: the features, and who is withdrawn.

    Args:
        files: of this owner's rows, one or more.
        schema: of the events.
        owner: `user` or `item`.
        window: the day that they must be of.
        distinct: whether an entity may have one row alone.
    """
    once = id_column(schema, owner) if distinct else ""
    parts = [Part(files=files, schema=entity_schema(schema, owner), window=window, distinct=once)]
    if flagged := _flagged(files, schema, owner):
        parts.append(Part(files=flagged, schema=_flags(schema, owner)))
    return parts


def withdrawn_after(
    before: Mapping[int, int], files: Sequence[Path], schema: Schema, owner: str, skip: Quarantine
) -> dict[int, int]:
    """Who is withdrawn once these rows are known: of each entity its last row by time says so, of equal ones the later.

    A row without the flag brings nobody back who was withdrawn by a newer one.

    Args:
        before: id -> time of the row that withdrew it, ms.
        files: of this owner's rows, in the order of their delivery.
        schema: of the events.
        owner: `user` or `item`.
        skip: rows that are left out.
    """
    flagged = _flagged(files, schema, owner)
    if not flagged:
        return dict(before)
    stream = EventStream(flagged, _flags(schema, owner), batch_size=_SCAN_ROWS, drop_last=False, skip=skip)
    read = [(batch.user_ids, batch.timestamps, batch.labels[:, 0]) for batch in stream]
    ids, times, flags = (np.concatenate([part.numpy() for part in column]) for column in zip(*read, strict=True))
    order = np.lexsort((times, ids))  # stable: of equal times the later row comes last
    last = order[np.append(ids[order][1:] != ids[order][:-1], True)]
    after = dict(before)
    for id_, time, flag in zip(ids[last].tolist(), times[last].tolist(), flags[last].tolist(), strict=True):
        if flag:
            after[id_] = max(time, after.get(id_, time))
        elif time >= after.get(id_, time):
            after.pop(id_, None)
    return after


def _flagged(files: Sequence[Path], schema: Schema, owner: str) -> list[Path]:
    """Files that say who is withdrawn: all of items, where the schema names a column for it, and those of users that
    have it."""
    if not schema.withdrawn:
        return []
    return [file for file in files if owner == "item" or schema.withdrawn in column_names(file)]


def _flags(schema: Schema, owner: str) -> Schema:
    """Id, time and flag of entity rows, which have no other id."""
    column = id_column(schema, owner)
    return Schema(
        labels=(Label(name=schema.withdrawn),),
        timestamp=schema.timestamp,
        user_id=column,
        item_id=column,
        max_bad_rows=schema.max_bad_rows,
    )
