"""The ops in plain PyTorch, on any device: the truth that native code is compared with.

Arguments, results and errors' causes as in ops.py. Checksums are native code's business: nothing is checked here but
that locations exist.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from embedding_store.dtypes import DTYPES, Dtype, Encoded, decode
from embedding_store.errors import InvalidIndexError
from embedding_store.native.layout import LAYOUT_HEADER, ROW_BITS, index_numbers, strides

_EMPTY, _ABSENT = -1, -2  # locations of a slot without an entry, and of an id that is no more, as int64


def lookup(
    ids: Tensor,  # int64 [...]
    storage: Tensor,  # uint8 [bytes]
    layout: Tensor,  # int64 [8 + 4 * S]
    dim: int,
    dtype: str,
    out: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Vectors `out` [..., dim] and found bool [...]; zeros where an id is not in the index."""
    vectors, locations = _gather(ids.reshape(-1), storage, storage, layout, dim, dtype)
    return vectors.to(out).view(*ids.shape, dim), (locations != _EMPTY).view(ids.shape)


def lookup_versions(
    ids: Tensor,  # int64 [...]
    choice: Tensor,  # int64 [...]
    storages: Sequence[Tensor],  # T >= 1 of uint8 [bytes]
    layouts: Sequence[Tensor],  # T of int64 [8 + 4 * S]
    dim: int,
    dtype: str,
    out: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """As `lookup`, in table number `choice`; zeros and False where it is -1."""
    vectors = torch.zeros((*ids.shape, dim), dtype=out, device=ids.device)
    found = torch.zeros(ids.shape, dtype=torch.bool, device=ids.device)
    for number, (storage, layout) in enumerate(zip(storages, layouts, strict=True)):
        here = choice == number
        vectors[here], found[here] = lookup(ids[here], storage, layout, dim, dtype, out)
    return vectors, found


def lookup_history(
    ids: Tensor,  # int64 [...]
    timestamps: Tensor,  # int64 [...]
    newest: Tensor,  # int64 [...]
    as_of: Tensor,  # int64 [V]
    numbers: Tensor,  # int64 [V]
    storages: Sequence[Tensor],  # T >= 1 of uint8 [bytes]
    layouts: Sequence[Tensor],  # T of int64 [8 + 4 * S]
    k: int,
    dim: int,
    dtype: str,
    out: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `lookup_versions`, in the k versions up to `newest`: vectors, mask and ages, the newest version first."""
    versions = newest[..., None] - torch.arange(k, device=ids.device)  # [..., k]
    there = versions >= 0
    choice = torch.full_like(versions, -1)
    choice[there] = numbers[versions[there]]
    vectors, mask = lookup_versions(ids[..., None].expand(choice.shape), choice, storages, layouts, dim, dtype, out)
    ages = torch.zeros_like(versions)
    times, since = timestamps[..., None].expand(choice.shape)[mask].tolist(), as_of[versions[mask]].tolist()
    exact = [min(time - start, 2**63 - 1) for time, start in zip(times, since, strict=True)]
    ages[mask] = torch.tensor(exact, dtype=torch.int64, device=ids.device)
    return vectors, mask, ages


def lookup_pooled(
    ids: Tensor,  # int64 [N]
    offsets: Tensor,  # int64 [B + 1]
    weights: Tensor | None,  # float32 [N]
    storage: Tensor,  # uint8 [bytes]
    layout: Tensor,  # int64 [8 + 4 * S]
    dim: int,
    dtype: str,
    mode: str = "sum",
    out: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Sum or mean over bags, `out` [B, dim], and found int64 [B]. Differentiable with respect to `weights`."""
    return lookup_pooled_tiered(ids, offsets, weights, storage, storage, layout, dim, dtype, mode, out)[:2]


def lookup_pooled_tiered(
    ids: Tensor,  # int64 [N]
    offsets: Tensor,  # int64 [B + 1]
    weights: Tensor | None,  # float32 [N]
    storage: Tensor,  # uint8 [bytes]
    cold: Tensor,  # uint8 [bytes]
    layout: Tensor,  # int64 [8 + 4 * S]
    dim: int,
    dtype: str,
    mode: str = "sum",
    out: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `lookup_pooled`, and hot hits, cold hits, misses and once more cold hits, int64 [4]."""
    vectors, locations = _gather(ids, storage, cold, layout, dim, dtype)
    bags = torch.repeat_interleave(offsets.diff(), output_size=len(ids))
    # A missing id has no weight either: zero times infinity is not zero.
    weighted = vectors if weights is None else vectors * weights.where(locations != _EMPTY, 0.0)[:, None]
    pooled = torch.zeros(len(offsets) - 1, dim, device=ids.device).index_add(0, bags, weighted)
    found = torch.zeros(len(offsets) - 1, dtype=torch.int64, device=ids.device)
    found = found.index_add(0, bags, (locations != _EMPTY).to(torch.int64))
    if mode == "mean":
        pooled = pooled / found.clamp(min=1)[:, None]
    return pooled.to(out), found, _hits(locations)


def lookup_tiered(
    ids: Tensor,  # int64 [...]
    storage: Tensor,  # uint8 [bytes]
    cold: Tensor,  # uint8 [bytes]
    layout: Tensor,  # int64 [8 + 4 * S]
    dim: int,
    dtype: str,
    out: torch.dtype,
    counters: Tensor,  # int64 [4]
) -> tuple[Tensor, Tensor]:
    """As `lookup`; adds hot hits, cold hits, misses and once more cold hits to `counters`."""
    vectors, locations = _gather(ids.reshape(-1), storage, cold, layout, dim, dtype)
    counters += _hits(locations)
    return vectors.to(out).view(*ids.shape, dim), (locations != _EMPTY).view(ids.shape)


def _hits(locations: Tensor) -> Tensor:  # int64 [N]
    """How many are in the first segment, in others, and nowhere, and rows read of others, int64 [4]."""
    found = locations != _EMPTY
    hot = found & (locations >> ROW_BITS == 0)
    cold = (found & ~hot).sum()
    return torch.stack((hot.sum(), cold, (~found).sum(), cold))


def nearest(
    users: Tensor,  # float32 [U, D]
    items: Tensor,  # float32 [N, D]
    k: int,
    without_users: Tensor,  # int64 [P]
    without_items: Tensor,  # int64 [P]
) -> tuple[Tensor, Tensor]:
    """Rows and inner products [U, min(k, N)] of the items with the greatest, -1 and -inf where there are none."""
    scores = users @ items.T
    scores[without_users, without_items] = float("-inf")
    best, rows = scores.sort(dim=1, descending=True, stable=True)
    return rows.masked_fill(best == float("-inf"), -1)[:, :k], best[:, :k]


def distinct(
    ids: Tensor,  # int64 [...]
    parts: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Different ids int64 [M], part after part, how many are of each [parts], and where each id is int64 [...]."""
    found, places = ids.reshape(-1).unique(return_inverse=True)
    part, order = _home_bucket(_mix64(found), parts).sort(stable=True)
    moved = torch.empty_like(order)
    moved[order] = torch.arange(len(order), device=ids.device)
    return found[order], torch.bincount(part, minlength=parts), moved[places].view(ids.shape)


def gather(
    places: Tensor,  # int64 [...]
    own: Tensor,  # uint8 [A, R]
    received: Tensor,  # uint8 [B, R]
    dim: int,
    dtype: str,
    out: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Vectors `out` [..., dim] and found bool [...] of records; zeros where there is none."""
    kind, at = DTYPES[dtype], places.reshape(-1)
    records = torch.cat((own.new_zeros(1, own.shape[1]), received))  # record 0 is none
    picked = records[torch.where(at >= len(own), at - len(own) + 1, 0)]
    mine = (at >= 0) & (at < len(own))
    picked[mine] = own[at[mine]]
    width, ends = kind.width(dim) * kind.torch_dtype.itemsize, picked[:, -12:].contiguous().view(torch.float32)
    found = (picked[:, -4:] != 0).any(1)
    scales = (ends[:, 0], ends[:, 1]) if kind.quantised else ()
    stored = picked[:, :width].contiguous().view(kind.torch_dtype)
    vectors = decode(Encoded(stored, *scales), dim, kind).where(found[:, None], 0.0)
    return vectors.to(out).view(*places.shape, dim), found.view(places.shape)


def locate(
    ids: Tensor,  # int64 [...]
    storage: Tensor,  # uint8 [bytes]
    layout: Tensor,  # int64 [8 + 4 * S]
) -> Tensor:
    """The location of each id, int64 [...]: segment << 40 | row, or -1."""
    return find(ids.reshape(-1), storage, layout).view(ids.shape)


def find(
    ids: Tensor,  # int64 [N]
    storage: Tensor,  # uint8 [bytes]
    layout: Tensor,  # int64 [8 + 4 * S]
) -> Tensor:
    """The location of each id, int64 [N]: segment << 40 | row, or -1."""
    locations, *overlay = (_search(ids, storage, numbers.tolist()) for numbers in index_numbers(layout))
    for above in overlay:
        locations = torch.where(above == _EMPTY, locations, above.masked_fill(above == _ABSENT, _EMPTY))
    return locations


def _search(
    ids: Tensor,  # int64 [N]
    storage: Tensor,  # uint8 [bytes]
    index: Sequence[int],  # its four numbers in a layout
) -> Tensor:
    """What one index has of each id, int64 [N], -1 if nothing. By its hash, bucket by bucket."""
    start, home_buckets, total_buckets, seed = index
    slots = storage[start : start + total_buckets * 64].view(torch.int64).view(total_buckets, 4, 2)
    bucket = _home_bucket(_mix64(ids + _signed(seed * 0x9E3779B97F4A7C15)), home_buckets)
    locations = torch.full_like(ids, _EMPTY)
    searching = torch.arange(len(ids), device=ids.device)  # positions of the ids that are not settled yet
    while len(searching):
        here = slots[bucket[searching]]  # [n, 4, 2]
        matches = (here[:, :, 0] == ids[searching, None]) & (here[:, :, 1] != _EMPTY)
        hit, slot = matches.max(1)
        locations[searching[hit]] = here[hit, slot[hit], 1]
        full = here[:, 3, 1] != _EMPTY
        searching = searching[~hit & full]
        bucket[searching] += 1
        searching = searching[bucket[searching] < total_buckets]
    return locations


def _gather(
    ids: Tensor,  # int64 [N]
    storage: Tensor,  # uint8 [bytes]
    cold: Tensor,  # uint8 [bytes]: holds segments 1, 2, ...
    layout: Tensor,  # int64 [8 + 4 * S]
    dim: int,
    dtype: str,
) -> tuple[Tensor, Tensor]:
    """Vectors float32 [N, dim], zeros where missing, and locations int64 [N]."""
    locations = find(ids, cold if layout[7] else storage, layout)
    vectors = torch.zeros(len(ids), dim, device=ids.device)
    segments = layout[LAYOUT_HEADER : LAYOUT_HEADER + 4 * int(layout[4])].view(-1, 4).tolist()
    segment_of, row_of = locations >> ROW_BITS, locations & (1 << ROW_BITS) - 1
    placed = locations == _EMPTY
    for number, (vector, scale, offset, rows) in enumerate(segments):
        wanted = (segment_of == number) & ~placed & (row_of < rows)
        if not wanted.any():
            continue
        columns = (vector, scale, offset, rows)
        stored = _columns(storage if number == 0 else cold, columns, layout, dim, DTYPES[dtype])
        vectors[wanted] = decode(stored.select(row_of[wanted]), dim, DTYPES[dtype])
        placed |= wanted
    if not placed.all():
        id, location = int(ids[~placed][0]), int(locations[~placed][0])
        message = f"leads from id {id} to segment {location >> ROW_BITS} row {location & (1 << ROW_BITS) - 1}"
        raise InvalidIndexError("the index in memory", f"{message}, which does not exist; write the snapshot again")
    return vectors, locations


def _columns(
    storage: Tensor,  # uint8 [bytes]
    segment: tuple[int, int, int, int],
    layout: Tensor,
    dim: int,
    dtype: Dtype,
) -> Encoded:
    """A segment's columns, sharing memory with `storage`."""
    vector, scale, offset, rows = segment
    width, element = dtype.width(dim), dtype.torch_dtype
    row_stride, scale_stride = strides(layout, width * element.itemsize)
    elements = _strided(storage, element, vector, (rows, width), (row_stride, element.itemsize))
    if not dtype.quantised:
        return Encoded(elements)
    floats = (_strided(storage, torch.float32, start, (rows,), (scale_stride,)) for start in (scale, offset))
    return Encoded(elements, *floats)


def _strided(
    storage: Tensor,  # uint8 [bytes]
    dtype: torch.dtype,
    start: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
) -> Tensor:
    """Values from byte `start` on, so many bytes apart."""
    size = dtype.itemsize
    whole = storage[: len(storage) // size * size].view(dtype)
    return whole.as_strided(shape, [stride // size for stride in strides], whole.storage_offset() + start // size)


def _mix64(
    x: Tensor,  # int64 [N]
) -> Tensor:
    """MurmurHash3's finaliser. int64 wraps around as uint64 does, but its shift must not bring in the sign."""
    for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        x = (x ^ _shift_right(x, 33)) * _signed(multiplier)
    return x ^ _shift_right(x, 33)


def _home_bucket(
    h: Tensor,  # int64 [N], the bits of uint64
    buckets: int,
) -> Tensor:
    """The high word of the 128-bit product h * buckets, int64 [N]. `buckets` < 2^31."""
    low, high = h & 0xFFFFFFFF, _shift_right(h, 32)
    return _shift_right(high * buckets + _shift_right(low * buckets, 32), 32)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    """The int64 of the same 64 bits."""
    return (x + 2**63) % 2**64 - 2**63
