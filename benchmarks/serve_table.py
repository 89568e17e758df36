"""A ranker served with a large quantised table of items in the host's memory: memory, lookups, requests, a swap.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.serve_table --rows 20000000

Trains the ranker of `benchmarks.bundle` on a small market (SYNTHETIC); for each dtype, one after another, writes two
versions of a series of items into a temporary folder: SYNTHETIC unit vectors of rank 16 and noise, 65,536 of them again
and again. Then

- bytes a row on disk, resident memory, and the relative L2 error ||v - q|| / ||v|| of what is read back;
- lookups of uniform ids, by one thread and by two;
- requests of one user and 500 items of the whole table through `LiveBundle`, one after another and by `answers`;
- the same while the other version is loaded, checked and swapped in: phases with and without a swap take turns.

Prints a line of JSON for each dtype.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from benchmarks import bundle as small
from benchmarks.common import in_turn, print_record, resident
from embedding_store import EmbeddingStore, Snapshot, Table
from recsys.bundle import LiveBundle
from recsys.bundle.manifest import Manifest
from recsys.bundle.repin import repin
from recsys.bundle.write import train_bundle
from recsys.data.synthetic import prepare_synthetic
from recsys.dates import DAY_MS
from recsys.folders import bundle_folder

Found = TypeVar("Found")
FAR = 10**12
"""Added to the ids of items that the market does not have."""
RANK, NOISE, DISTINCT = 16, 0.3, 65_536
"""Of the vectors; so many are distinct, after which they come again."""
INDEX_BYTES = 40
"""Of a row on disk beside its vector, at most: id, index, scale and offset."""
SETTLE_S = 2.0
"""After a swap; the old version's memory is given back in this time."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Sizes of the measurement."""

    rows: int = 20_000
    """Rows of the table of items."""
    dim: int = 64
    """D of both series."""
    dtypes: tuple[str, ...] = ("int4", "int8", "float16")
    """How the vectors are stored."""
    batch: int = 65_536
    """Ids a lookup."""
    batches: int = 20
    """Batches, drawn ahead."""
    items: int = 500
    """Of a request."""
    requests: int = 500
    """Of each kind, after twenty that do not count."""
    rounds: int = 5
    """Times that the requests are answered, one after another and by `answers` in turn."""
    swaps: int = 3
    """Phases with a swap, and as many without; 0: one version alone is written."""
    users: int = 2_500
    """Of the market."""
    market_items: int = 5_000
    """Items of the market, which are in the table too."""


class DiskFullError(OSError):
    """There is no room for the table."""


def main(options: Options) -> None:
    """Measure each dtype."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _refuse_small_disk(folder, options)
        data, store, out = folder / "data", folder / "small", folder / "out"
        prepare_synthetic(data, users=options.users, items=options.market_items, events_per_day=options.users * 2)
        small.publish(data, store, small.Options(dim=options.dim, entities=max(options.users, options.market_items)))
        train_bundle(small.job(), "both", data, out, str(store))
        rows = small.many_rows(data, 100 * options.items)
        for dtype in options.dtypes:
            large = folder / dtype
            figures = measured(bundle_folder(out), data, large, rows, dtype, options)
            print_record("serve_table", {"dtype": dtype, "rows": options.rows, "dim": options.dim, **figures})
            shutil.rmtree(large)


def measured(
    folder: Path, data: Path, store: Path, rows: pa.Table, dtype: str, options: Options
) -> dict[str, float | dict[str, float]]:
    """All figures of one dtype. The bundle in `folder` is moved to it."""
    publish(data, store, dtype, options)
    repin(folder, store=store, max_drift=2)
    manifests = [Manifest.load(folder)]
    if options.swaps:
        publish(data, store, dtype, options, later_ms=DAY_MS)
        repin(folder, store=store, max_drift=2)
        manifests.append(Manifest.load(folder))
    snapshot, before = EmbeddingStore(store).series("item_ctr").latest(), resident()
    seconds, table = timed(lambda: snapshot.load_checked("cpu"))
    figures = stored(snapshot) | {
        "resident_mib": round((resident() - before) / 2**20),
        "check_s": round(seconds, 1),
        "l2_error": l2_error(data, table, options),
        "lookups_per_s": lookups(table, options),
    }
    del table
    asked = [request_of(rows, number, options) for number in range(20 + options.requests)]
    seconds, live = timed(lambda: LiveBundle(folder, interval_s=0.1))
    with live:
        figures |= {"load_s": round(seconds, 1), **pipelined(live, asked, options)}
        return figures | (swapped(live, folder, manifests, asked, options.swaps) if options.swaps else {})


def chunks(data: Path, options: Options) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids int64 [N] and unit vectors float32 [N, D] of all items, those of the market first; the same at each call."""
    known = torch.from_numpy(_entities(data, "item")["item_id"].to_numpy().copy())
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(RANK, options.dim, generator=generator) / RANK**0.5
    noise = torch.randn(DISTINCT, options.dim, generator=generator) * NOISE
    vectors = F.normalize(torch.randn(DISTINCT, RANK, generator=generator) @ basis + noise)
    for first in range(0, options.rows, DISTINCT):
        ids = torch.arange(first, min(first + DISTINCT, options.rows))
        ids = torch.where(ids < len(known), known[ids.clamp(max=len(known) - 1)], ids + FAR)
        yield ids, vectors[: len(ids)]


