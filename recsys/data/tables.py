"""How many rows a table needs whose schema does not say: counted in the events that it is to be trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recsys.data.quarantine import NOTHING, Quarantine
from recsys.data.ranks import ALONE, Ints, Ranks, home
from recsys.data.schema import Schema
from recsys.data.seen import Distinct
from recsys.data.shares import read_share
from recsys.data.sizes import key_of, room_of, unsized


def count_tables(
    files: Sequence[Path], schema: Schema, skip: Quarantine = NOTHING, ranks: Ranks = ALONE
) -> dict[str, int]:
    """Sizes for the tables that have none: twice the different ids in these events, or one for each id from 0 to the
    greatest where most of these are there. Nothing is read where every table has a size. A collective.

    Raises:
        DataError: what `read_share` raises.
    """
    features = unsized(schema)
    if not features:
        return {}
    facts = schema.select(features=tuple(feature.name for feature in features), labels=())
    found = {key_of(feature): Distinct() for feature in features}
    for batch, *_ in read_share(files, facts, skip, ranks):
        for feature in features:
            found[key_of(feature)].add(batch.sparse[feature.name].values())
    return {key: room_of(*_extent(distinct.merged(), ranks)) for key, distinct in found.items()}


def _extent(ids: Ints, ranks: Ranks) -> tuple[int, int, int]:
    """How many ids all ranks have, int64 [n] each here, the least and the greatest. A collective."""
    (mine,) = ranks.exchange([ids], home(ids, ranks))
    count = int(ranks.sum(np.array([len(np.unique(mine))]))[0])
    lowest = np.iinfo(np.int64).min
    below, greatest = ranks.max(np.array([(~mine).max(initial=lowest), mine.max(initial=lowest)])).tolist()
    return count, ~int(below), int(greatest)
