"""What a delta changes in its base: found by looking for the changed ids alone, whatever else the base holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embedding_store.format.index import ABSENT, EMPTY, Ids, unhash
from embedding_store.format.manifest import Manifest
from embedding_store.scan.locations import Locations
from embedding_store.scan.sorter import PairFile, Pairs, Spill
from embedding_store.write.index import Settled

LEAST = 4096
"""Entries that an overlay may have whatever its index has: 110 KB, which processors' caches hold."""
SHARE = 16
"""Of more an overlay has at most one for so many of its index: a larger one is folded."""


@dataclass(frozen=True)
class Changes:
    """An overlay's content, and what a manifest says of the ids."""

    entries: PairFile
    """(hash of seed 0, location, or ABSENT) by hash of every id that was changed since the index was written, but for
    those that neither the index nor the delta has."""
    deleted: Spill
    """Ids that the base has and the delta has not, by hash."""
    rows: int
    """Ids that the delta has."""
    min_id: int | None
    max_id: int | None

    def fit(self, index_entries: int) -> bool:
        """Whether they may stay an overlay of an index of so many ids."""
        return self.entries.count <= max(LEAST, index_entries // SHARE)


def changes(base: Manifest, located: Locations, settled: Settled, *, first: int, scratch: Path) -> Changes:
    """What becomes of a base and `settled`: its overlay's entries and a delta's operations, settled.

    It costs what these do, but if the delta deletes the least or the greatest id: then all of the index is read for the
    next one. `first`: the delta's first location.
    """
    entries, deleted, rows, ends_go = PairFile(scratch), Spill(scratch), base.rows, False
    ends = [end for end in (base.statistics.min_id, base.statistics.max_id) if end is not None]
    for h, location in settled.entries:
        ids, absent = unhash(h), location == ABSENT
        asked = absent | (location >= first)
        had = np.zeros(len(ids), bool)
        had[asked] = located.find(ids[asked]) != EMPTY
        gone = ids[absent & had]
        deleted.append(gone.view(np.uint64))
        rows += int((asked & ~absent & ~had).sum()) - len(gone)
        ends_go |= bool(np.isin(gone, np.array(ends, np.int64)).any())
        kept = ~absent
        kept[absent] = located.find_in_index(ids[absent]) != EMPTY
        entries.append(Pairs(h[kept], location[kept]))
    if ends_go:
        ends = list(located.ends(_absent(entries)) or ())
    ends += [end for end in (settled.min_id, settled.max_id) if end is not None]
    return Changes(entries, deleted, rows, min(ends, default=None), max(ends, default=None))


def _absent(entries: PairFile) -> Ids:
    """Ids that are deleted, ascending."""
    return np.sort(np.concatenate([np.empty(0, np.int64), *(unhash(h[at == ABSENT]) for h, at in entries)]))
