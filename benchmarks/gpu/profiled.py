"""Three lookups, each once between the profiler's start and stop: what ncu counts.

ncu --profile-from-start off ... python -m benchmarks.gpu.profiled [--rehearse] --out DIR
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.ids import Batch, draw, draw_bags, even_bags
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.names import UNIFORM
from benchmarks.gpu.settings import Settings, settings_of
from benchmarks.gpu.tables import snapshot
from benchmarks.gpu.timing import Clock

ROWS_SHARE = 4  # of the grid's rows: a profiled kernel is run many times, its memory saved and restored each time


def main(settings: Settings) -> None:
    """Look up float32, int8 as float16, and bags."""
    journal = Journal(settings.out, "ncu")
    few, many = settings.keys[min(1, len(settings.keys) - 1)], settings.keys[-2]
    rows = settings.rows // ROWS_SHARE
    tables = {
        dtype: snapshot(settings, journal, dtype, settings.dim, rows).load(settings.device)
        for dtype in ("float32", "int8")
    }
    clock = Clock(settings.device)
    first, again = (draw(UNIFORM, 2, keys, rows, settings.device, keys) for keys in (many, few))
    bags = draw_bags(lambda _: even_bags(many, 20), 2, rows, settings.device, 0)

    def single(dtype: str, out: torch.dtype, batches: list[Batch]) -> list[Callable[[], Any]]:
        return [partial(tables[dtype].lookup, batch.ids, out) for batch in batches]

    calls: dict[str, list[Callable[[], Any]]] = {
        f"float32, {many:,} ids": single("float32", torch.float32, first),
        f"int8 -> float16, {few:,} ids": single("int8", torch.float16, again),
        f"float32, bags of 20, {many:,} ids": [
            partial(tables["float32"].lookup_pooled, batch.ids, batch.offsets) for batch in bags
        ],
    }
    for what, (warm, counted) in calls.items():
        warm()
        clock.on_device(lambda: None)  # the cache holds something else
        print(f"profiled: {what}", flush=True)
        _between(settings.device, counted)


def _between(device: torch.device, call: Callable[[], Any]) -> None:
    if device.type != "cuda":
        call()
        return
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStart()
    call()
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    main(settings_of(given.out, rehearse=given.rehearse))
