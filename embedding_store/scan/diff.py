"""What changed between two snapshots of a series: ids, and how far the vectors of those in both have moved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from embedding_store.format.index import EMPTY, Ids, Words
from embedding_store.format.manifest import Manifest
from embedding_store.scan.changed import changed_ids, shared
from embedding_store.scan.index import hashed_entries, is_in
from embedding_store.scan.locations import Locations
from embedding_store.scan.rows import RowNumbers, row_format
from embedding_store.scan.sorter import Pairs, Sorter, in_step
from embedding_store.scan.vectors import VectorReader
from embedding_store.storage.base import Storage

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
SAMPLE = 4_000_000
"""Most cosines that are kept for the quantiles, 16 MB; of more rows every second, third, ... counts."""
CHUNK = 65_536  # slots of each index read at once
SLAB_VALUES = 1 << 18  # values compared at once: what the processor's cache holds


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


def diff(storage: Storage, old: Manifest, new: Manifest, progress: Callable[[int, int], None] | None = None) -> Diff:
    """Compare two snapshots of a series.

    Where their histories tell which ids differ (see changed.py) these are looked for and their vectors read, no others.
    Else both indexes, each in the order of its hashes, are walked through in step: of whole snapshots that were written
    apart, and where a version between the two has expired. A row that both have at one place of one file, as deltas
    share their base's, has not moved; other vectors of kept ids are read. Memory: some chunks; temporary files hold 16
    bytes an id that differs. `progress` is called with the rows of `new` done and to do.

    Raises:
        CorruptStoreError: of the class that fits, naming the file.
    """
    comparable = (old.space, old.dim) == (new.space, new.dim)
    cosines = _Cosines(max(1, -(-min(old.rows, new.rows) // SAMPLE)))
    unsure = _RowPairs(storage, old, new)
    shared_rows = _shared_rows(old, new)
    kept = moved = done = seen = 0
    for before, after, rows in _kept(storage, old, new):
        kept, done, seen = kept + len(before), done + rows, seen + rows
        if comparable:
            same = (before == after) & (after < shared_rows)
            cosines.add_ones(int(same.sum()))
            unsure.add(before[~same], after[~same])
            done -= len(same) - int(same.sum())
        if progress is not None:
            progress(done, new.rows)
    unchanged = new.rows - seen  # of ids that no history tells of
    kept, done = kept + unchanged, done + unchanged
    cosines.add_ones(unchanged)
    for a, b in unsure.vectors():
        differ = (a != b).any(1)
        moved += int(differ.sum())
        changed = differ.nonzero().flatten()
        cosine = _cosine(a.index_select(0, changed), b.index_select(0, changed))
        cosines.add(torch.ones(len(a)).index_copy(0, changed, cosine))
        done += len(a)
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


def _kept(storage: Storage, old: Manifest, new: Manifest) -> Iterator[tuple[Ids, Ids, int]]:
    """The ids in both snapshots that may have moved, by hash: their rows in `old` and in `new`, int64 [N] each, as
    RowNumbers counts them; and how many ids of `new` were looked at for them."""
    numbers = [(RowNumbers(manifest.segments), storage.locate(manifest.own_index.path)) for manifest in (old, new)]
    changed = changed_ids(storage, old, new)
    pairs = _in_indexes(storage, old, new) if changed is None else _among(storage, old, new, changed)
    for before, after, looked_at in pairs:
        rows = [rows.positions(x, where) for (rows, where), x in zip(numbers, (before, after), strict=True)]
        yield rows[0], rows[1], looked_at


def _in_indexes(storage: Storage, old: Manifest, new: Manifest) -> Iterator[tuple[Words, Words, int]]:
    """As `_kept`, with locations, of all ids."""
    for a, b in in_step(hashed_entries(storage, old, CHUNK), hashed_entries(storage, new, CHUNK)):
        place = np.searchsorted(b.h, a.h)
        both = is_in(a.h, b.h)
        yield a.value[both], b.value[place[both]], len(b.h)


def _among(
    storage: Storage, old: Manifest, new: Manifest, changed: Iterable[Ids]
) -> Iterator[tuple[Words, Words, int]]:
    """As `_kept`, with locations, of these ids."""
    places = [Locations(storage, manifest) for manifest in (old, new)]
    for ids in changed:
        before, after = (located.find(ids) for located in places)
        both = (before != EMPTY) & (after != EMPTY)
        yield before[both], after[both], int((after != EMPTY).sum())


def _shared_rows(old: Manifest, new: Manifest) -> int:
    """How many rows from the first one on are the same rows of the same files."""
    if row_format(old) != row_format(new):
        return 0
    return sum(file.rows for file in new.data[: shared(old.data, new.data)])


class _RowPairs:
    """Rows of two snapshots that belong to the same ids: taken in any order, read in the new one's."""

    def __init__(self, storage: Storage, old: Manifest, new: Manifest) -> None:
        self._storage, self._old, self._new = storage, old, new
        self._sorter = Sorter(storage.scratch())
        self._ends = [np.cumsum([file.rows for file in manifest.data]) for manifest in (old, new)]
        self._files: tuple[set[int], set[int]] = set(), set()  # of each, those that the rows are in
        self._spread = np.uint64(2**64 // (new.stored_rows + 2))  # the sorter wants keys from the whole range

    def add(
        self,
        old: Ids,  # [N]
        new: Ids,  # [N]
    ) -> None:
        for files, ends, rows in zip(self._files, self._ends, (old, new), strict=True):
            files.update(np.unique(np.searchsorted(ends, rows, "right")).tolist())
        self._sorter.add(Pairs(new.view(np.uint64) * self._spread, old.view(np.uint64)))

    def vectors(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The vectors, old and new, float32 [N, D] each."""
        if not self._sorter.count:
            return
        manifests = (self._old, self._new)
        before, after = (VectorReader(self._storage, *one) for one in zip(manifests, self._files, strict=True))
        slab = max(1, SLAB_VALUES // self._new.dim)
        # Rows are distinct: parts of the range for as many as a run holds have no more, wherever the pairs lie.
        for pairs in self._sorter.merged((), self._new.stored_rows - self._sorter.count):
            for start in range(0, len(pairs.h), slab):
                new, old = pairs.slice(start, start + slab)
                yield before.read(old.view(np.int64)), after.read((new // self._spread).view(np.int64))


class _Cosines:
    """Collects cosines of 1 at most: the least and the greatest of all, the rest in steps of `stride`."""

    def __init__(self, stride: int) -> None:
        self._stride = stride
        self._seen = 0
        self._sample: list[Tensor] = []
        self._ones = 0  # of the sample
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

    def add_ones(self, count: int) -> None:
        """As `add` of so many ones, which are not kept one by one."""
        if count:
            self._least, self._greatest = min(self._least, 1.0), max(self._greatest, 1.0)
            self._ones += len(range(-self._seen % self._stride, count, self._stride))
            self._seen += count

    def quantiles(self) -> dict[float, float]:
        """By linear interpolation between the sample's values. No cosine is above 1: the ones are the last of them."""
        sample = torch.cat([*self._sample, torch.ones(1)]).sort().values
        last, count = len(sample) - 1, len(sample) - 1 + self._ones
        places = torch.tensor(QUANTILES, dtype=torch.float64) * (count - 1)
        low, share = places.long(), places - places.long()
        high = (low + 1).clamp(max=count - 1)
        low_values, high_values = (sample[x.clamp(max=last)].double() for x in (low, high))
        values = low_values * (1 - share) + high_values * share
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
