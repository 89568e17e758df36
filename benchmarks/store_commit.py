"""Writing a snapshot beside writing its bytes: time to the commit, and peak memory.

    python -m benchmarks.store_commit

A child process appends 8 M x 128 float32 (4 GB) in chunks of 65,536 rows to a snapshot: data files, checksums, index,
fsync, manifest. Another writes as many bytes as that put on the disk to one file, sequentially in pieces of 16 MiB, and
fsyncs it. They take turns. Peak memory is the child's greatest resident set; importing torch alone takes half of it.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.common import print_record

COMMIT = """
import json, resource, sys, time
import torch
from embedding_store import EmbeddingStore
folder, rows, dim, dtype = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
series = EmbeddingStore(folder).create("entities", dim=dim, dtype=dtype)
chunk = torch.randn(65_536, dim)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ids = torch.arange(65_536) * 7_919 - 2**40
started = time.perf_counter()
with series.write(as_of=0, space="random-1") as writer:
    for start in range(0, rows, 65_536):
        writer.append((ids + start * 7_919)[: rows - start], chunk[: rows - start])
seconds = time.perf_counter() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
total = writer.snapshot.manifest.total_bytes
print(json.dumps({"seconds": seconds, "peak_mb": peak * 1024 / 1e6, "before_mb": before * 1024 / 1e6, "bytes": total}))
"""
PLAIN = """
import json, os, sys, time
import torch  # as the other does: in the seconds that this takes a virtual machine's host takes freed memory back
folder, size = sys.argv[1], int(sys.argv[2])
piece = os.urandom(16 << 20)
started = time.perf_counter()
with open(folder + "/plain.bin", "wb", buffering=0) as file:
    for start in range(0, size, len(piece)):
        file.write(memoryview(piece)[: size - start])
    os.fsync(file.fileno())
print(json.dumps({"seconds": time.perf_counter() - started}))
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Sizes of the measurement."""

    rows: int = 8_000_000
    """Rows of the snapshot."""
    dim: int = 128
    """D."""
    dtype: str = "float32"
    """How vectors are stored."""
    repeats: int = 3
    """Runs of each, taking turns."""
    folder: Path | None = None
    """Where to write; the system's temporary folder unless given."""


def main(options: Options) -> None:
    """Measure the commit."""
    commits, plains = [], []
    for _ in range(1 + options.repeats):
        arguments = [options.rows, options.dim, options.dtype]
        commits.append(_run(COMMIT, options, *arguments))
        plains.append(_run(PLAIN, options, commits[-1]["bytes"]))
    del commits[0], plains[0]  # the first pair makes the system give up pages that it held for other files
    ratios = [plain["seconds"] / commit["seconds"] for commit, plain in zip(commits, plains, strict=True)]
    figures = {
        "rows": options.rows,
        "dim": options.dim,
        "dtype": options.dtype,
        "gigabytes": commits[0]["bytes"] / 1e9,
        "commit_seconds": statistics.median(run["seconds"] for run in commits),
        "plain_seconds": statistics.median(run["seconds"] for run in plains),
        "ratios": ratios,
        "peak_mb": max(run["peak_mb"] for run in commits),
        "mb_before_writing": commits[0]["before_mb"],
    }
    print_record("store_commit", figures)
    speeds = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"{figures['gigabytes']:.2f} GB: {speeds} x the speed of a plain write + fsync (target 0.6)")
    print(f"peak memory {figures['peak_mb']:.0f} MB, {figures['mb_before_writing']:.0f} before writing (target 500)")


def _run(program: str, options: Options, *arguments: object) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        command = [sys.executable, "-c", program, folder, *map(str, arguments)]
        try:
            return json.loads(subprocess.check_output(command))
        finally:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
