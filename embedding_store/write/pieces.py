"""The index of a snapshot that several processes write, by all of them: each a piece of the very file that one would
write, from the entries of all fragments whose hashes fall into it.

An entry lies in its home bucket or a little behind it. So where a piece begins in its first bucket is known from the
entries shortly before; none that is further away than a search may be long matters.
"""

from __future__ import annotations

import hashlib
import io
import uuid
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from embedding_store.errors import DuplicateIdsError, FragmentError, InvalidIdsError
from embedding_store.format.files import StoredReader, create_checked
from embedding_store.format.index import (
    BUCKET_BYTES,
    EMPTY,
    HEADER_BYTES,
    MAX_PROBE,
    SLOT,
    SLOTS,
    Header,
    Words,
    home_buckets,
    unhash,
)
from embedding_store.format.manifest import PIECE_BYTES, ROW_BITS, IndexFile, StoredFile
from embedding_store.native.building import place, plan
from embedding_store.scan.sorter import Pairs, Sorter
from embedding_store.storage.base import Storage
from embedding_store.write.fragments import ENTRY_BYTES, Fragment, SharedDraft, read_entries

BACK = 256  # buckets that are looked back, at first
HUGE_PAGE = 2 << 20  # bytes: pieces of multiples of it, where there are enough, are mapped as an index of one file is


class Writable(Protocol):
    def write(self, data: memoryview, /) -> int: ...


@dataclass(frozen=True, kw_only=True)
class IndexPiece:
    """A part of an index that is on the disk: what `Series.commit` wants of it."""

    part: int
    fragments: str
    """A digest of those that it is made of."""
    file: StoredFile
    max_probe: int
    """Most buckets that the search for an id in it visits."""
    free: int
    """The slot behind its last entry."""


