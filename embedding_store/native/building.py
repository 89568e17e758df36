"""What an index is built by, natively: pairs sorted, the last operations found, entries laid out in buckets.

Each uses torch's threads and lets go of the GIL. format/index.py and write/index.py say what the words mean.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from embedding_store.native import scratch
from embedding_store.native.layout import SLOT
from embedding_store.native.library import library

Words = NDArray[np.uint64]

_MOST = 2**32  # pairs sorted at once
_PIECE = 16_384  # entries that a thread lays out, at least
_MOST_BUCKETS = 2**46  # so that products stay within int64


def upserts(
    ids: NDArray[np.int64],  # [N]
    location: int,
) -> tuple[Words, Words]:
    """Hashes of seed 0, and the operations (write/index.py) of rows at `location` and after it, uint64 [N] each.

    Raises:
        ValueError: ids are not int64 [N].
    """
    if ids.dtype != np.int64 or ids.ndim != 1:
        raise ValueError(f"ids are {ids.dtype} {list(ids.shape)}: give int64 [N]")
    ids = np.ascontiguousarray(ids)
    h, operations = scratch.empty(len(ids), np.uint64), scratch.empty(len(ids), np.uint64)
    sizes = ctypes.c_int64(len(ids)), ctypes.c_int64(location)
    library().embedding_store_upserts(_address(ids), *sizes, *map(_address, (h, operations)))
    return h, operations


def sort_pieces(
    pieces: Sequence[tuple[Words, Words]],  # [n] and [n] each
) -> tuple[Words, Words]:
    """The pairs (hash, value) of all pieces by hash, pairs of one hash by value, uint64 [N] each. Memory: 32 bytes a
    pair.

    Raises:
        ValueError: other dtypes, shapes that differ, or 2^32 pairs and more.
    """
    checked = [(_words("h", h), _words("value", value, len(h))) for h, value in pieces]
    counts = np.array([len(h) for h, _ in checked], np.int64)
    count = int(counts.sum())
    if count >= _MOST:
        raise ValueError(f"the pieces have {count} pairs: sort fewer than 2^32 at once")
    columns = [np.array([array.ctypes.data for array in column], np.uint64) for column in zip(*checked, strict=True)]
    addresses = columns or 2 * [np.empty(0, np.uint64)]
    sorted_h, sorted_value, room = (scratch.empty(size, np.uint64) for size in (count, count, 2 * count))
    function = library().embedding_store_sort_pieces
    function.restype = ctypes.c_bool
    sizes = ctypes.c_int64(len(counts)), ctypes.c_int64(count)
    if not function(*map(_address, (*addresses, counts)), *sizes, *map(_address, (sorted_h, sorted_value, room))):
        raise MemoryError(f"no memory to sort {count} pairs")
    return sorted_h, sorted_value


def partition_pairs(
    h: Words,  # [N]
    value: Words,  # [N]
    bits: int,
) -> tuple[Words, Words, NDArray[np.int64]]:
    """Pairs by the first bits of their hash, in no order else, uint64 [N] each; and where the pairs of each value of
    these bits end, int64 [2^bits].

    Raises:
        ValueError: other dtypes, shapes that differ, or not 1 to 16 bits.
    """
    h, value = _words("h", h), _words("value", value, len(h))
    if not 1 <= bits <= 16:
        raise ValueError(f"bits is {bits}: use 1 to 16")
    parted = scratch.empty(len(h), np.uint64), scratch.empty(len(h), np.uint64)
    ends = np.empty(1 << bits, np.int64)
    sizes = ctypes.c_int64(len(h)), ctypes.c_int64(bits)
    library().embedding_store_partition_pairs(*map(_address, (h, value)), *sizes, *map(_address, (*parted, ends)))
    return *parted, ends


def last_operations(
    h: Words,  # [N], ascending
    operations: Words,  # [N]
) -> tuple[Words, tuple[int, int] | None, bool]:
    """Where each operation leaves its id: locations uint64 [N], ABSENT after a delete; the least and the greatest id
    that is upserted, None if none is; and whether no id has several operations, without which the rest is void.

    Raises:
        ValueError: other dtypes, or shapes that differ.
    """
    h, operations = _words("h", h), _words("operations", operations, len(h))
    locations, ends = scratch.empty(len(h), np.uint64), np.empty(2, np.int64)
    function = library().embedding_store_last_operations
    function.restype = ctypes.c_int64
    again = function(*map(_address, (h, operations)), ctypes.c_int64(len(h)), *map(_address, (locations, ends)))
    least, greatest = ends.tolist()
    return locations, (least, greatest) if least <= greatest else None, again == 0


def plan(
    h: Words,  # [N], ascending
    buckets: int,
    free: int,
) -> tuple[int, int]:
    """Lay out entries with these hashes from slot `free` on: the slot behind the last one, and the most buckets that a
    search for one of them visits.

    Raises:
        ValueError: another dtype, or numbers that no index has.
    """
    return _place(_words("h", h), None, buckets, 0, free, (free, 0), None)


def place(
    h: Words,  # [N], ascending
    locations: Words,  # [N]
    buckets: int,
    seed: int,
    free: int,
    behind: int,
) -> NDArray[np.void]:
    """The slots from `free` to the last entry's, SLOT [behind - free], empty ones in between. `behind` is what `plan`
    says of the same.

    Raises:
        ValueError: other dtypes, shapes that differ, or numbers that no index has.
    """
    h, locations = _words("h", h), _words("locations", locations, len(h))
    slots = scratch.empty(behind - free, SLOT)
    _place(h, locations, buckets, seed, free, (behind, 0), slots)
    return slots


def _place(
    h: Words,
    locations: Words | None,
    buckets: int,
    seed: int,
    free: int,
    state: tuple[int, int],
    slots: NDArray[np.void] | None,
) -> tuple[int, int]:
    if not (1 <= buckets < _MOST_BUCKETS and 0 <= free < _MOST_BUCKETS * 4 and 0 <= seed < 2**63):
        raise ValueError(f"buckets is {buckets}, seed {seed}, free {free}: no index has these")
    threads = torch.get_num_threads()
    pieces = 1 if threads == 1 else max(1, min(4 * threads, len(h) // _PIECE))
    numbers = np.array(state, np.int64)
    function = library().embedding_store_place
    function.restype = ctypes.c_bool
    enough = function(
        _address(h),
        None if locations is None else _address(locations),
        *map(ctypes.c_int64, (len(h), buckets, seed, free, pieces)),
        _address(numbers),
        None if slots is None else _address(slots),
    )
    if not enough:
        raise ValueError(f"behind is {state[0]}: the entries end behind it, or are not ascending; ask `plan`")
    behind, probe = numbers.tolist()
    return behind, probe


def _words(name: str, array: np.ndarray, count: int | None = None) -> Words:
    if array.dtype != np.uint64 or array.ndim != 1 or (count is not None and len(array) != count):
        wanted = "[N]" if count is None else f"[{count}]"
        raise ValueError(f"{name} is {array.dtype} {list(array.shape)}: give uint64 {wanted}")
    return np.ascontiguousarray(array)


def _address(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
