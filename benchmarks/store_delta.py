"""A small delta beside a full publish: time and bytes, a live table's swap to it, and the difference between the two.

    python -m benchmarks.store_delta

Publishes 10 M x 128 float32 (5.1 GB), then deltas that each change 0.1 % of the ids, drawn at random: of ten changes
eight are new vectors of ids that are there, one is a new id, one a delete. Bytes of a publish are those of the files
that it writes, `.crc` files and the manifest included. A LiveTable, warm, is swapped to each delta; CPU is that of the
process, and the first lookup of 65,536 ids thereafter is timed apart. Then `diff` of each delta and its base, of the
first version and the last, and of the first and a delta on a compaction of the last. Medians over the deltas.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import tyro
from torch import Tensor

from benchmarks.common import print_record
from embedding_store import EmbeddingStore, LiveTable, Series, Snapshot
from embedding_store.format.manifest import manifest_path

CHUNK = 65_536  # rows appended at once
STRIDE = 7_919  # from one id to the next


@dataclass(frozen=True, kw_only=True)
class Options:
    """Sizes of the measurement."""

    rows: int = 10_000_000
    """Rows of the full snapshot."""
    dim: int = 128
    """D."""
    dtype: str = "float32"
    """How vectors are stored."""
    share: float = 0.001
    """Part of the ids that a delta changes."""
    deltas: int = 5
    """How many, each on the one before."""
    folder: Path | None = None
    """Where to write; the system's temporary folder unless given."""


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """What it gives, its seconds and the process's CPU seconds."""
    started, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, time.perf_counter() - started, time.process_time() - cpu


def publish(series: Series, options: Options) -> Snapshot:
    """The full snapshot."""
    chunk = torch.randn(CHUNK, options.dim)
    ids = torch.arange(CHUNK) * STRIDE
    with series.write(as_of=0, space="random-1") as writer:
        for start in range(0, options.rows, CHUNK):
            writer.append((ids + start * STRIDE)[: options.rows - start], chunk[: options.rows - start])
    return writer.snapshot


class Changes(NamedTuple):
    """What a delta changes."""

    upserted: Tensor  # int64 [N]
    vectors: Tensor  # float32 [N, D]
    deleted: Tensor  # int64 [M]


def draw(number: int, options: Options) -> Changes:
    """The changes of delta `number`: 1, 2, ..."""
    count = max(10, int(options.rows * options.share))
    generator = torch.Generator().manual_seed(number)
    chosen = torch.randint(options.rows, (2 * count,), generator=generator).unique()
    chosen = chosen[torch.randperm(len(chosen), generator=generator)][: count - count // 10] * STRIDE
    new = (options.rows + number * count + torch.arange(count // 10)) * STRIDE
    upserted = torch.cat([chosen[count // 10 :], new])
    return Changes(upserted, torch.randn(len(upserted), options.dim, generator=generator), chosen[: count // 10])


def publish_delta(series: Series, base: Snapshot, number: int, changes: Changes) -> Snapshot:
    """The delta."""
    with series.write(as_of=number, space="random-1", base=base) as writer:
        writer.append(changes.upserted, changes.vectors)
        writer.delete(changes.deleted)
    return writer.snapshot


def written(snapshot: Snapshot, base: Snapshot | None) -> int:
    """Bytes that publishing it put on the disk."""
    before = set() if base is None else {file.path for file in base.manifest.files}
    own = [file for file in snapshot.manifest.files if file.path not in before]
    paths = [path for file in own for path in (file.path, file.crc_path)]
    return sum(snapshot._storage.size(path) for path in (*paths, manifest_path(snapshot.version)))


def main(options: Options) -> None:
    """Measure full publish, deltas, swaps and diffs."""
    generator = torch.Generator().manual_seed(0)
    asked = torch.randint(options.rows, (65_536,), generator=generator) * STRIDE
    figures: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        series = EmbeddingStore(folder).create("entities", dim=options.dim, dtype=options.dtype)
        first, full_seconds, _ = timed(partial(publish, series, options))
        latest, full_bytes = first, written(first, None)
        with LiveTable(series, interval=86_400) as live:
            for _ in range(3):
                live.lookup(asked)
            for number in range(1, options.deltas + 1):
                base, changes = latest, draw(number, options)
                latest, seconds, cpu = timed(partial(publish_delta, series, base, number, changes))
                status, _, swap_cpu = timed(live.refresh)
                assert (status.version, status.error) == (latest.version, None), status
                _, lookup, lookup_cpu = timed(partial(live.lookup, asked))
                _, diff_seconds, _ = timed(partial(series.diff, base, latest))
                record = {
                    "publish_seconds": seconds,
                    "publish_cpu_seconds": cpu,
                    "bytes": written(latest, base),
                    "swap_cpu_ms": swap_cpu * 1000,
                    "first_lookup_ms": lookup * 1000,
                    "first_lookup_cpu_ms": lookup_cpu * 1000,
                    "diff_seconds": diff_seconds,
                }
                for name, value in record.items():
                    figures.setdefault(name, []).append(value)
        _, whole_diff, whole_cpu = timed(partial(series.diff, first, latest))
        beyond = publish_delta(series, series.compact(), options.deltas + 1, draw(options.deltas + 1, options))
        _, beyond_diff, beyond_cpu = timed(partial(series.diff, first, beyond))
    medians = {name: median(values) for name, values in figures.items()}
    sizes = {"rows": options.rows, "dim": options.dim, "dtype": options.dtype, "share": options.share}
    full = {"full_seconds": full_seconds, "full_bytes": full_bytes}
    full |= {"diff_first_to_last_seconds": whole_diff, "diff_first_to_last_cpu_seconds": whole_cpu}
    full |= {"diff_across_compaction_seconds": beyond_diff, "diff_across_compaction_cpu_seconds": beyond_cpu}
    print_record("store_delta", {**sizes, **full, **medians, "each": figures})
    time_share, bytes_share = medians["publish_seconds"] / full_seconds, medians["bytes"] / full_bytes
    print(f"full publish: {full_seconds:.2f} s, {full_bytes / 1e9:.2f} GB")
    print(f"delta: {medians['publish_seconds']:.3f} s, {medians['bytes'] / 1e6:.2f} MB: {time_share:.2%} of the time")
    print(f"  and {bytes_share:.2%} of the bytes (target 2 %)")
    print(f"swap: {medians['swap_cpu_ms']:.1f} ms of CPU (target 100)")
    print(f"diff: {medians['diff_seconds']:.3f} s to the base, {whole_diff:.3f} s from the first to the last")
    print(f"  and {beyond_diff:.3f} s ({beyond_cpu:.3f} s of CPU) from the first to a delta on the last, compacted")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
