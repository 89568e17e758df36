"""The index file `index.hash` as bytes: its header, its hash, and where an entry belongs.

Buckets of 64 bytes hold four entries of 16 bytes, (id, location). Entries lie in the order of their hash, each in its
home bucket or, where that is full, behind it. The hash is a bijection of the id: equal hashes are equal ids.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedding_store.errors import FileFormatError, InvalidIndexError
from embedding_store.native.layout import ABSENT as ABSENT
from embedding_store.native.layout import BUCKET_BYTES
from embedding_store.native.layout import EMPTY as EMPTY
from embedding_store.native.layout import SLOT as SLOT

Ids = NDArray[np.int64]
Words = NDArray[np.uint64]

MAGIC = b"ESINDEX2"
HEADER_BYTES = 64
SLOTS = 4  # entries a bucket holds
LOAD = 0.6  # at most this part of the slots is used
SEEDS = 8
MAX_PROBE = 32  # buckets that a search visits at most
_LAYOUT = struct.Struct("<8s7q")
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_SHIFT = np.uint64(33)
_MULTIPLIERS = (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53)
_INVERSES = tuple(pow(multiplier, -1, 2**64) for multiplier in reversed(_MULTIPLIERS))


def hash_ids(
    ids: Ids,  # [N]
    seed: int = 0,
) -> Words:
    """h(id), uint64 [N]: murmur3's finaliser of the id plus a constant for the seed."""
    return _mix(ids.view(np.uint64) + _offset(seed), _MULTIPLIERS)


def unhash(
    h: Words,  # [N]
    seed: int = 0,
) -> Ids:
    """The ids whose hashes these are, int64 [N]."""
    return (_mix(h, _INVERSES) - _offset(seed)).view(np.int64)


def home_buckets(entries: int) -> int:
    """How many buckets an index of so many entries has, but for its tail."""
    return max(1, -(-entries * 10 // (SLOTS * 6)))


def home(
    h: Words,  # [N]
    buckets: int,
) -> Ids:
    """The bucket in which the search for each hash starts, int64 [N]: the high word of the 128-bit h * buckets."""
    high, low = h >> _HALF, h & _LOW
    top, bottom = np.uint64(buckets >> 32), np.uint64(buckets & 0xFFFFFFFF)
    middle = high * bottom + (low * bottom >> _HALF)  # cannot wrap around: (2^32 - 1)^2 + 2^32 - 1 < 2^64
    carry = (middle & _LOW) + low * top
    return (high * top + (middle >> _HALF) + (carry >> _HALF)).view(np.int64)


@dataclass(frozen=True)
class Header:
    """The first 64 bytes."""

    home_buckets: int
    """Buckets in which a search can start."""
    total_buckets: int
    """The tail included: its last bucket has an empty slot, so that every search ends."""
    entries: int
    """Number of ids."""
    max_probe: int
    """Most buckets that the search for any id of the index visits; 0 without entries."""
    seed: int
    """Of the hash."""

    @property
    def file_bytes(self) -> int:
        """Size of the whole file."""
        return HEADER_BYTES + self.total_buckets * BUCKET_BYTES

    def encode(self) -> bytes:
        """As stored."""
        numbers = (self.home_buckets, self.total_buckets, self.entries, self.max_probe, self.seed, 0, 0)
        return _LAYOUT.pack(MAGIC, *numbers)

    @staticmethod
    def of(home_buckets: int, free: int, entries: int, max_probe: int, seed: int) -> Header:
        """The header of an index whose last entry lies before slot `free`."""
        total = max(home_buckets, free // SLOTS + 1)  # the bucket of the first free slot
        return Header(home_buckets, total, entries, max_probe, seed)

    @staticmethod
    def decode(data: bytes, *, file_bytes: int, entries: int, path: str) -> Header:
        """Read the header of a file of `file_bytes` whose manifest says that it has so many entries.

        Raises:
            FileFormatError: another magic.
            InvalidIndexError: numbers that contradict each other, the file's size or the manifest.
        """
        magic, *numbers = _LAYOUT.unpack(data)
        if magic != MAGIC:
            raise FileFormatError(path, f"starts with {magic!r}, an index starts with {MAGIC!r}: restore it")
        header = Header(*numbers[:5])
        if numbers[5:] != [0, 0]:
            raise InvalidIndexError(path, f"reserved numbers of its header are {numbers[5:]}, expected zeros")
        if header.entries != entries:
            raise InvalidIndexError(path, f"its header says {header.entries} entries, its manifest {entries} rows")
        if not 1 <= header.home_buckets <= header.total_buckets or header.file_bytes != file_bytes:
            counts = f"{header.home_buckets} home buckets, {header.total_buckets} in all"
            raise InvalidIndexError(path, f"its header says {counts}, but the file has {file_bytes} bytes")
        if not 0 <= header.max_probe <= MAX_PROBE or not 0 <= header.seed < SEEDS:
            raise InvalidIndexError(path, f"max_probe is {header.max_probe} and seed {header.seed}: out of bounds")
        return header


class Placement:
    """Where entries lie that come in the order of their hash, in an index with so many home buckets."""

    def __init__(self, buckets: int) -> None:
        self._buckets = buckets
        self._max_probe = 0
        self.free = 0
        """The slot behind the last entry."""

    def next(
        self,
        h: Words,  # [N], of the entries that follow
    ) -> Ids:
        """Their slots, int64 [N]: each the first of its home bucket, or the one behind the entry before it."""
        if not len(h):
            return np.empty(0, np.int64)
        homes, position = home(h, self._buckets), np.arange(len(h))
        earliest = homes * SLOTS
        earliest[0] = max(earliest[0], self.free)
        slots = np.maximum.accumulate(earliest - position) + position
        self.free = int(slots[-1]) + 1
        self._max_probe = max(self._max_probe, int((slots // SLOTS - homes).max()) + 1)
        return slots

    def header(self, entries: int, seed: int) -> Header:
        """The header of an index of the entries so far."""
        return Header.of(self._buckets, self.free, entries, self._max_probe, seed)


def _offset(seed: int) -> np.uint64:
    return np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)


def _mix(x: Words, multipliers: tuple[int, ...]) -> Words:
    x = x ^ (x >> _SHIFT)
    for multiplier in multipliers:
        x *= np.uint64(multiplier)
        x ^= x >> _SHIFT
    return x
