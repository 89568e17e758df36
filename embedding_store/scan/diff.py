"""What changed between two snapshots of a series: ids, and how far the vectors of those in both have moved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from embedding_store.read.snapshot import Snapshot

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
SAMPLE = 4_000_000
"""Most cosines that are kept for the quantiles, 16 MB; of more rows every second, third, ... counts."""
CHUNK = 65_536  # rows read and looked up at once
SLAB = 2048  # rows compared at once: what the processor's cache holds


@dataclass(frozen=True, kw_only=True)
class Diff:
    """From snapshot `old` to snapshot `new`; every count is exact."""

    old: int
    """Version."""
    new: int
    """Version."""
    added: int
    """Ids that only `new` has."""
    removed: int
    """Ids that only `old` has."""
    kept: int
    """Ids in both."""
    moved: int | None
    """Of the kept ids, those whose stored vectors differ; None if the spaces or dimensions do."""
    cosine: dict[float, float] | None
    """Quantile -> cosine between the old and the new vector of a kept id; quantiles 0 (the least) and 1 (the greatest)
    are exact, those between are of a sample if more than SAMPLE ids are kept. Two zero vectors have 1, one has 0.
    None if the spaces or dimensions differ, or no id is kept."""


def diff(old: Snapshot, new: Snapshot, progress: Callable[[int, int], None] | None = None) -> Diff:
    """Compare two snapshots.

    Reads `new` front to back and looks its ids up in `old`; memory is bounded whatever their sizes. `progress` is
    called with the rows of `new` done and to do.

    Raises:
        CorruptStoreError: of the class that fits, naming the file.
    """
    comparable = (old.space, old.dim) == (new.space, new.dim)
    table = old.load()
    stride = max(1, -(-min(old.rows, new.rows) // SAMPLE))
    cosines = _Cosines(stride)
    kept = moved = done = 0
    for rows in new.batches(CHUNK):
        before, found = table.lookup(rows.ids)
        kept += int(found.sum())
        if comparable:
            for a, b in zip(before[found].split(SLAB), rows.vectors[found].split(SLAB), strict=True):
                differ = (a != b).any(1)
                moved += int(differ.sum())
                cosines.add(torch.where(differ, _cosine(a, b), 1.0))
        done += len(rows.ids)
        if progress is not None:
            progress(done, new.rows)
    return Diff(
        old=old.version,
        new=new.version,
        added=new.rows - kept,
        removed=old.rows - kept,
        kept=kept,
        moved=moved if comparable else None,
        cosine=cosines.quantiles() if comparable and kept else None,
    )


class _Cosines:
    """Collects cosines: the least and the greatest of all, the rest in steps of `stride`."""

    def __init__(self, stride: int) -> None:
        self._stride = stride
        self._seen = 0
        self._sample: list[Tensor] = []
        self._least, self._greatest = torch.inf, -torch.inf

    def add(
        self,
        cosines: Tensor,  # float32 [N]
    ) -> None:
        if not len(cosines):
            return
        self._least = min(self._least, float(cosines.min()))
        self._greatest = max(self._greatest, float(cosines.max()))
        self._sample.append(cosines[-self._seen % self._stride :: self._stride].clone())
        self._seen += len(cosines)

    def quantiles(self) -> dict[float, float]:
        """By linear interpolation between the sample's values."""
        sample = torch.cat(self._sample).sort().values
        places = torch.tensor(QUANTILES, dtype=torch.float64) * (len(sample) - 1)
        low, share = places.long(), places - places.long()
        high = (low + 1).clamp(max=len(sample) - 1)
        values = sample[low].double() * (1 - share) + sample[high].double() * share
        inner = dict(zip(QUANTILES, values.tolist(), strict=True))
        return {**inner, 0.0: self._least, 1.0: self._greatest}


def _cosine(
    a: Tensor,  # float32 [N, D]
    b: Tensor,  # float32 [N, D]
) -> Tensor:  # float32 [N]
    # Scaled first: the squares of large float32 values are infinite, those of small ones zero.
    a, b = (x / x.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) for x in (a, b))
    norms = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    cosine = torch.linalg.vecdot(a, b) / norms.clamp(min=torch.finfo(torch.float32).tiny)  # 0 if a norm is
    return cosine.clamp(-1, 1)