def publish(data: Path, store: Path, dtype: str, options: Options, later_ms: int = 0) -> None:
    """A version of all items, in this dtype, and one of the market's users."""
    opened, users = EmbeddingStore(store), _entities(data, "user")
    as_of = users["timestamp"][0].as_py() + later_ms
    items = opened.create("item_ctr", dim=options.dim, dtype=dtype, exist_ok=True)
    with items.write(as_of=as_of, space="ctr-1") as writer:
        for ids, vectors in chunks(data, options):
            writer.append(ids, vectors)
    with opened.create("user_ctr", dim=options.dim, exist_ok=True).write(as_of=as_of, space="ctr-1") as writer:
        ids = torch.from_numpy(users["user_id"].to_numpy().copy())
        writer.append(ids, F.normalize(torch.randn(len(ids), options.dim)))


def stored(snapshot: Snapshot) -> dict[str, float | dict[str, float]]:
    """Bytes a row of the files: data with ids, and the index."""
    data, index = sum(file.bytes for file in snapshot.manifest.data), snapshot.manifest.index.bytes
    parts = {"data": data / snapshot.rows, "index": index / snapshot.rows, "all": (data + index) / snapshot.rows}
    return {"bytes_a_row": {name: round(value, 2) for name, value in parts.items()}}


def l2_error(data: Path, table: Table, options: Options) -> float:
    """Mean of ||v - q|| / ||v|| over the first rows."""
    ids, vectors = next(chunks(data, options))
    read, found = table.lookup(ids)
    assert found.all()
    return round(float(((vectors - read).norm(dim=1) / vectors.norm(dim=1)).mean()), 6)


def lookups(table: Table, options: Options) -> dict[str, float]:
    """Vectors a second of uniform ids, which the table has; and a second of the processor, which waiting does not
    lengthen."""
    generator = torch.Generator().manual_seed(0)
    inputs = [_drawn(options.batch, options, generator) for _ in range(options.batches)]
    threads = torch.get_num_threads()

    def with_threads(count: int) -> Callable[[Tensor], object]:
        def look_up(ids: Tensor) -> object:
            torch.set_num_threads(count)
            return table.lookup(ids)

        return look_up

    seconds = in_turn({"1 thread": with_threads(1), "2 threads": with_threads(2)}, inputs, rounds=3)
    alone, start = with_threads(1), time.process_time()
    for ids in inputs:
        alone(ids)
    seconds["1 thread, CPU"] = (time.process_time() - start) / len(inputs)
    torch.set_num_threads(threads)
    return {name: round(options.batch / value) for name, value in seconds.items()}


