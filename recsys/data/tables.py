"""How many rows a table needs whose schema does not say: counted in the events that it is to be trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recsys.data.batch import Batch
from recsys.data.quarantine import NOTHING, Quarantine
from recsys.data.schema import Schema
from recsys.data.seen import SCAN_ROWS, Distinct
from recsys.data.sizes import key_of, room_for, unsized
from recsys.data.stream import EventStream


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
    return {key: room_for(distinct.merged()) for key, distinct in found.items()}
