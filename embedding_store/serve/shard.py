"""One rank's rows of a snapshot, read by all ranks together: every byte of the files by one rank alone.

An id belongs to rank (h * ranks) >> 64 of its hash h of seed 0, so that a rank's part of the index is one piece of it.
Its rows lie anywhere. So each rank reads an equal piece of the rows, whatever ids they have, and sends every row to the
rank that has found it in its part of the index; dead rows, which nobody asks for, go nowhere. A rank holds its rows as
records (`native/ops.gather`), in the order in which they are stored, behind an index of its own: memory is its part,
some 50 bytes an id while it is loaded, and a piece of PIECE_BYTES.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedding_store.dtypes import DTYPES
from embedding_store.errors import InvalidIndexError, MissingFileError
from embedding_store.format.index import EMPTY, SLOT, Ids, Placement, Words, hash_ids, home_buckets, unhash
from embedding_store.format.manifest import DataFile, Manifest, Segment, StoredFile
from embedding_store.format.ranges import RangeReader
from embedding_store.history.tombstones import gone
from embedding_store.native import gpu
from embedding_store.native.layout import BUCKET_BYTES
from embedding_store.scan.part import part_entries
from embedding_store.scan.rows import RowNumbers
from embedding_store.serve.ranks import Ranks
from embedding_store.storage.base import Storage

PIECE_BYTES = 8 << 20
"""Of records that a rank reads and sends at a time."""
SEED = 1
"""Of a rank's own index. Another one than what chose the rank: its ids are alike in the first bits of that hash."""
FLAG = np.frombuffer(np.uint32(1).tobytes(), np.uint8)
"""The end of every record: what is not there has zeros."""


@dataclass(frozen=True)
class Shard:
    """What a rank holds."""

    storage: Tensor
    """uint8 [bytes]: the index, and from `records_at` on the records."""
    layout: Tensor
    """int64 [12], on the CPU: of records as if each were a vector of float32, which a lookup copies bit by bit."""
    rows: int
    """Number of records, which is that of its ids."""
    record_bytes: int
    """R, a multiple of 4."""
    read_bytes: int
    """Bytes of the snapshot's files that were read for it, those of checksums apart."""

    @property
    def records(self) -> Tensor:
        """uint8 [rows, R], sharing memory."""
        return self.storage[len(self.storage) - self.rows * self.record_bytes :].view(-1, self.record_bytes)

    def to(self, device: torch.device) -> Shard:
        """The same on a device."""
        place = gpu.usable(device) if device.type == "cuda" else device
        return replace(self, storage=gpu.copied(self.storage, place))


def record_bytes(manifest: Manifest) -> int:
    """R: the vector, up to a multiple of 4, scale and offset if there are, and the flag."""
    dtype = DTYPES[manifest.dtype]
    return _padded(dtype.width(manifest.dim) * dtype.torch_dtype.itemsize) + (8 if dtype.quantised else 0) + 4


def load_shard(storage: Storage, manifest: Manifest, ranks: Ranks) -> Shard:
    """This rank's rows. A collective; the ranks' tensors are on the CPU.

    Raises:
        CorruptStoreError: of the class that fits, naming the file; VersionExpiredError: its files are gone.
        RankFailedError: another rank raised one of these.
        RanksDisagreeError: the ranks were given different snapshots.
    """
    ranks.require_same("the snapshots to load", f"{manifest.series} version {manifest.version} {manifest.content}")
    files = _Files(storage, manifest)
    positions, h, error = np.empty(0, np.int64), np.empty(0, np.uint64), None
    try:
        h, positions = _entries(files, ranks)
    except Exception as raised:
        error = raised
    ranks.agree(error)
    total = sum(ranks.all_objects(len(h)))
    if total != manifest.rows:
        where = storage.locate(manifest.own_index.path)
        raise InvalidIndexError(where, f"leaves {total} ids, its manifest says {manifest.rows} rows")
    order, shard = positions.argsort(), None
    try:
        shard = _empty(unhash(h[order]), record_bytes(manifest))
    except Exception as raised:  # out of memory: the others would wait for what this rank wants of them
        error = raised
    ranks.agree(error)
    assert shard is not None
    _receive(files, positions[order], shard.records, ranks)
    return replace(shard, read_bytes=files.bytes_read)


class _Files:
    """A snapshot's files, each opened when it is first read."""

    def __init__(self, storage: Storage, manifest: Manifest) -> None:
        self._storage, self.manifest = storage, manifest
        self._open: dict[str, RangeReader] = {}
        self._segments = [(file, segment) for file in manifest.data for segment in file.segments]
        self.numbers = RowNumbers(manifest.segments)
        self.dtype = DTYPES[manifest.dtype]
        self.vector_bytes = self.dtype.width(manifest.dim) * self.dtype.torch_dtype.itemsize

    @property
    def bytes_read(self) -> int:
        return sum(reader.bytes_read for reader in self._open.values())

    def reader(self, file: StoredFile) -> RangeReader:
        if file.path not in self._open:
            try:
                self._open[file.path] = RangeReader(self._storage, file)
            except MissingFileError:
                tombstone = gone(self._storage, self.manifest.version)
                if tombstone is None:
                    raise
                raise tombstone.error() from None
        return self._open[file.path]

    def records(self, first: int, stop: int) -> Tensor:
        """Records of rows first .. stop - 1, numbered through all segments, uint8 [stop - first, R]."""
        records = np.zeros((stop - first, record_bytes(self.manifest)), np.uint8)
        records[:, -len(FLAG) :] = FLAG
        starts = self.numbers.starts
        for number in range(int(np.searchsorted(starts, first, "right")) - 1, len(self._segments)):
            file, segment = self._segments[number]
            low, high = max(first, int(starts[number])), min(stop, int(starts[number + 1]))
            if low >= high:
                break
            self._fill(records[low - first : high - first], file, segment, low - int(starts[number]))
        return torch.from_numpy(records)

    def _fill(self, records: NDArray[np.uint8], file: DataFile, segment: Segment, row: int) -> None:
        """Rows `row` and on of a segment into these records."""
        reader, count = self.reader(file), len(records)
        columns = [(segment.vector, self.vector_bytes, 0)]
        after = _padded(self.vector_bytes)
        columns += [
            (start, 4, after + 4 * i) for i, start in enumerate((segment.scale, segment.offset)) if start is not None
        ]
        for start, width, at in columns:
            data = reader.read(start + row * width, start + (row + count) * width)
            records[:, at : at + width] = data.reshape(count, width)


