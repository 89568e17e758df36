"""One snapshot by one writer, and by several at once: fragments, pieces of the index, one commit.

    python -m benchmarks.store_writers

Each writer is a process of one thread that makes its share of the vectors' ids and appends them in chunks; then each
writes its piece of the index, and the first one commits. Seconds are from the first append to the commit, when the
processes have started; processor seconds are those of the writer that took most, with its part of the commit: what the
clock would show on a machine with a core a writer and a disk that keeps up.
"""

from __future__ import annotations

import multiprocessing
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.common import print_record
from embedding_store import EmbeddingStore

CHUNK = 65_536


@dataclass(frozen=True, kw_only=True)
class Options:
    """Sizes of the measurement."""

    rows: int = 8_000_000
    """Rows of the snapshot."""
    dim: int = 128
    """D."""
    dtype: str = "float32"
    """How vectors are stored."""
    writers: int = 2
    """Processes, beside one."""
    repeats: int = 3
    """Runs of each, taking turns."""
    folder: Path | None = None
    """Where to write; the system's temporary folder unless given."""


def main(options: Options) -> None:
    """Measure one writer and several."""
    runs: dict[int, list[dict[str, float]]] = {1: [], options.writers: []}
    for _ in range(1 + options.repeats):
        for writers, found in runs.items():
            found.append(_run(options, writers))
    figures: dict[str, Any] = {"rows": options.rows, "dim": options.dim, "dtype": options.dtype}
    for name in ("seconds", "cpu_seconds"):
        one, many = (statistics.median(run[name] for run in found[1:]) for found in runs.values())
        figures |= {f"one_{name}": one, f"{options.writers}_{name}": many, f"{name}_ratio": one / many}
    print_record("store_writers", figures)
    ratios = f"{figures['seconds_ratio']:.2f} x by the clock, {figures['cpu_seconds_ratio']:.2f} x by processor time"
    print(f"{options.writers} writers are worth {ratios} (target 1.7)")


def _run(options: Options, writers: int) -> dict[str, float]:
    folder = tempfile.mkdtemp(dir=options.folder)
    try:
        EmbeddingStore(folder).create("entities", dim=options.dim, dtype=options.dtype)
        context = multiprocessing.get_context("spawn")
        pipes, processes = [], []
        for part in range(writers):
            ours, theirs = context.Pipe()
            pipes.append(ours)
            processes.append(context.Process(target=_write, args=(theirs, folder, options, part, writers)))
            processes[-1].start()
        for pipe in pipes:
            pipe.recv()  # it has started
        started = time.perf_counter()
        draft = EmbeddingStore(folder).series("entities").draft(parts=writers, as_of=0, space="random-1")
        for pipe in pipes:
            pipe.send(draft)
        fragments = [pipe.recv() for pipe in pipes]
        for pipe in pipes:
            pipe.send(fragments)
        pieces = [pipe.recv() for pipe in pipes]
        for pipe in pipes:
            pipe.send(pieces)
        cpu = [pipe.recv() for pipe in pipes]
        seconds = time.perf_counter() - started
        for process in processes:
            process.join()
        return {"seconds": seconds, "cpu_seconds": max(cpu)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(pipe: Any, folder: str, options: Options, part: int, writers: int) -> None:
    torch.set_num_threads(1)
    series = EmbeddingStore(folder).series("entities")
    chunk, first = torch.randn(CHUNK, options.dim), options.rows * part // writers
    last = options.rows * (part + 1) // writers
    pipe.send(None)
    draft = pipe.recv()
    started = time.process_time()
    with series.fragment(draft, part) as writer:
        for start in range(first, last, CHUNK):
            count = min(CHUNK, last - start)
            writer.append(torch.arange(start, start + count) * 7_919 - 2**40, chunk[:count])
    pipe.send(writer.fragment)
    fragments = pipe.recv()
    pipe.send(series.index_piece(draft, fragments, part))
    pieces = pipe.recv()
    if part == 0:
        series.commit(draft, fragments, pieces)
    pipe.send(time.process_time() - started)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
