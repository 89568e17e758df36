"""A part of a snapshot by the hash of its ids: of the index, whose entries lie in the order of the hash, only that."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from embedding_store.errors import InvalidIndexError
from embedding_store.format.index import (
    BUCKET_BYTES,
    EMPTY,
    HEADER_BYTES,
    SLOT,
    Header,
    hash_ids,
    home,
)
from embedding_store.format.manifest import IndexFile, Manifest, StoredFile
from embedding_store.format.ranges import Joined, RangeReader
from embedding_store.scan.index import overlaid
from embedding_store.scan.sorter import NO_PAIRS, Pairs

Open = Callable[[StoredFile], RangeReader]


def part_entries(manifest: Manifest, part: int, parts: int, reader: Open) -> Pairs:
    """(hash of seed 0, location) of the ids whose hash h has (h * parts) >> 64 == part, by hash.

    Raises:
        CorruptStoreError: of the class that fits, naming the file.
    """
    index = _file_part(manifest.index, manifest.index_entries, part, parts, reader)
    if manifest.overlay is None:
        return index
    overlay = _file_part(manifest.overlay, manifest.overlay.entries, part, parts, reader)
    pieces = list(overlaid([index], [overlay]))
    h, locations = (np.concatenate(columns) for columns in zip(*pieces, strict=True)) if pieces else NO_PAIRS
    return Pairs(h, locations)


def _file_part(file: IndexFile, entries: int, part: int, parts: int, reader: Open) -> Pairs:
    """Those of one file, as they stand there. An index of another seed than 0, one in very many, is read whole."""
    opened = Joined([reader(piece) for piece in file.pieces])
    data = opened.read(0, min(HEADER_BYTES, opened.bytes)).tobytes().ljust(HEADER_BYTES, b"\0")
    header = Header.decode(data, file_bytes=opened.bytes, entries=entries, path=opened.where)
    first, stop = (0, header.total_buckets) if header.seed else _buckets(header, part, parts)
    slots = opened.read(HEADER_BYTES + first * BUCKET_BYTES, HEADER_BYTES + stop * BUCKET_BYTES).view(SLOT)
    used = slots[slots["location"] != EMPTY]
    h, locations = hash_ids(used["id"].copy(), header.seed), used["location"].copy()
    if bool((h[1:] <= h[:-1]).any()):
        raise InvalidIndexError(opened.where, "its entries are not in their places: write the snapshot again")
    if header.seed:
        h = hash_ids(used["id"].copy(), 0)
        order = h.argsort()
        h, locations = h[order], locations[order]
    mine = home(h, parts) == part
    return Pairs(h[mine], locations[mine])


def _buckets(header: Header, part: int, parts: int) -> tuple[int, int]:
    """Those in which the part's entries may lie: first, and behind the last."""
    ends = np.array([-(-(part << 64) // parts), -(-((part + 1) << 64) // parts) - 1], np.uint64)  # least, greatest hash
    first, last = home(ends, header.home_buckets).tolist()
    return first, min(last + max(header.max_probe, 1), header.total_buckets)
