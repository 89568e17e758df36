"""From nothing to the first vector: opening a committed snapshot beside rebuilding an index, page cache warm.

    python -m benchmarks.store_open

Each way runs in a fresh process that has imported its libraries already: the store opens a snapshot of 2 M x 128
float32 (1 GB) and looks up 1,024 ids; the peers load the same ids and vectors from `.npy` files, mapped, and build what
they search with: a Python dict, a pandas Index, sorted ids. Medians over `repeats` processes; a line of JSON, then a
table.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from benchmarks.common import print_record
from embedding_store import EmbeddingStore

IDS = 1024
WAYS = {
    "store": """
        table = EmbeddingStore(folder / "store").series("entities").latest().load()
        vectors = table.lookup(wanted)[0].numpy()""",
    "sorted ids": """
        ids, rows = np.load(folder / "ids.npy"), np.load(folder / "vectors.npy", mmap_mode="r")
        order = ids.argsort()
        vectors = rows[order[np.searchsorted(ids[order], wanted.numpy())]]""",
    "pandas Index": """
        ids, rows = np.load(folder / "ids.npy"), np.load(folder / "vectors.npy", mmap_mode="r")
        vectors = rows[pd.Index(ids).get_indexer(wanted.numpy())]""",
    "dict": """
        ids, rows = np.load(folder / "ids.npy"), np.load(folder / "vectors.npy", mmap_mode="r")
        by_id = {id: row for row, id in enumerate(ids.tolist())}
        vectors = rows[[by_id[id] for id in wanted.tolist()]]""",
}
PROGRAM = """
import json, sys, time
from pathlib import Path
import numpy as np, pandas as pd, torch
from embedding_store import EmbeddingStore
folder = Path(sys.argv[1])
wanted = torch.from_numpy(np.load(folder / "wanted.npy"))
started = time.perf_counter()
if True:{way}
milliseconds = (time.perf_counter() - started) * 1e3
assert np.array_equal(vectors, np.load(folder / "expected.npy"))
print(json.dumps(milliseconds))
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Sizes of the measurement."""

    rows: int = 2_000_000
    """Rows of the snapshot."""
    dim: int = 128
    """D."""
    repeats: int = 7
    """Processes of each way, taking turns."""


def prepare(folder: Path, options: Options) -> None:
    """The same rows as a snapshot and as `.npy` files; writing them leaves them in the page cache."""
    rng = np.random.default_rng(0)
    ids = rng.choice(2**62, options.rows, replace=False)
    vectors = rng.standard_normal((options.rows, options.dim), dtype=np.float32)
    rows = rng.integers(0, options.rows, IDS)
    arrays: dict[str, NDArray] = {"ids": ids, "vectors": vectors, "wanted": ids[rows], "expected": vectors[rows]}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    series = EmbeddingStore(folder / "store").create("entities", dim=options.dim)
    with series.write(as_of=0, space="random-1") as writer:
        writer.append(torch.from_numpy(ids), torch.from_numpy(vectors))


def main(options: Options) -> None:
    """Measure opening and the first lookup."""
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), options)
        for _ in range(options.repeats):
            for name, way in WAYS.items():
                command = [sys.executable, "-c", PROGRAM.replace("{way}", way), folder]
                found[name].append(json.loads(subprocess.check_output(command)))
    medians = {name: round(statistics.median(values), 1) for name, values in found.items()}
    print_record("store_open", {"rows": options.rows, "dim": options.dim, "ms": medians, "all ms": found})
    for name, value in medians.items():
        print(f"{name:14} {value:10,.1f} ms to the first {IDS} vectors of {options.rows:,} (target for the store: 50)")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