def _entries(files: _Files, ranks: Ranks) -> tuple[Words, Ids]:
    """Hashes of seed 0 and rows, numbered through all segments, of this rank's ids."""
    manifest = files.manifest
    h, locations = part_entries(manifest, ranks.rank, ranks.size, files.reader)
    return h, files.numbers.positions(locations, files.reader(manifest.own_index).where)


def _empty(ids: Ids, row_bytes: int) -> Shard:
    """The index of these ids, and room for their records."""
    index, layout = _index(ids, row_bytes)
    held = torch.empty(len(index) + len(ids) * row_bytes, dtype=torch.uint8)
    held[: len(index)] = torch.from_numpy(index)
    return Shard(held, layout, len(ids), row_bytes, 0)


def _index(ids: Ids, row_bytes: int) -> tuple[NDArray[np.uint8], Tensor]:
    """An index from each id to its place among them, uint8 [bytes], and a layout with the records behind it."""
    h = hash_ids(ids, SEED)
    order = h.argsort()
    placement = Placement(home_buckets(len(ids)))
    slots = placement.next(h[order])
    header = placement.header(len(ids), SEED)
    index = np.zeros(header.total_buckets * BUCKET_BYTES // SLOT.itemsize, SLOT)
    index["location"] = EMPTY
    index["id"][slots], index["location"][slots] = ids[order], order
    data = index.view(np.uint8)
    numbers = [0, header.home_buckets, header.total_buckets, SEED, 1, 0, 0, 0, len(data), -1, -1, len(ids)]
    return data, torch.tensor(numbers, dtype=torch.int64)


def _receive(files: _Files, rows: Ids, records: Tensor, ranks: Ranks) -> None:
    """Fill `records` with those of `rows`, ascending, from the ranks that read them; read what they want of this one.

    Round by round every rank reads a piece of its rows, of equal size. Both sides know what a round moves: the asked
    one from the lists that it got first, the asking one from its own.
    """
    stored, piece = files.manifest.stored_rows, max(1, PIECE_BYTES // record_bytes(files.manifest))
    bounds = np.array([stored * rank // ranks.size for rank in range(ranks.size + 1)])
    mine = _cuts(rows, bounds)  # where in `rows` each rank's begin
    wanted = _exchange_rows(rows, mine, ranks)
    first, last = bounds[ranks.rank : ranks.rank + 2].tolist()
    rounds = -(-int(np.diff(bounds).max()) // piece)
    error = None
    for number in range(rounds):
        begin, end = min(first + number * piece, last), min(first + (number + 1) * piece, last)
        cut = [ids[slice(*np.searchsorted(ids, (begin, end)))] for ids in wanted]
        asked = np.concatenate(cut)
        sent = torch.empty(len(asked), records.shape[1], dtype=torch.uint8)
        if len(asked) and error is None:
            try:
                sent = files.records(begin, end)[torch.from_numpy(asked - begin)]
            except Exception as raised:  # the others wait for what is sent: agree on it when all is
                error = raised
        places = [
            (start + a, start + b)
            for start, part, low, high in _parts(rows, mine, bounds)
            for a, b in [np.searchsorted(part, (low + number * piece, min(low + (number + 1) * piece, high)))]
        ]
        received = ranks.exchange(sent, [len(ids) for ids in cut], [b - a for a, b in places])
        taken = 0
        for a, b in places:
            records[a:b] = received[taken : taken + b - a]
            taken += int(b - a)
    ranks.agree(error)


def _cuts(rows: Ids, bounds: Ids) -> list[int]:
    return np.searchsorted(rows, bounds).tolist()


def _parts(rows: Ids, cuts: list[int], bounds: Ids) -> Iterator[tuple[int, Ids, int, int]]:
    """Of each rank: where in `rows` those that it reads begin, these, and the bounds of what it reads."""
    for (start, stop), (low, high) in zip(pairwise(cuts), pairwise(bounds.tolist()), strict=True):
        yield start, rows[start:stop], low, high


def _exchange_rows(rows: Ids, cuts: list[int], ranks: Ranks) -> list[Ids]:
    """What each rank wants of this one, by row, ascending."""
    sent = [stop - start for start, stop in pairwise(cuts)]
    counts = ranks.exchange(torch.tensor(sent), [1] * ranks.size, [1] * ranks.size).tolist()
    wanted = ranks.exchange(torch.from_numpy(rows), sent, counts).numpy()
    return np.split(wanted, np.cumsum(counts)[:-1])


def _padded(size: int) -> int:
    return -(-size // 4) * 4
