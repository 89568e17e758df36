"""What is asked for: row numbers and their ids, drawn uniformly or by Zipf's law, single or in bags."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu.names import EXPONENT, UNIFORM

ID_STEP = 0x9E3779B97F4A7C15 - 2**64  # odd: multiples of it are distinct, and look like nothing
SCATTER = 2_654_435_761  # prime: multiples of it visit every row once, neighbours far apart


@dataclass(frozen=True)
class Batch:
    """Ids, single or in bags, in the forms that the variants take."""

    rows: Tensor
    """int64 [N]: row numbers; those at or above the table's number of rows are not there."""
    ids: Tensor
    """int64 [N]: their ids."""
    offsets: Tensor
    """int64 [B + 1]: bag b holds ids[offsets[b] : offsets[b + 1]]; bags of one unless pooled."""
    rows32: Tensor
    """int32 [N], for FBGEMM."""
    offsets32: Tensor
    """int32 [B + 1], for FBGEMM."""

    @staticmethod
    def of(
        rows: Tensor,  # int64 [N]
        offsets: Tensor | None = None,  # int64 [B + 1]
    ) -> Batch:
        """The batch of these rows."""
        if offsets is None:
            offsets = torch.arange(len(rows) + 1, device=rows.device)
        return Batch(rows, ids_of(rows), offsets, rows.to(torch.int32), offsets.to(torch.int32))


def ids_of(
    rows: Tensor,  # int64 [N]
) -> Tensor:
    """The ids of row numbers, int64 [N]: different ones of different rows."""
    return rows * ID_STEP


def scattered(
    ranks: Tensor,  # int64 [N], 0 .. rows - 1: the most popular row has rank 0
    rows: int,
) -> Tensor:
    """The rows of these ranks: a bijection, so that popular rows lie all over the table, as they do in one that was not
    sorted by popularity."""
    return ranks * SCATTER % rows


def draw(
    kind: str, count: int, keys: int, rows: int, device: torch.device, seed: int, *, missing: float = 0.0
) -> list[Batch]:
    """Batches of single ids.

    Args:
        kind: UNIFORM, or ZIPF with the popular rows scattered.
        count: batches.
        keys: ids of each.
        rows: of the table.
        device: where they are.
        seed: other ids for another one.
        missing: share of the ids that are not in the table.
    """
    generator = torch.Generator(device).manual_seed(seed)
    return [Batch.of(_rows(kind, keys, rows, generator, missing)) for _ in range(count)]


def draw_bags(lengths: Callable[[int], Tensor], count: int, rows: int, device: torch.device, seed: int) -> list[Batch]:
    """Batches of uniform ids in bags; `lengths` gives those of a batch, int64 [B], by a seed."""
    generator = torch.Generator(device).manual_seed(seed)
    batches = []
    for number in range(count):
        each = lengths(seed * count + number)
        offsets = torch.nn.functional.pad(each.cumsum(0), (1, 0)).to(device)
        batches.append(Batch.of(_rows(UNIFORM, int(each.sum()), rows, generator, 0.0), offsets))
    return batches


def even_bags(ids: int, length: int) -> Tensor:
    """So many ids in bags of equal length, the last one what is left: int64 [B]."""
    lengths = torch.full((ids // length,), length)
    return torch.cat((lengths, torch.tensor([ids % length]))) if ids % length else lengths


def mixed_bags(ids: int, seed: int) -> Tensor:
    """Bags of 0 to 40 ids, and amid them one of a quarter of all: int64 [B]."""
    huge = ids // 4
    lengths = torch.randint(0, 41, (max(ids // 20, 1),), generator=torch.Generator().manual_seed(seed))
    lengths = lengths[lengths.cumsum(0) <= ids - huge]
    middle = len(lengths) // 2
    rest = ids - huge - int(lengths.sum())
    return torch.cat((lengths[:middle], torch.tensor([huge]), lengths[middle:], torch.tensor([rest])))


def _rows(kind: str, keys: int, rows: int, generator: torch.Generator, missing: float) -> Tensor:
    device = generator.device
    if kind == UNIFORM:
        found = torch.randint(rows, (keys,), generator=generator, device=device)
    else:
        power = 1 - EXPONENT  # the inverse of the continuous law's distribution function, rounded down
        uniform = torch.rand(keys, generator=generator, dtype=torch.float64, device=device)
        ranks = ((uniform * ((rows + 1.0) ** power - 1) + 1) ** (1 / power) - 1).long()
        found = scattered(ranks.clamp_(0, rows - 1), rows)
    if missing > 0:
        lost = torch.rand(keys, generator=generator, device=device) < missing
        found = torch.where(lost, found + rows, found)
    return found
