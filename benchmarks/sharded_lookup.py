"""Lookup in a table that is spread over ranks of this machine, beside the whole table's.

    python -m benchmarks.sharded_lookup

Writes a snapshot of random vectors, and has 1 rank look up batches of ids, drawn uniformly, in the whole table, then
`ranks` of them, each its own batches, in a `ShardedTable`, whose rows come over gloo from the rank that holds them. The
ranks share this machine's cores and memory, so that of `ranks` at once the whole table is measured too, each rank
having all of it mapped: what spreading the rows costs is the ratio to that one. Bytes are those of float32 vectors that
callers get, of all ranks together. `cpu` is the processor time of a rank's lookup, also that of gloo's threads, which
does not depend on what else the machine does; `parts` is where it goes on rank 0: `dedup` (distinct), `ask` (counts),
`ids` and `rows` (exchanges), `lookup` (of the ids that others ask for), `own` (where this rank's are) and `scatter`
(gather). Prints a line of JSON for each stored dtype.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import tyro
from torch import Tensor

from benchmarks.common import print_record
from benchmarks.ranks import Figures, on_ranks
from embedding_store import EmbeddingStore, ShardedTable, load_sharded
from embedding_store.native import ops


@dataclass(frozen=True, kw_only=True)
class Options:
    """Sizes of the measurement."""

    rows: int = 2_000_000
    """Rows of the table."""
    dim: int = 128
    """D."""
    batch: int = 65_536
    """Ids of each rank's lookup."""
    batches: int = 20
    """Lookups that count; two go before."""
    ranks: int = 2
    """Of the sharded table."""
    dtypes: tuple[str, ...] = ("float32", "int8")
    """How rows are stored."""


def measured(_: Any, path: str, name: str, options: Options, sharded: bool) -> Figures:
    """Of this rank's lookups, all ranks at a time: median wall and mean processor seconds, and the parts."""
    snapshot = EmbeddingStore(path).series(name).latest()
    table = load_sharded(snapshot) if sharded else snapshot.load(verify=True)
    generator = torch.Generator().manual_seed(dist.get_rank())
    batches = [torch.randint(options.rows, (options.batch,), generator=generator) for _ in range(options.batches + 2)]
    walls, cpu = [], 0.0
    for number, ids in enumerate(batches):
        dist.barrier()
        wall, processor = time.perf_counter(), time.process_time()
        table.lookup(ids)
        if number > 1:
            walls.append(time.perf_counter() - wall)
            cpu += time.process_time() - processor
    figures: Figures = {"wall": statistics.median(walls), "cpu": cpu / options.batches}
    if isinstance(table, ShardedTable):
        figures["parts"] = parts_of(table, batches)
    return figures


def parts_of(table: ShardedTable, batches: list[Tensor]) -> dict[str, float]:
    """Median processor seconds of each step of a lookup, which are wrapped in clocks."""
    seconds: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def clock(part: str) -> Iterator[None]:
        started = time.process_time()
        yield
        seconds[part].append(time.process_time() - started)

    def clocked(function: Callable[..., Any], part: Callable[..., str]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with clock(part(*args)):
                return function(*args, **kwargs)

        return call

    kept = {name: getattr(ops, name) for name in ("distinct", "locate", "gather", "lookup")}
    names = {"distinct": "dedup", "locate": "own", "gather": "scatter", "lookup": "lookup"}
    ranks = table._ranks
    try:
        for name, function in kept.items():
            setattr(ops, name, clocked(function, lambda *_, part=names[name]: part))
        ranks.exchange = clocked(  # type: ignore[method-assign]
            ranks.exchange, lambda rows, *_: "rows" if rows.dtype == torch.uint8 else "ask" if rows.dim() > 1 else "ids"
        )
        for ids in batches:
            dist.barrier()
            table.lookup(ids)
    finally:
        for name, function in kept.items():
            setattr(ops, name, function)
    return {part: statistics.median(times) for part, times in seconds.items()}


def publish(store: EmbeddingStore, options: Options, dtype: str) -> str:
    """A snapshot of random vectors; the series' name."""
    series = store.create(f"entities_{dtype}", dim=options.dim, dtype=dtype)
    with series.write(as_of=0, space="random-1") as writer:
        for ids in torch.randperm(options.rows).split(100_000):
            writer.append(ids, torch.randn(len(ids), options.dim))
    return series.name


def main(options: Options) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        store = EmbeddingStore(folder)
        for dtype in options.dtypes:
            name = publish(store, options, dtype)
            arguments = (store.location, name, options)
            alone = on_ranks(measured, 1, *arguments, False)
            together = on_ranks(measured, options.ranks, *arguments, False)
            sharded = on_ranks(measured, options.ranks, *arguments, True)
            rank_bytes = options.batch * options.dim * 4
            figures = {
                "dtype": dtype,
                "rows": options.rows,
                "dim": options.dim,
                "batch": options.batch,
                "ranks": options.ranks,
                "table": {**alone, "bytes_per_second": rank_bytes / alone["wall"]},
                "tables": {**together, "bytes_per_second": options.ranks * rank_bytes / together["wall"]},
                "sharded": {**sharded, "bytes_per_second": options.ranks * rank_bytes / sharded["wall"]},
                "bytes_to_table": options.ranks * alone["wall"] / sharded["wall"],
                "bytes_to_tables": together["wall"] / sharded["wall"],
                "cpu_to_table": sharded["cpu"] / alone["cpu"],
            }
            print_record("sharded_lookup", figures)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
