"""The aggregation of a refresh beside memcpy: blending alone, and a whole day from the store to the store.

    python -m benchmarks.refresh_aggregate

For 1, 2, 5, 10 million entities of 64 float16 values, in one process on one thread, in turn:

- memcpy of as many bytes as blending reads and writes (previous, today, result: 6 bytes a value);
- `aggregate`, float16 in and out, by each method: entity-vectors a second, and its share of memcpy's bandwidth;
- `Aggregator.blend`: with the lookups of vectors and activity in the snapshot before;
- a day that is published whole: blended, encoded, written, indexed, committed and durable; its peak of memory.

`--dim 128 --millions 10` shows that 10 M x 128 fit in one process. Prints a line of JSON, then a table.
"""

from __future__ import annotations

import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor

from benchmarks.common import in_turn, print_record
from embedding_store import EmbeddingStore
from recsys.config import AGGREGATIONS
from recsys.dates import DAY_MS
from recsys.refresh.aggregate import Aggregation, aggregate
from recsys.refresh.aggregator import Aggregator, activity_series

CHUNK = 65_536  # rows that the caller hands over at once


@dataclass(frozen=True, kw_only=True)
class Options:
    """Sizes of the measurement."""

    millions: tuple[int, ...] = (1, 2, 5, 10)
    """Entities, in millions."""
    dim: int = 64
    """D."""
    rounds: int = 3
    """Times each variant is measured, after one time that is not counted."""
    publish: bool = True
    """Also publish days to a store; takes some 30 bytes of disk an entity and value."""


def arithmetic(rows: int, options: Options) -> dict[str, float]:
    """Seconds of memcpy and of each method over `rows` entities in memory."""
    previous, today = (random_vectors(rows, options.dim) for _ in range(2))
    counts, known = torch.randint(1, 90, (rows,)), torch.rand(rows) < 0.9
    out = torch.empty_like(previous)

    def copy(_: None) -> None:  # a copy moves two bytes for each one copied: one and a half tensors are as many
        out.copy_(previous)
        out[: rows // 2].copy_(today[: rows // 2])

    variants = {"memcpy": copy} | {
        method: lambda _, method=method: aggregate(method, 0.8, previous, counts, known, today, out=out)
        for method in AGGREGATIONS
    }
    return in_turn(variants, [None], rounds=options.rounds)


def days(rows: int, options: Options, folder: Path) -> dict[str, float]:
    """Seconds of blending, and of a day with all that belongs to it, for `rows` entities that are all active."""
    store = EmbeddingStore(folder)
    series = store.create("user_ctr", dim=options.dim, dtype="float16")
    activity = activity_series(store, "user_ctr")
    today = random_vectors(rows, options.dim)
    ids = torch.arange(rows) * 2_654_435_761  # no two in the order of their hashes
    seconds: dict[str, float] = {}
    for day in (1, 2):  # the second one finds the first one's snapshot
        aggregator = Aggregator(series, activity, Aggregation(), day=day, as_of=(day + 1) * DAY_MS, space="random-1")
        days = torch.full((rows,), day)
        started, blending = time.perf_counter(), 0.0
        with aggregator.writer(rows) as writer:
            for start in range(0, rows, CHUNK):
                before = time.perf_counter()
                part = slice(start, start + CHUNK)
                blended = aggregator.blend(ids[part], today[part], days[part], days[part])
                blending += time.perf_counter() - before
                writer.append(blended)
        seconds = {"blend": blending, "day": time.perf_counter() - started}
    return seconds


def random_vectors(rows: int, dim: int) -> Tensor:
    """float16 [rows, dim], made piece by piece."""
    vectors = torch.empty(rows, dim, dtype=torch.float16)
    for piece in vectors.split(CHUNK):
        piece.copy_(torch.randn(piece.shape))
    return vectors


def main(options: Options) -> None:
    """Measure the aggregation over growing numbers of entities."""
    torch.set_num_threads(1)
    figures: dict[str, dict[str, float]] = {}
    for millions in options.millions:
        rows = millions * 1_000_000
        seconds = arithmetic(rows, options)
        if options.publish:
            with tempfile.TemporaryDirectory() as folder:
                seconds |= days(rows, options, Path(folder))
        figures[f"{millions} M"] = {name: round(rows / value / 1e6, 2) for name, value in seconds.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print_record("refresh_aggregate", {"dim": options.dim, "M entities/s": figures, "peak_rss_gb": round(peak, 2)})
    names = list(next(iter(figures.values())))
    print(f"{'entities':>10}" + "".join(f"{name:>10}" for name in names) + "   ma/memcpy   (million entities a second)")
    for size, rates in figures.items():
        cells = "".join(f"{rates[name]:>10.2f}" for name in names)
        print(f"{size:>10}{cells}{rates['ma'] / rates['memcpy']:>12.2f}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