def request_of(rows: pa.Table, number: int, options: Options) -> pa.Table:
    """One of the market's users and items of the whole table."""
    request = small.request_of(rows, options.items, np.random.default_rng(number))
    ids = _drawn(options.items, options, torch.Generator().manual_seed(number)).numpy()
    return request.set_column(request.schema.get_field_index("item_id"), "item_id", pa.array(ids))


def pipelined(live: LiveBundle, asked: list[pa.Table], options: Options) -> dict[str, float | dict[str, float]]:
    """Milliseconds of a request alone; requests a second, one after another and by `answers`, in turn."""
    start = time.process_time()
    seconds = [timed(partial(live.predict, rows))[0] for rows in asked]
    spent = (time.process_time() - start) / len(asked)
    variants: dict[str, Callable[[int], object]] = {
        "predict": lambda _: [live.predict(rows) for rows in asked],
        "answers": lambda _: list(live.answers(asked)),
    }
    found = in_turn(variants, range(options.rounds))
    rates = {name: round(len(asked) / value, 1) for name, value in found.items()}
    return {
        "request_ms": quantiles(seconds[20:]) | {"CPU": round(spent * 1000, 2)},
        "requests_per_s": rates | {"ratio": round(found["predict"] / found["answers"], 3)},
    }


def swapped(
    live: LiveBundle, folder: Path, manifests: list[Manifest], asked: list[pa.Table], swaps: int
) -> dict[str, float | dict[str, float]]:
    """Milliseconds of a request with and without a swap beside it; a phase with one lasts until all has settled."""
    during, quiet, lasted = list[float](), list[float](), list[float]()
    for number in range(swaps):
        manifests[number % 2].save(folder)
        start = time.perf_counter()
        settled = _Settled(live, number + 1)
        during += requested(live, asked, settled)
        assert live.error is None, live.error
        lasted.append(settled.swapped - start)
        end = time.perf_counter() + time.perf_counter() - start
        quiet += requested(live, asked, partial(_after, end))
    return {
        "swap_s": round(float(np.median(lasted)), 1),
        "request_ms_quiet": quantiles(quiet),
        "request_ms_during_swap": quantiles(during),
        "requests_during_swap": len(during),
    }


def _after(end: float) -> bool:
    return time.perf_counter() > end


class _Settled:
    """Whether a LiveBundle has swapped so many times, the last time a while ago."""

    def __init__(self, live: LiveBundle, swaps: int) -> None:
        self._live, self._swaps = live, swaps
        self.swapped = 0.0

    def __call__(self) -> bool:
        if not self.swapped and self._live.swaps >= self._swaps:
            self.swapped = time.perf_counter()
        return self.swapped > 0 and time.perf_counter() > self.swapped + SETTLE_S


def requested(live: LiveBundle, asked: list[pa.Table], until: Callable[[], bool]) -> list[float]:
    """Seconds of each request until told to stop; one at least."""
    seconds = list[float]()
    while not seconds or not until():
        seconds.append(timed(partial(live.predict, asked[len(seconds) % len(asked)]))[0])
    return seconds


def timed(work: Callable[[], Found]) -> tuple[float, Found]:
    """Seconds, and what came of it."""
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Milliseconds."""
    p50, p99 = np.percentile(seconds, [50, 99]) * 1000
    return {"p50": round(p50, 2), "p99": round(p99, 2)}


def _drawn(count: int, options: Options, generator: torch.Generator) -> Tensor:
    """Uniform ids of items that the market does not have, int64 [count]."""
    return torch.randint(options.market_items, options.rows, (count,), generator=generator) + FAR


def _entities(data: Path, owner: str) -> pa.Table:
    return pq.ParquetFile(data / f"market/{owner}s/part-0.parquet").read(["timestamp", f"{owner}_id"])


def _refuse_small_disk(folder: Path, options: Options) -> None:
    needed = 2 * options.rows * (2 * options.dim + INDEX_BYTES)  # two versions of float16, one dtype at a time
    free = shutil.disk_usage(folder).free
    if free < needed * 1.1:
        told = f"{folder} has {free / 2**30:.1f} GiB free, {needed / 2**30:.1f} GiB are needed: fewer --rows"
        raise DiskFullError(told)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
