"""Building an index: rows a second of a core, from ids in any order to the file with its checksums.

    python -m benchmarks.store_index

Seconds are those of the processor, in all threads, so that what else the machine does counts little; seconds by the
clock are beside. `sort` is from ids to the entries of an index, in a temporary file and back; `file` from there to the
index as it is stored.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

from benchmarks.common import print_record
from embedding_store.format.files import create_checked
from embedding_store.storage.local import LocalStorage
from embedding_store.write.index import Operations, settle, write_index


@dataclass(frozen=True, kw_only=True)
class Options:
    """Sizes of the measurement."""

    rows: int = 20_000_000
    """Ids."""
    threads: int = 1
    """torch's threads."""
    repeats: int = 3
    """Runs, of which the median counts."""
    folder: Path | None = None
    """Where to write; the system's temporary folder unless given."""


def main(options: Options) -> None:
    """Measure the building of an index."""
    torch.set_num_threads(options.threads)
    ids = np.random.default_rng(0).integers(-(2**63), 2**63, options.rows, dtype=np.int64)
    runs = [_build(ids, options.folder) for _ in range(1 + options.repeats)][1:]
    runs.sort(key=lambda run: run["cpu_seconds"])
    run = runs[len(runs) // 2]
    rates = {
        "rows_per_second_of_a_core": options.rows / run["cpu_seconds"],
        "rows_per_second": options.rows / run["seconds"],
    }
    print_record("store_index", {"rows": options.rows, "threads": options.threads, **rates, **run})
    print(f"{rates['rows_per_second_of_a_core'] / 1e6:.1f} M rows/s a core (target 15)")


def _build(ids: np.ndarray, folder: Path | None) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        storage = LocalStorage(Path(place))
        start, cpu = time.perf_counter(), time.process_time()
        operations = Operations(storage.scratch())
        for first in range(0, len(ids), 65_536):
            operations.upsert(ids[first : first + 65_536], first)
        settled = settle(operations)
        sorted_cpu = time.process_time()
        with create_checked(storage, "data/x/index.hash") as new:
            write_index(new.sink, settled.entries, storage.scratch())
        done = time.process_time()
        return {
            "seconds": time.perf_counter() - start,
            "cpu_seconds": done - cpu,
            "sort_cpu_seconds": sorted_cpu - cpu,
            "file_cpu_seconds": done - sorted_cpu,
        }


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