def cuts(entries: int, parts: int) -> list[int] | None:
    """The buckets with which the pieces of so many parts begin, and behind which the last one ends but for its tail:
    [parts + 1]. What is before them is the commit's, which knows the header last. None: too few to be cut."""
    size = home_buckets(entries) * BUCKET_BYTES + HEADER_BYTES
    least = next((each for each in (HUGE_PAGE, PIECE_BYTES) if size // each - 1 >= parts), None)
    if least is None:
        return None
    whole, per_piece = size // least, least // BUCKET_BYTES
    starts = [(1 + (whole - 1) * part // parts) * per_piece - HEADER_BYTES // BUCKET_BYTES for part in range(parts)]
    return [*starts, home_buckets(entries)]


def digest(fragments: Sequence[Fragment]) -> str:
    """What tells these fragments, in their order, from others."""
    names = "\n".join(f"{one.part} {one.count} {one.entries}" for one in fragments)
    return hashlib.blake2b(names.encode(), digest_size=16).hexdigest()


def write_piece(storage: Storage, draft: SharedDraft, fragments: Sequence[Fragment], part: int) -> IndexPiece | None:
    """One part's piece; None where the commit writes the index alone: few ids, or a delta. `fragments`: by their parts.

    Raises:
        DuplicateIdsError: an id is in two fragments.
        InvalidIdsError: searches would be too long; that takes ids that were chosen for it.
        CorruptStoreError: of the class that fits.
    """
    count = sum(fragment.count for fragment in fragments)
    starts = cuts(count, draft.parts)
    if draft.base is not None or starts is None:
        return None
    stop = starts[part + 1] if part + 1 < draft.parts else None
    with create_checked(storage, f"{draft.folder}/{part:06d}-{uuid.uuid4().hex[:12]}-index.hash") as new:
        max_probe, free = _write_range(new.sink, storage, fragments, home_buckets(count), starts[part], stop)
    storage.sync(draft.folder)
    return IndexPiece(part=part, fragments=digest(fragments), file=new.stored, max_probe=max_probe, free=free)


def join(
    storage: Storage, draft: SharedDraft, fragments: Sequence[Fragment], pieces: Sequence[IndexPiece], name: str
) -> IndexFile:
    """The index that the pieces are, by a first one with the header, which is written under this name.

    Raises:
        FragmentError: a piece is missing or there twice, or was made of other fragments; else as `write_piece`.
    """
    count, by_part = sum(fragment.count for fragment in fragments), {piece.part: piece for piece in pieces}
    starts = cuts(count, draft.parts)
    if starts is None or sorted(piece.part for piece in pieces) != list(range(draft.parts)):
        wanted = f"one of each part, 0 .. {draft.parts - 1}" if starts else "none, for so few ids"
        raise FragmentError(f"pieces are of parts {sorted(piece.part for piece in pieces)}: give {wanted}")
    if wrong := [piece.part for piece in pieces if piece.fragments != digest(fragments)]:
        raise FragmentError(f"the pieces of parts {wrong} were made of other fragments: write them again")
    buckets, head = home_buckets(count), io.BytesIO()
    max_probe, _ = _write_range(head, storage, fragments, buckets, 0, starts[0])
    most = max(max_probe, *(piece.max_probe for piece in pieces))
    header = Header.of(buckets, by_part[draft.parts - 1].free, count, most, 0)
    with create_checked(storage, name) as new:
        new.sink.write(header.encode())
        new.sink.write(head.getbuffer())
    continued = tuple(by_part[part].file for part in range(draft.parts))
    return IndexFile(**vars(new.stored), kind="hash", continued=continued)


def _write_range(
    sink: Writable, storage: Storage, fragments: Sequence[Fragment], buckets: int, first: int, stop: int | None
) -> tuple[int, int]:
    """Write buckets `first` .. `stop` - 1, or to the last one. Returns the most buckets that the search for an id
    visits, and the slot behind the last entry."""
    low = _look_back(storage, fragments, buckets, first)
    free, most, done = low * SLOTS, 0, first * SLOTS
    end = 2**62 if stop is None else stop * SLOTS
    for h, location in _entries(storage, fragments, buckets, low, stop):
        _check_distinct(h)
        behind, probe = plan(h, buckets, free)
        most = max(most, probe)
        if most > MAX_PROBE:
            message = f"the search for an id would visit {most} buckets, {MAX_PROBE} are allowed"
            raise InvalidIdsError(f"{message}: were these ids made for that? Write the snapshot with `Series.write`")
        slots = place(h, location, buckets, 0, free, behind)[max(0, done - free) : max(0, end - free)]
        if len(slots):
            sink.write(slots.view(np.uint8).data)
            done += len(slots)
        free = behind
    if stop is None:
        end = SLOTS * Header.of(buckets, free, 0, 0, 0).total_buckets
    tail = np.zeros(end - done, SLOT)
    tail["location"] = EMPTY
    sink.write(tail.view(np.uint8).data)
    return most, free


def _look_back(storage: Storage, fragments: Sequence[Fragment], buckets: int, first: int) -> int:
    """A bucket, `first` or one before, so that entries from there on alone say what lies in `first`: whether there is
    nothing before it, or all that searches allow, comes to the same."""
    back = BACK
    while (low := max(0, first - back)) > 0:
        least, most = low * SLOTS, (low + MAX_PROBE) * SLOTS
        for h, _ in _entries(storage, fragments, buckets, low, first):
            least, most = plan(h, buckets, least)[0], plan(h, buckets, most)[0]
        if max(least, first * SLOTS) == max(most, first * SLOTS):
            return low
        back *= 4
    return 0


def _entries(
    storage: Storage, fragments: Sequence[Fragment], buckets: int, first: int, stop: int | None
) -> Iterator[Pairs]:
    """(hash, location) of all entries with a home bucket from `first` to `stop` - 1, by hash."""
    low, high = (-(-(bucket << 64) // buckets) for bucket in (first, buckets if stop is None else stop))
    sorter, before = Sorter(storage.scratch()), 0
    for fragment in fragments:
        if fragment.entries is not None:
            with StoredReader(storage, fragment.entries) as reader:
                hashes = _Hashes(reader, fragment.count)
                start, end = bisect_left(hashes, low), bisect_left(hashes, high)
                for h, location in read_entries(reader, start, end):
                    sorter.add(Pairs(h, location + np.uint64(before << ROW_BITS)))
        before += sum(len(file.segments) for file in fragment.data)
    yield from sorter.merged()


class _Hashes:
    """The hashes of a fragment's entries, ascending, read one by one."""

    def __init__(self, reader: StoredReader, count: int) -> None:
        self._reader, self._count = reader, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> int:
        return int(self._reader.read(ENTRY_BYTES * place, ENTRY_BYTES * place + 8).view(np.uint64)[0])


def _check_distinct(h: Words) -> None:
    again = np.flatnonzero(h[1:] == h[:-1])
    if len(again):
        ids = np.unique(unhash(h[again]))
        names = ", ".join(map(str, ids[:5].tolist())) + (", ..." if len(ids) > 5 else "")
        raise DuplicateIdsError(f"{len(ids)} ids are in several fragments ({names}): give each id to one of them")
