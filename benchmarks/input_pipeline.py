"""Events Parquet -> `Batch`: rows a second on one core.

    python -m benchmarks.input_pipeline

Writes a folder shaped like the demo's events into a temporary directory: 8 id features (one of them a string), 2 jagged
id lists, 2 timed histories of 20 elements on average, 6 numbers, 2 labels; user and item ids beyond 2^31, so that every
one of them is hashed. Reads it with `EventStream` in stored order, and shuffled in blocks of 64 batches. The process is
pinned to one core, which decoding, conversion, the prefetch thread and the consumer share. The file comes from the page
cache. Prints one JSON line and one readable line a variant; the best of `repeats` passes counts, as other processes on
the machine can only make it slower.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro
from numpy.typing import NDArray

from benchmarks.common import print_record
from recsys.data.files import ROW_GROUP_ROWS
from recsys.data.schema import Feature, Label, Schema
from recsys.data.stream import EventStream
from recsys.dates import DAY_MS

COUNTRIES = np.array([f"country-{index:02}" for index in range(50)])


@dataclass(frozen=True, kw_only=True)
class Options:
    """Sizes of the measurement."""

    rows: int = 200_000
    """Rows of the log."""
    batch_size: int = 1024
    """Rows a batch."""
    repeats: int = 5
    """Passes a variant."""


def demo_schema() -> Schema:
    """Eight ids, two id lists, two timed histories, six numbers, two labels."""
    clicked, bought = (
        Feature(name=n, owner="user", kind="sequence", rows=65_536, table="history", max_length=50, time=f"{n}_time")
        for n in ("clicked", "bought")
    )
    return Schema(
        features=(
            Feature(name="user_id", owner="user", kind="id", rows=65_536),
            Feature(name="country", owner="user", kind="id", rows=1024),
            Feature(name="device", owner="user", kind="id", rows=8),
            Feature(name="item_id", owner="item", kind="id", rows=65_536),
            Feature(name="category", owner="item", kind="id", rows=256),
            Feature(name="brand", owner="item", kind="id", rows=1024),
            Feature(name="hour", owner="context", kind="id", rows=24),
            Feature(name="surface", owner="context", kind="id", rows=16),
            Feature(name="interests", owner="user", kind="ids", rows=1024),
            Feature(name="topics", owner="item", kind="ids", rows=1024),
            clicked,
            bought,
            *(Feature(name=f"user_number_{index}", owner="user", kind="dense") for index in range(3)),
            *(Feature(name=f"item_number_{index}", owner="item", kind="dense") for index in range(3)),
        ),
        labels=(Label(name="click"), Label(name="conversion", valid="click")),
    )


def write_events(path: Path, rows: int) -> None:
    """Write a log of that many rows."""
    rng = np.random.default_rng(0)
    time_ms = np.sort(rng.integers(1_700_000_000_000, 1_700_000_000_000 + 7 * DAY_MS, rows))
    click = rng.random(rows) < 0.3
    columns: dict[str, object] = {
        "timestamp": time_ms,
        "user_id": _wide(rng.zipf(1.2, rows) % 20_000),
        "country": COUNTRIES[rng.zipf(1.5, rows) % len(COUNTRIES)],
        "device": rng.integers(0, 8, rows, dtype=np.int32),
        "item_id": _wide(rng.zipf(1.2, rows) % 5_000),
        "category": rng.integers(0, 256, rows, dtype=np.int32),
        "brand": rng.integers(0, 1024, rows, dtype=np.int32),
        "hour": (time_ms // 3_600_000 % 24).astype(np.int32),
        "surface": rng.integers(0, 16, rows, dtype=np.int32),
        "click": click.astype(np.int8),
        "conversion": (click & (rng.random(rows) < 0.2)).astype(np.int8),
    }
    for name in ("interests", "topics"):
        offsets = _offsets(rng, rows, mean=4)
        columns[name] = pa.ListArray.from_arrays(offsets, rng.integers(0, 1000, offsets[-1]))
    for name in ("clicked", "bought"):
        offsets = _offsets(rng, rows, mean=20)
        columns[name] = pa.ListArray.from_arrays(offsets, _wide(rng.zipf(1.2, offsets[-1]) % 5_000))
        columns[f"{name}_time"] = pa.ListArray.from_arrays(offsets, _times(rng, time_ms, offsets))
    for owner in ("user", "item"):
        columns |= {f"{owner}_number_{index}": rng.standard_normal(rows).astype(np.float32) for index in range(3)}
    pq.write_table(pa.table(columns), path, row_group_size=ROW_GROUP_ROWS)


def measure(files: list[Path], options: Options, shuffle_batches: int) -> dict[str, float]:
    """Best rows a second over the repeats, by the clock and by the processor time of all threads together."""
    best: dict[str, float] = {"rows_per_second": 0.0, "rows_per_cpu_second": 0.0}
    for seed in range(options.repeats):
        stream = EventStream(
            files, demo_schema(), batch_size=options.batch_size, shuffle_batches=shuffle_batches, seed=seed
        )
        wall, cpu, rows = time.perf_counter(), time.process_time(), 0
        for batch in stream:
            rows += len(batch)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        best["rows_per_second"] = max(best["rows_per_second"], rows / wall)
        best["rows_per_cpu_second"] = max(best["rows_per_cpu_second"], rows / cpu)
    return {name: round(value) for name, value in best.items()}


def main(options: Options) -> None:
    """Measure the input pipeline."""
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})  # threads started from here on inherit it
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "part-0.parquet")
        write_events(file, options.rows)
        for shuffle_batches in (0, 64):
            figures = measure([file], options, shuffle_batches)
            record = {
                "shuffle_batches": shuffle_batches,
                "rows": options.rows,
                "batch_size": options.batch_size,
                **figures,
                "file_mib": round(file.stat().st_size / 2**20, 1),
                "pyarrow": pa.__version__,
            }
            print_record("input_pipeline", record)
            order = f"shuffled in blocks of {shuffle_batches} batches" if shuffle_batches else "stored order"
            print(
                f"{order}: {figures['rows_per_second']:,} rows/s on one core, "
                f"{figures['rows_per_cpu_second']:,} per second of its time that was ours (target 300,000)"
            )


def _wide(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Small numbers as ids far beyond 2^31."""
    return ids * 7_919 + 10**12


def _offsets(rng: np.random.Generator, rows: int, mean: int) -> NDArray[np.int32]:
    """Offsets of lists with 0 to 2 * mean elements, [rows + 1]."""
    return np.concatenate([[0], np.cumsum(rng.integers(0, 2 * mean + 1, rows))]).astype(np.int32)


def _times(rng: np.random.Generator, time_ms: NDArray[np.int64], offsets: NDArray[np.int32]) -> NDArray[np.int64]:
    """Times of the lists' elements: oldest first, a day apart on average, before the row's own time."""
    gaps = rng.integers(1, 2 * DAY_MS, offsets[-1])
    until = np.cumsum(gaps)
    lengths = np.diff(offsets)
    end = np.repeat(until[np.maximum(offsets[1:], 1) - 1], lengths)
    return np.repeat(time_ms, lengths) - (end - until + gaps)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
