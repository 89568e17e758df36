"""A loaded table made by hand: the index and the columns of FORMAT.md in two or three tensors, by slow plain Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from embedding_store.dtypes import DTYPES, Dtype, Encoded, decode, encode

MASK = 2**64 - 1
EMPTY, ABSENT = -1, -2  # locations
ALIGNMENT = 256


@dataclass(frozen=True)
class SmallTable:
    """What ops take, and what they should answer."""

    ids: Tensor  # int64 [R]
    vectors: Tensor  # float32 [R, D], as decoded
    storage: Tensor  # uint8 [bytes]
    cold: Tensor  # uint8 [bytes]; empty unless tiered
    layout: Tensor  # int64 [8 + 4 * S], 4 more with an overlay
    dim: int
    dtype: Dtype

    def answer(self, ids: Tensor, out: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """What a lookup must give."""
        rows = {id: row for row, id in enumerate(self.ids.tolist())}
        found = torch.tensor([id in rows for id in ids.flatten().tolist()], dtype=torch.bool).view(ids.shape)
        picked = torch.tensor([rows.get(id, 0) for id in ids.flatten().tolist()], dtype=torch.int64)
        vectors = (
            self.vectors[picked].view(*ids.shape, self.dim) if len(self.ids) else torch.zeros(*ids.shape, self.dim)
        )
        return torch.where(found[..., None], vectors, 0.0).to(out), found

    def pooled_answer(self, ids: Tensor, offsets: Tensor, weights: Tensor | None, mode: str) -> tuple[Tensor, Tensor]:
        """What a pooled lookup must give, in float64."""
        vectors, found = self.answer(ids, torch.float64)
        weighted = vectors * (1.0 if weights is None else weights.to(torch.float64)[:, None])
        pooled = torch.zeros(len(offsets) - 1, self.dim, dtype=torch.float64)
        counts = torch.zeros(len(offsets) - 1, dtype=torch.int64)
        for bag, (begin, end) in enumerate(zip(offsets.tolist(), offsets.tolist()[1:], strict=False)):
            # Not the sum of all: a missing id's weight may be infinite.
            pooled[bag] = weighted[begin:end][found[begin:end]].sum(0)
            counts[bag] = found[begin:end].sum()
        return (pooled / counts.clamp(min=1)[:, None] if mode == "mean" else pooled), counts

    def to(self, device: str) -> SmallTable:
        """The same on a device; cold rows stay on the host, pinned."""
        cold = self.cold.pin_memory() if device != "cpu" and len(self.cold) else self.cold
        return replace(self, storage=self.storage.to(device), layout=self.layout.to(device), cold=cold)


def small_table(
    ids: Sequence[int],
    dim: int,
    dtype: str,
    *,
    segment_rows: Sequence[int] | None = None,
    tiered: bool = False,
    index_cold: bool = False,
    in_row: bool = True,
    load: float = 0.6,
    seed: int = 0,
    gone: Sequence[int] | None = None,
) -> SmallTable:
    """A table of random vectors.

    Args:
        segment_rows: rows of each segment; one segment by default.
        tiered: all segments but the first go to `cold`.
        index_cold: the index too, and the overlay.
        in_row: a quantised row's scale and offset in front of it, as in a copy; else a column each, as in a file.
        load: share of the slots that is used; 1 makes long searches.
        gone: with an overlay: every third id is in the index alone, every third in both (the index leads to a row that
            is not its own), every third in the overlay alone; these ids, which may not be among `ids`, are in the
            index, and the overlay says that they are no more.
    """
    vectors = torch.randn(len(ids), dim, generator=torch.Generator().manual_seed(len(ids) + dim))
    kind = DTYPES[dtype]
    encoded = encode(vectors, kind)
    counts = [len(ids)] if segment_rows is None else list(segment_rows)
    assert sum(counts) == len(ids)
    locations = [segment << 40 | row for segment, count in enumerate(counts) for row in range(count)]
    below, above = dict(zip(ids, locations, strict=True)), dict[int, int]()
    if gone is not None:
        above = {id: at for i, (id, at) in enumerate(below.items()) if i % 3} | dict.fromkeys(gone, ABSENT)
        below = {id: at if i % 3 == 0 else 0 for i, (id, at) in enumerate(below.items()) if i % 3 < 2}
        below |= dict.fromkeys(gone, 0)
    buckets, home_buckets = _index(below, load, seed)
    parts: dict[bool, list[Tensor]] = {index_cold: [buckets], not index_cold: []}
    width = kind.width(dim) * kind.torch_dtype.itemsize
    stride, overlay = -(-(8 + width) // 8) * 8 if in_row and kind.quantised else 0, list[int]()
    layout = [0, home_buckets, len(buckets) // 64, seed, len(counts), stride, int(gone is not None), int(index_cold)]
    if gone is not None:
        buckets, home_buckets = _index(above, load, (seed + 1) % 8)
        overlay = [_append(parts[index_cold], buckets), home_buckets, len(buckets) // 64, (seed + 1) % 8]
    start = 0
    for segment, count in enumerate(counts):
        into = parts[tiered and segment > 0]
        rows = encoded.slice(start, start + count)
        layout += [*_append_rows(into, rows, stride), count]
        start += count
    return SmallTable(
        ids=torch.tensor(ids, dtype=torch.int64),
        vectors=decode(encoded, dim, kind),
        storage=_joined(parts[False]),
        cold=_joined(parts[True]) if tiered else torch.empty(0, dtype=torch.uint8),
        layout=torch.tensor([*layout, *overlay]),
        dim=dim,
        dtype=kind,
    )


def mix64(x: int) -> int:
    """MurmurHash3's finaliser."""
    x ^= x >> 33
    x = x * 0xFF51AFD7ED558CCD & MASK
    x ^= x >> 33
    x = x * 0xC4CEB9FE1A85EC53 & MASK
    return x ^ x >> 33


