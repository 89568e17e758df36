"""How fast one snapshot answers on this machine: what `embedding-store bench` measures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from embedding_store.errors import InvalidArgumentError
from embedding_store.read.snapshot import Snapshot
from embedding_store.read.table import Table

ZIPF_EXPONENT = 1.05
POOL = 1 << 22  # ids drawn ahead, so that drawing is not timed
WARM_UP = 1 << 16  # ids a lookup of the warm-up


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Lookups of one kind of ids in one batch size."""

    ids: str
    """`uniform` over the snapshot's ids, `zipf` with exponent 1.05, or `missing`."""
    batch: int
    """Ids a lookup."""
    lookups: int
    """Lookups timed."""
    p50_ms: float
    """Median time of a lookup."""
    p99_ms: float
    """99th percentile."""
    ids_per_second: float
    """Ids looked up in a second, over all lookups."""
    gigabytes_per_second: float
    """Bytes of float32 vectors handed out in a second, / 10^9."""


def time_to_first_lookup(snapshot: Snapshot, device: torch.device) -> tuple[Table, float]:
    """The loaded table, and the milliseconds it took to load it and look up one id."""
    started = time.perf_counter()
    table = snapshot.load(device)
    table.lookup(torch.zeros(1, dtype=torch.int64, device=table.device))
    _wait(table)
    return table, (time.perf_counter() - started) * 1e3


def measure(table: Table, *, batches: tuple[int, ...], seconds: float, seed: int = 0) -> Iterator[Measurement]:
    """Time lookups of uniform, Zipf and missing ids in each batch size, for about `seconds` each; every id once before.

    Raises:
        InvalidArgumentError: the snapshot has no rows.
    """
    if len(table) == 0:
        raise InvalidArgumentError(f"version {table.manifest.version} has no rows: choose another snapshot")
    for kind, pool in _pools(table, seed).items():
        for ids in pool.split(WARM_UP):  # pages mapped and checked, caches filled
            table.lookup(ids)
        for batch in batches:
            yield _measure(table, kind, pool, batch, seconds)


def _pools(table: Table, seed: int) -> dict[str, Tensor]:  # int64 [POOL]
    generator = torch.Generator().manual_seed(seed)
    ids = table.ids()
    uniform = torch.randint(len(ids), (POOL,), generator=generator)
    shuffled = ids[torch.randperm(len(ids), generator=generator)]  # the popular ids lie anywhere
    anything = torch.randint(-(2**63), 2**63 - 1, (POOL,), generator=generator)
    pools = {"uniform": ids[uniform], "zipf": shuffled[_zipf(len(ids), generator)], "missing": anything}
    return {kind: pool.to(table.device) for kind, pool in pools.items()}


def _zipf(rows: int, generator: torch.Generator) -> Tensor:
    """Ranks 0 .. rows - 1, rank r with probability proportional to (r + 1) ** -1.05: the continuous law."""
    power = 1 - ZIPF_EXPONENT
    uniform = torch.rand(POOL, generator=generator, dtype=torch.float64)
    ranks = (uniform * ((rows + 1.0) ** power - 1) + 1) ** (1 / power) - 1
    return ranks.to(torch.int64).clamp_(0, rows - 1)


def _measure(table: Table, kind: str, pool: Tensor, batch: int, seconds: float) -> Measurement:
    def look_up(start: int) -> None:
        table.lookup(pool[start : start + batch])
        _wait(table)

    batch = min(batch, POOL)
    starts = [start * batch for start in range(POOL // batch)]
    durations = _timed(look_up, starts, seconds)
    quantiles = torch.tensor(durations, dtype=torch.float64).quantile(torch.tensor([0.5, 0.99], dtype=torch.float64))
    rate = len(durations) * batch / sum(durations)
    return Measurement(
        ids=kind,
        batch=batch,
        lookups=len(durations),
        p50_ms=float(quantiles[0]) * 1e3,
        p99_ms=float(quantiles[1]) * 1e3,
        ids_per_second=rate,
        gigabytes_per_second=rate * table.dim * 4 / 1e9,
    )


def _timed(look_up: Callable[[int], None], starts: list[int], seconds: float) -> list[float]:
    durations: list[float] = []
    end = time.perf_counter() + seconds
    while not durations or time.perf_counter() < end:
        started = time.perf_counter()
        look_up(starts[len(durations) % len(starts)])
        durations.append(time.perf_counter() - started)
    return durations


def _wait(table: Table) -> None:
    if table.device.type == "cuda":
        torch.cuda.synchronize(table.device)
