"""Sorting more pairs than memory holds: runs in a temporary file, each cut by the first bits of the hashes, which are
read back and sorted part by part of the hashes' range."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedding_store.format.index import Words
from embedding_store.native import scratch
from embedding_store.native.building import partition_pairs, sort_pieces

RUN = 1 << 19  # pairs sorted at once: 8 MiB, and twice as much again while they are sorted
BITS = 10  # by which runs are cut: half a billion pairs make parts of RUN each, more make longer ones
SPILL_BYTES = 8 << 20  # held in memory before a file is made


NO_WORDS = np.empty(0, np.uint64)


class Pairs(NamedTuple):
    """Hashes and what belongs to each."""

    h: Words  # [N]
    value: Words  # [N]

    def slice(self, start: int, stop: int | None) -> Pairs:
        """Pairs start .. stop - 1, sharing memory."""
        return Pairs(self.h[start:stop], self.value[start:stop])

    @staticmethod
    def sorted(parts: Iterable[Pairs]) -> Pairs:
        """All of them by hash, pairs of one hash by value."""
        return Pairs(*sort_pieces(list(parts)))

    @staticmethod
    def joined(parts: Iterable[Pairs]) -> Pairs:
        """One after the other."""
        parts = list(parts) or [NO_PAIRS]
        if len(parts) == 1:
            return parts[0]
        count = sum(len(part.h) for part in parts)
        joined = Pairs(scratch.empty(count, np.uint64), scratch.empty(count, np.uint64))
        np.concatenate([part.h for part in parts], out=joined.h)
        np.concatenate([part.value for part in parts], out=joined.value)
        return joined


NO_PAIRS = Pairs(NO_WORDS, NO_WORDS)


class Spill:
    """Words in a temporary file that has no name and ends with the process; a few stay in memory."""

    def __init__(self, scratch: Path) -> None:
        self._file = tempfile.SpooledTemporaryFile(SPILL_BYTES, dir=str(scratch))  # noqa: SIM115 (lives on)
        self._mapped = NO_WORDS
        self.words = 0

    def append(self, words: Words) -> None:
        """Add words at the end."""
        self._file.seek(8 * self.words)
        self._file.write(np.ascontiguousarray(words).view(np.uint8).data)
        self.words += len(words)

    def read(self, start: int, stop: int) -> Words:
        """Words start .. stop - 1, read-only: where there is a file, mapped from it."""
        if 8 * self.words <= SPILL_BYTES:
            self._file.seek(8 * start)
            return np.frombuffer(self._file.read(8 * (stop - start)), np.uint64)
        if len(self._mapped) < stop:
            self._file.flush()
            self._mapped = np.frombuffer(mmap.mmap(self._file.fileno(), 8 * self.words, prot=mmap.PROT_READ), np.uint64)
        return self._mapped[start:stop]


class PairFile:
    """Pairs written one after the other, read back in chunks."""

    def __init__(self, scratch: Path) -> None:
        self._spill = Spill(scratch)
        self._sizes: list[int] = []
        self.count = 0

    def append(self, pairs: Pairs) -> None:
        """Add pairs at the end."""
        self._spill.append(pairs.h)
        self._spill.append(pairs.value)
        self._sizes.append(len(pairs.h))
        self.count += len(pairs.h)

    def __iter__(self) -> Iterator[Pairs]:
        """The pairs, in the chunks in which they were appended."""
        for start, size in self._chunks():
            yield Pairs(self._spill.read(start, start + size), self._spill.read(start + size, start + 2 * size))

    def hashes(self) -> Iterator[Words]:
        """Their hashes alone, likewise."""
        for start, size in self._chunks():
            yield self._spill.read(start, start + size)

    def _chunks(self) -> Iterator[tuple[int, int]]:
        """Where each begins in the spill, and its pairs."""
        start = 0
        for size in self._sizes:
            yield start, size
            start += 2 * size


class Sorter:
    """Pairs in any order in, pairs by hash and value out. Memory: some runs, whatever the number of pairs, as long as
    no single hash comes in millions."""

    def __init__(self, scratch: Path) -> None:
        self._spill = Spill(scratch)
        self._runs: list[tuple[int, NDArray[np.uint32]]] = []  # where each starts in the spill, and the ends in it
        self._pending: list[Pairs] = []
        self._waiting = 0
        self.count = 0

    def add(self, pairs: Pairs) -> None:
        """Take pairs; the arrays must not change afterwards."""
        self._pending.append(pairs)
        self._waiting += len(pairs.h)
        self.count += len(pairs.h)
        if self._waiting >= RUN:
            self._spill_run()

    def merged(self, others: Iterable[Pairs] = (), others_count: int = 0) -> Iterator[Pairs]:
        """All pairs and `others_count` others, which must come sorted; each hash's pairs are in one chunk."""
        parts = max(1, -(-(self.count + others_count) // RUN))
        if parts == 1 and not self._runs:
            yield Pairs.sorted([*self._pending, *others])
            return
        self._spill_run()
        # Hashes are spread evenly, so that equal parts of their range hold about as many pairs each.
        bits = min(BITS, (parts - 1).bit_length())
        bounds = np.arange(1, 1 << bits, dtype=np.uint64) << np.uint64(64 - bits) if bits else NO_PAIRS.h
        for part, pieces in enumerate(_sliced(iter(others), bounds)):
            first, last = (i << BITS - bits for i in (part, part + 1))
            slices = (self._read(start, ends, first, last) for start, ends in self._runs)
            yield Pairs.sorted([*pieces, *slices])

    def _spill_run(self) -> None:
        h, value, ends = partition_pairs(*Pairs.joined(self._pending), BITS)
        self._pending, self._waiting = [], 0
        if len(h):
            self._runs.append((self._spill.words, ends.astype(np.uint32)))
            self._spill.append(h)
            self._spill.append(value)

    def _read(self, start: int, ends: NDArray[np.uint32], first: int, last: int) -> Pairs:
        """Pairs of a run whose first bits are `first` .. `last` - 1."""
        size, low, high = int(ends[-1]), int(ends[first - 1]) if first else 0, int(ends[last - 1])
        return Pairs(
            self._spill.read(start + low, start + high), self._spill.read(start + size + low, start + size + high)
        )


def in_step(a: Iterable[Pairs], b: Iterable[Pairs]) -> Iterator[tuple[Pairs, Pairs]]:
    """All pairs of two sorted sources whose hashes differ within a source, cut so that equal hashes come together."""
    ours, theirs = (iter(chunk for chunk in chunks if len(chunk.h)) for chunks in (a, b))
    x, y = next(ours, None), next(theirs, None)
    while x is not None and y is not None:
        last = min(x.h[-1], y.h[-1])
        i, j = (int(np.searchsorted(chunk.h, last, "right")) for chunk in (x, y))
        yield x.slice(0, i), y.slice(0, j)
        x = x.slice(i, None) if i < len(x.h) else next(ours, None)
        y = y.slice(j, None) if j < len(y.h) else next(theirs, None)
    for rest in () if x is None else chain([x], ours):
        yield rest, NO_PAIRS
    for rest in () if y is None else chain([y], theirs):
        yield NO_PAIRS, rest


def _sliced(chunks: Iterator[Pairs], bounds: Words) -> Iterator[list[Pairs]]:
    """Sorted chunks cut at the bounds: for each part of the range the pieces that lie in it."""
    rest = NO_PAIRS
    for bound in bounds:
        pieces = []
        while True:
            cut = int(np.searchsorted(rest.h, bound))
            pieces.append(rest.slice(0, cut))
            rest = rest.slice(cut, None)
            if len(rest.h):
                break
            following = next(chunks, None)
            if following is None:
                break
            rest = following
        yield pieces
    yield [rest, *chunks]
