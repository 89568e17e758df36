"""Building an index or an overlay: which operation on each id counts, where its entry lies, and the file. See
format/index.py.

An operation is a word: the location of an upserted row times two, plus one; or, for a delete, twice the location that
the next row has. Of two operations on one id the greater one is the later one, and a delta's come after its base's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embedding_store.errors import InvalidIdsError
from embedding_store.format.files import CheckedSink
from embedding_store.format.index import (
    ABSENT,
    EMPTY,
    MAX_PROBE,
    SEEDS,
    SLOT,
    SLOTS,
    Header,
    Ids,
    Words,
    hash_ids,
    home_buckets,
    unhash,
)
from embedding_store.native.building import last_operations, place, plan, upserts
from embedding_store.scan.sorter import PairFile, Pairs, Sorter, Spill

ONE = np.uint64(1)


class Operations:
    """What one writer does to ids, in any order of the ids."""

    def __init__(self, scratch: Path, *, first: int = 0) -> None:
        self.scratch = scratch
        self.first = first
        """The writer's first location; smaller ones are its base's."""
        self.sorter = Sorter(scratch)

    def upsert(
        self,
        ids: Ids,  # [N]
        location: int,
    ) -> None:
        """Rows at this location and those after it."""
        self.sorter.add(Pairs(*upserts(ids, location)))

    def delete(
        self,
        ids: Ids,  # [N]
        location: int,
    ) -> None:
        """Deletes after the rows before this location and before the row at it."""
        self.sorter.add(Pairs(hash_ids(ids), np.full(len(ids), location << 1, np.uint64)))


@dataclass
class Settled:
    """The outcome of all operations."""

    entries: PairFile
    """(hash of seed 0, location, or ABSENT after a delete) of every id, by hash."""
    lost: Spill
    """Locations of the writer's own rows that a later operation replaced or deleted."""
    repeated: PairFile
    """(hash, operation), by hash, of the ids with several operations of the writer, one at least an upsert."""
    min_id: int | None = None
    """Least id that is not deleted."""
    max_id: int | None = None
    """Greatest id that is not deleted."""


def settle(operations: Operations, base: tuple[Iterable[Pairs], int] = ((), 0)) -> Settled:
    """Let the last operation on each id win. `base`: (hash, operation) by hash of what is known already, and the number
    of these."""
    scratch = operations.scratch
    settled = Settled(PairFile(scratch), Spill(scratch), PairFile(scratch))
    for h, op in operations.sorter.merged(*base):
        locations, ends, distinct = last_operations(h, op)
        if not distinct:
            last = np.append(h[1:] != h[:-1], True)
            upsert, own = (op & ONE).astype(bool), op >= operations.first << 1
            settled.lost.append(op[~last & own & upsert] >> ONE)
            _note_repeated(settled.repeated, h, op, own, upsert)
            h = h[last]
            locations, ends, _ = last_operations(h, op[last])
        settled.entries.append(Pairs(h, locations))
        if ends is not None:
            settled.min_id = ends[0] if settled.min_id is None else min(settled.min_id, ends[0])
            settled.max_id = ends[1] if settled.max_id is None else max(settled.max_id, ends[1])
    return settled


def _note_repeated(repeated: PairFile, h: Words, op: Words, own: np.ndarray, upsert: np.ndarray) -> None:
    h, op, upsert = h[own], op[own], upsert[own]
    clash = (h[1:] == h[:-1]) & (upsert[1:] | upsert[:-1])  # deleting an id twice is harmless
    noted = np.zeros(len(h), bool)
    noted[1:] |= clash
    noted[:-1] |= clash
    repeated.append(Pairs(h[noted], op[noted]))


def operations_of(entries: Iterable[Pairs]) -> Iterator[Pairs]:
    """(hash, operation) of (hash, location, or ABSENT): what `settle` makes the same entries of."""
    for h, location in entries:
        yield Pairs(h, np.where(location == ABSENT, np.uint64(0), location << ONE | ONE))


def write_index(sink: CheckedSink, entries: PairFile, scratch: Path) -> Header:
    """Write an index of (hash of seed 0, location) by hash. Memory: one chunk of the entries.

    Raises:
        InvalidIdsError: no seed keeps searches short; that takes ids that were chosen for it.
    """
    for seed in range(SEEDS):
        if seed:
            entries = rehashed(entries, seed - 1, seed, scratch)
        header, ends = _plan(entries, seed)
        if header.max_probe <= MAX_PROBE:
            _write(sink, entries, header, ends)
            return header
    message = f"these {entries.count} ids collide under each of {SEEDS} hash seeds: were they made for that?"
    raise InvalidIdsError(f"{message} Map them to other ids")


def rehashed(entries: PairFile, seed: int, new_seed: int, scratch: Path) -> PairFile:
    """The same entries by the hash of another seed."""
    sorter, result = Sorter(scratch), PairFile(scratch)
    for h, location in entries:
        sorter.add(Pairs(hash_ids(unhash(h, seed), new_seed), location))
    for pairs in sorter.merged():
        result.append(pairs)
    return result


def _plan(entries: PairFile, seed: int) -> tuple[Header, list[int]]:
    """The header, and behind which slot each chunk of the entries ends."""
    buckets, free, most, ends = home_buckets(entries.count), 0, 0, list[int]()
    for h in entries.hashes():
        free, probe = plan(h, buckets, free)
        most = max(most, probe)
        ends.append(free)
    return Header.of(buckets, free, entries.count, most, seed), ends


def _write(sink: CheckedSink, entries: PairFile, header: Header, ends: list[int]) -> None:
    sink.write(header.encode())
    free = 0
    for (h, location), end in zip(entries, ends, strict=True):
        sink.write(place(h, location, header.home_buckets, header.seed, free, end).view(np.uint8).data)
        sink.flush()
        free = end
    tail = np.zeros(header.total_buckets * SLOTS - free, SLOT)
    tail["location"] = EMPTY
    sink.write(tail.view(np.uint8).data)