def _index(locations: dict[int, int], load: float, seed: int) -> tuple[Tensor, int]:
    home_buckets = max(1, -int(-len(locations) // (4 * load)))
    entries = sorted((mix64((id + seed * 0x9E3779B97F4A7C15) & MASK), id, at) for id, at in locations.items())
    slots: dict[int, tuple[int, int]] = {}
    previous = -1
    for hashed, id, location in entries:
        previous = max(4 * (hashed * home_buckets >> 64), previous + 1)
        slots[previous] = (id, location)
    total = max(home_buckets, (previous + 1) // 4 + 1)
    words = [word for slot in range(4 * total) for word in slots.get(slot, (0, EMPTY))]
    return torch.tensor(words, dtype=torch.int64).view(torch.uint8), home_buckets


def _append(parts: list[Tensor], column: Tensor) -> int:
    start = sum(len(part) for part in parts)
    flat = column.contiguous().flatten().view(torch.uint8) if column.numel() else torch.empty(0, dtype=torch.uint8)
    parts.append(torch.nn.functional.pad(flat, (0, ALIGNMENT - len(flat) % ALIGNMENT)))
    if start % ALIGNMENT:  # the index: a multiple of 64
        parts.insert(-1, torch.zeros(ALIGNMENT - start % ALIGNMENT, dtype=torch.uint8))
        start += ALIGNMENT - start % ALIGNMENT
    return start


def _append_rows(parts: list[Tensor], rows: Encoded, stride: int) -> tuple[int, int, int]:
    """Where the first values, scale and offset are."""
    if rows.scale is None or rows.offset is None:
        return _append(parts, rows.vector), -1, -1
    if not stride:
        return _append(parts, rows.vector), _append(parts, rows.scale), _append(parts, rows.offset)
    pairs = torch.stack((rows.scale, rows.offset), 1).view(torch.uint8)
    whole = torch.cat((pairs, rows.vector.view(torch.uint8)), 1)
    start = _append(parts, torch.nn.functional.pad(whole, (0, stride - whole.shape[1])))
    return start + 8, start, start + 4


def _joined(parts: list[Tensor]) -> Tensor:
    """One tensor whose first byte is at a multiple of 64, as CUDA's allocator and a mapping give it."""
    flat = torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8)
    room = torch.empty(len(flat) + 64, dtype=torch.uint8)
    start = -room.data_ptr() % 64
    return room[start : start + len(flat)].copy_(flat)
