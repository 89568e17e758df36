"""The keys of some rows: of the files that they are in, only the blocks that the keys lie in are read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pyarrow as pa

from embedding_store.errors import FileFormatError
from embedding_store.format.files import healed, mapped_file, text_array
from embedding_store.format.index import Ids, Words
from embedding_store.format.manifest import DataFile, Segment
from embedding_store.native.mapping import Mapping
from embedding_store.scan.pieces import CheckedPieces
from embedding_store.scan.rows import segments_and_rows
from embedding_store.storage.base import Storage


def read_keys(
    storage: Storage,
    files: Sequence[DataFile],
    locations: Words,  # [N], all in these files, of a series of text
    *,
    first_segment: int = 0,
) -> pa.LargeStringArray:
    """The keys of some rows, [N].

    Raises:
        CorruptStoreError: of the class that fits, naming the file.
    """
    order = np.argsort(locations)
    segments, rows = segments_and_rows(locations[order])
    pieces, number = [pa.array([], pa.large_string())], first_segment
    for file in files:
        wanted = [rows[segments == number + i] for i in range(len(file.segments))]
        if any(map(len, wanted)):
            pieces += healed(storage, partial(_keys_in, storage, file, wanted))
        number += len(file.segments)
    return pa.concat_arrays(pieces).take(pa.array(np.argsort(order)))


def _keys_in(storage: Storage, file: DataFile, wanted: Sequence[Ids]) -> list[pa.LargeStringArray]:
    """Those of the wanted rows of each of its segments."""
    pieces = CheckedPieces(Mapping.open([mapped_file(storage, file)], copies=storage.copies))
    where = storage.locate(file.path)
    return [_keys(pieces, segment, rows, where) for segment, rows in zip(file.segments, wanted, strict=True)]


def _keys(pieces: CheckedPieces, segment: Segment, rows: Ids, where: str) -> pa.LargeStringArray:
    assert segment.key is not None
    assert segment.text is not None
    data = pieces.mapping.storage.numpy()
    places = segment.key + 8 * rows
    pieces.check(places, places + 16)
    offsets = data[: len(data) // 8 * 8].view(np.int64)
    first, last = offsets[places // 8], offsets[places // 8 + 1]
    if bool(((first < 0) | (last < first) | (last > len(data) - segment.text)).any()):
        raise FileFormatError(where, "has keys that end before they start, or behind it: write the snapshot again")
    pieces.check(segment.text + first, segment.text + last)
    ends = np.append(0, (last - first).cumsum())
    # Where each byte of the text comes from: the start of its key, and as far behind it as its place in the text is.
    sources = np.repeat(segment.text + first - ends[:-1], last - first) + np.arange(ends[-1])
    return text_array(ends, data[sources], where)
