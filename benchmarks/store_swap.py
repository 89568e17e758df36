"""Lookups while the next version is loaded beside the present one, checked and swapped in.

    python -m benchmarks.store_swap

A LiveTable follows a tag that is moved to and fro between two versions of 2 M x 128 float32 (1 GB each, in the page
cache). One thread looks up 1,024 uniform ids at a time, without a pause; phases without and with a swap take turns. A
phase with a swap lasts from the tag's move until the old version's memory is given back. Prints a line of JSON, then
the quantiles of both and their ratios.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import tyro
from torch import Tensor

from benchmarks.common import print_record
from embedding_store import EmbeddingStore, LiveTable, Series

SETTLE_SECONDS = 2.0  # after a swap: the old version's memory is given back in this time


@dataclass(frozen=True, kw_only=True)
class Options:
    """Sizes of the measurement."""

    rows: int = 2_000_000
    """Rows of each version."""
    dim: int = 128
    """D."""
    batch: int = 1024
    """Ids a lookup."""
    swaps: int = 10
    """Phases with a swap, and as many without."""


def publish(store: EmbeddingStore, options: Options) -> Series:
    """Two versions of the same ids, the tag on the first."""
    series = store.create("entities", dim=options.dim)
    chunk = torch.randn(65_536, options.dim)
    for as_of in (1, 2):
        with series.write(as_of=as_of, space="random-1") as writer:
            for start in range(0, options.rows, len(chunk)):
                ids = torch.arange(start, min(start + len(chunk), options.rows))
                writer.append(ids * 7_919, chunk[: len(ids)])
    series.tag("prod", 1)
    return series


def look_up(live: LiveTable, batches: list[Tensor], until: Callable[[], bool]) -> list[float]:
    """Seconds of each lookup until told to stop."""
    seconds = []
    while not until():
        for ids in batches:
            started = time.perf_counter()
            live.lookup(ids)
            seconds.append(time.perf_counter() - started)
    return seconds


def main(options: Options) -> None:
    """Measure lookups with and without a swap."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    batches = list(torch.randint(options.rows, (64, options.batch), generator=generator) * 7_919)
    quiet: list[float] = []
    swapping: list[float] = []
    durations = []
    with tempfile.TemporaryDirectory() as folder:
        series = publish(EmbeddingStore(folder), options)
        with LiveTable(series, tag="prod", interval=0.1) as live:
            for number in range(options.swaps + 1):
                started = time.perf_counter()
                series.tag("prod", 2 - number % 2)
                found = look_up(live, batches, _Settled(live, number + 1))
                lasted = time.perf_counter() - started
                still = look_up(live, batches, _after(lasted))
                if number > 0:  # the first pair warms up
                    swapping += found
                    quiet += still
                    durations.append(lasted)
            assert live.status.swaps == options.swaps + 1, live.status
    _print(options, quiet, swapping, durations)


def _after(seconds: float) -> Callable[[], bool]:
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() > end


class _Settled:
    """Whether a LiveTable has swapped so many times, the last time a while ago."""

    def __init__(self, live: LiveTable, swaps: int) -> None:
        self._live = live
        self._swaps = swaps
        self._swapped: float | None = None

    def __call__(self) -> bool:
        if self._swapped is None and self._live.status.swaps >= self._swaps:
            self._swapped = time.perf_counter()
        return self._swapped is not None and time.perf_counter() > self._swapped + SETTLE_SECONDS


def _print(options: Options, quiet: list[float], swapping: list[float], durations: list[float]) -> None:
    quantiles = [0.5, 0.9, 0.99, 0.999]
    without, during = (np.quantile(values, quantiles) * 1e6 for values in (quiet, swapping))
    names = [f"p{q * 100:g}" for q in quantiles]
    figures = {
        "rows": options.rows,
        "dim": options.dim,
        "batch": options.batch,
        "lookups": {"without": len(quiet), "during": len(swapping)},
        "without_us": dict(zip(names, without.round(1).tolist(), strict=True)),
        "during_us": dict(zip(names, during.round(1).tolist(), strict=True)),
        "seconds_from_tag_to_memory_given_back": round(float(np.median(durations)), 2),
    }
    print_record("store_swap", figures)
    for name, alone, beside in zip(names, without, during, strict=True):
        target = " (target 1.3)" if name == "p99" else ""
        print(f"{name:6} {alone:9.1f} us without, {beside:9.1f} us during a swap: {beside / alone:.2f} x{target}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
