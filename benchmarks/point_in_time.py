"""One lookup over many versions beside the same lookup over one: what point-in-time, and a history, cost.

    python -m benchmarks.point_in_time

Publishes snapshots of random vectors as of one day each into a temporary folder, draws ids uniformly and times that see
one version, or all of them, and measures `Series.lookup_as_of`:

- every id in one version;
- every id in a version of its own choice, of 2, 5, ... up to all;
- the same over deltas, which share most of their rows, as a refresh writes them;
- grouped: one `Table.lookup` for each version, put together by `index_put`, as one would write it by hand;
- history: `Series.lookup_history_as_of` of k versions for a k-th of the ids, all of which have k, so that it gives as
  many vectors as the others;
- plain: `Table.lookup` of all ids in the newest version, which a history is to be compared with.

The fewer ids look into a version, the colder they find its page tables: try a history with --batch 262144 as well.

All in one process, in turn, medians, one thread. Prints a line of JSON, then ratios.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor

from benchmarks.common import in_turn, print_record
from embedding_store import EmbeddingStore, Series, Table

DAY_MS = 86_400_000
FIRST_DAY = 19_000  # since the epoch
Lookup = Callable[[tuple[Tensor, Tensor]], object]  # (ids, uniform draw that becomes a time), [batch] each


@dataclass(frozen=True, kw_only=True)
class Options:
    """Sizes of the measurement."""

    rows: int = 2_000_000
    """Rows of each version."""
    dim: int = 64
    """D."""
    dtype: str = "float16"
    """How vectors are stored."""
    versions: int = 10
    """Versions."""
    k: int = 8
    """Versions of a history; `versions` or fewer."""
    changed: float = 0.1
    """Share of the rows that a delta changes."""
    batch: int = 65_536
    """Vectors a lookup: ids, or in a history ids times k."""
    batches: int = 10
    """Batches, drawn ahead."""
    rounds: int = 3
    """Times each batch is looked up by each variant."""


def publish(store: EmbeddingStore, options: Options, ids: Tensor, *, deltas: bool) -> Series:
    """The versions, each checked once so that no lookup waits for checksums."""
    series = store.create("user_deltas" if deltas else "user_whole", dim=options.dim, dtype=options.dtype)
    for version in range(1, options.versions + 1):
        base = version - 1 if deltas and version > 1 else None
        rows = torch.randperm(len(ids))[: int(options.changed * len(ids))] if base else slice(None)
        with series.write(as_of=(FIRST_DAY + version) * DAY_MS, space="random-1", base=base) as writer:
            writer.append(ids[rows], torch.randn(len(ids[rows]), options.dim))
    for snapshot in series.history():
        table = series.open_tables.get(snapshot)
        if table.mapping is not None:
            table.mapping.check()
    return series


def as_of(series: Series, versions: int) -> Lookup:
    """A lookup in which each id sees one of the newest `versions` versions."""
    newest = len(series.versions())

    def look_up(batch: tuple[Tensor, Tensor]) -> object:
        ids, draw = batch
        version = newest - (draw * versions).long()
        return series.lookup_as_of(ids, (FIRST_DAY + version) * DAY_MS + 1)

    return look_up


def grouped(series: Series) -> Lookup:
    """The same by hand: version by version."""
    tables: list[Table] = [series.open_tables.get(snapshot) for snapshot in series.history()]

    def look_up(batch: tuple[Tensor, Tensor]) -> object:
        ids, draw = batch
        version = (draw * len(tables)).long()
        order = version.argsort()
        vectors = torch.empty(len(ids), series.dim)
        stops = torch.bincount(version, minlength=len(tables)).cumsum(0).tolist()
        for table, start, stop in zip(tables, [0, *stops], stops, strict=False):
            rows = order[start:stop]
            vectors[rows] = table.lookup(ids[rows])[0]
        return vectors

    return look_up


def history(series: Series, k: int) -> Lookup:
    """The last k versions of a k-th of the ids, each seen from a version of its own choice that has so many."""
    newest = len(series.versions())

    def look_up(batch: tuple[Tensor, Tensor]) -> object:
        ids, draw = (tensor[: len(tensor) // k] for tensor in batch)
        version = newest - (draw * (newest - k + 1)).long()
        return series.lookup_history_as_of(ids, (FIRST_DAY + version) * DAY_MS + 1, k)

    return look_up


def plain(series: Series) -> Lookup:
    """All ids in the newest version's table."""
    table = series.open_tables.get(series.latest())
    return lambda batch: table.lookup(batch[0])


def main(options: Options) -> None:
    """Measure lookups over one and over many versions."""
    torch.set_num_threads(1)
    ids = torch.randint(-(2**62), 2**62, (options.rows,), generator=torch.Generator().manual_seed(0)).unique()
    counts = sorted({1, 2, 5, options.versions} & set(range(1, options.versions + 1)))
    with tempfile.TemporaryDirectory() as folder:
        store = EmbeddingStore(Path(folder))
        whole, deltas = (publish(store, options, ids, deltas=kind) for kind in (False, True))
        variants: dict[str, Lookup] = {f"{count} versions": as_of(whole, count) for count in counts}
        variants[f"{options.versions} deltas"] = as_of(deltas, options.versions)
        variants[f"{options.versions} versions, grouped"] = grouped(whole)
        variants |= {"history": history(whole, options.k), "plain": plain(whole)}
        batches = [
            (ids[torch.randint(len(ids), (options.batch,))], torch.rand(options.batch)) for _ in range(options.batches)
        ]
        seconds = in_turn(variants, batches, rounds=options.rounds)
    rates = {name: round(options.batch / value) for name, value in seconds.items()}
    sizes = {"rows": len(ids), "dim": options.dim, "dtype": options.dtype, "batch": options.batch}
    print_record("point_in_time", {**sizes, "ids/s": rates})
    for name, rate in rates.items():
        print(f"  {name:24} {rate:>12,.0f} ids/s   {rate / rates['1 versions']:5.2f} x of one version")
    print(f"  history of {options.k} over plain {rates['history'] / rates['plain']:5.2f}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
