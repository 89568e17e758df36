"""Lookups while the next version is loaded beside the present one, checked and swapped in.

    python -m benchmarks.store_swap
    python -m benchmarks.store_swap --device cuda

A LiveTable follows a tag that is moved to and fro between two versions of 2 M x 128 float32 (1 GB each, in the page
cache). One thread looks up 1,024 uniform ids at a time, without a pause, and waits for each answer; phases without and
with a swap take turns. A phase with a swap lasts from the tag's move until the old version's memory is given back.
Prints a line of JSON, then the quantiles of both and their ratios.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import print_record
from embedding_store import EmbeddingStore, LiveTable, Series

QUANTILES = (0.5, 0.9, 0.99, 0.999)


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
    device: str = "cpu"
    """Where the vectors are served from."""
    settle: float = 2.0
    """Seconds after a swap, in which the old version's memory is given back."""


def publish(store: EmbeddingStore, options: Options) -> Series:
    """Two versions of the same ids."""
    series = store.create("entities", dim=options.dim)
    chunk = torch.randn(65_536, options.dim)
    for as_of in (1, 2):
        with series.write(as_of=as_of, space="random-1") as writer:
            for start in range(0, options.rows, len(chunk)):
                ids = torch.arange(start, min(start + len(chunk), options.rows))
                writer.append(ids * 7_919, chunk[: len(ids)])
    return series


def look_up(live: LiveTable, batches: list[Tensor], until: Callable[[], bool]) -> list[float]:
    """Seconds of each lookup until told to stop."""
    seconds = []
    stream = torch.cuda.current_stream() if batches[0].is_cuda else None
    while not until():
        for ids in batches:
            started = time.perf_counter()
            live.lookup(ids)
            if stream is not None:
                stream.synchronize()  # of this thread's alone: a version may be on its way on another
            seconds.append(time.perf_counter() - started)
    return seconds


def measure(series: Series, options: Options) -> dict[str, Any]:
    """Microseconds of lookups without and during a swap, of a published series."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(options.rows, (64, options.batch), generator=generator) * 7_919
    batches = list(drawn.to(options.device))
    quiet: list[float] = []
    swapping: list[float] = []
    durations = []
    series.tag("prod", 1)
    with LiveTable(series, tag="prod", interval=0.1, device=options.device) as live:
        for number in range(options.swaps + 1):
            started = time.perf_counter()
            series.tag("prod", 2 - number % 2)
            found = look_up(live, batches, _Settled(live, number + 1, options.settle))
            lasted = time.perf_counter() - started
            still = look_up(live, batches, _after(lasted))
            if number > 0:  # the first pair warms up
                swapping += found
                quiet += still
                durations.append(lasted)
        if live.status.swaps != options.swaps + 1:
            raise RuntimeError(f"{live.status.swaps} swaps instead of {options.swaps + 1}: {live.status}")
    without, during = (np.quantile(values, QUANTILES) * 1e6 for values in (quiet, swapping))
    names = [f"p{q * 100:g}" for q in QUANTILES]
    return {
        "rows": options.rows,
        "dim": options.dim,
        "batch": options.batch,
        "lookups": {"without": len(quiet), "during": len(swapping)},
        "without_us": dict(zip(names, without.round(1).tolist(), strict=True)),
        "during_us": dict(zip(names, during.round(1).tolist(), strict=True)),
        "seconds_from_tag_to_memory_given_back": round(float(np.median(durations)), 2),
    }


def main(options: Options) -> None:
    """Measure lookups with and without a swap."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(publish(EmbeddingStore(folder), options), options)
    print_record("store_swap", figures)
    for name, alone in figures["without_us"].items():
        beside = figures["during_us"][name]
        target = " (target 1.3)" if name == "p99" else ""
        print(f"{name:6} {alone:9.1f} us without, {beside:9.1f} us during a swap: {beside / alone:.2f} x{target}")


def _after(seconds: float) -> Callable[[], bool]:
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() > end


class _Settled:
    """Whether a LiveTable has swapped so many times, the last time a while ago. Raises what keeps it from swapping."""

    def __init__(self, live: LiveTable, swaps: int, settle: float) -> None:
        self._live = live
        self._swaps = swaps
        self._settle = settle
        self._swapped: float | None = None

    def __call__(self) -> bool:
        if self._swapped is None and self._live.status.swaps >= self._swaps:
            self._swapped = time.perf_counter()
        elif self._swapped is None and (error := self._live.status.error) is not None:
            raise RuntimeError(f"swap {self._swaps} fails: {error}") from error
        return self._swapped is not None and time.perf_counter() > self._swapped + self._settle


if __name__ == "__main__":
    import tyro  # only here: benchmarks.gpu, which has no need of it, measures by this module

    main(tyro.cli(Options, description=__doc__))
