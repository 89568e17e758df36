"""Lookups of every dtype at odd dimensions, with bags and tiers, beside the CPU's answers: what memcheck watches.

    compute-sanitizer --tool memcheck python -m benchmarks.gpu.odd [--rehearse] [--until TIME]

Exits with status 1 if an answer is wrong, and says which. Every dtype is asked for at the first dimension before the
second one's turn, so that what a watched program has no time for is more of the same.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time

import torch

from benchmarks.gpu.ids import Batch, draw, draw_bags, ids_of
from benchmarks.gpu.names import COMPARED, NO_TIME, UNIFORM
from benchmarks.gpu.tables import device_bytes
from benchmarks.gpu.variants import Variant, pooled_store, store
from embedding_store import EmbeddingStore, Snapshot, Table
from embedding_store.dtypes import DTYPES

DIMS = (7, 100, 1, 260, 16, 33, 129, 2, 63, 3, 5)
FEW_DIMS = (7, 100, 1)
OUTS = (torch.float32, torch.float16, torch.bfloat16)
NUMBERS = (1, 7, 31, 33, 1000, 3000)  # from 2048 on a cold row is read once, by other kernels
ROWS = 700
HOT_ROWS = ROWS // 3
LENGTHS = (0, 1, 0, 3, 31, 32, 33, 900, 1200, 1, 0)


def main(*, rehearse: bool, until: float) -> int:
    """How many answers are wrong. From that time on, of `time.time`, no table is begun; which are left is said."""
    device = torch.device("cpu" if rehearse else "cuda")
    tables = list(itertools.product(FEW_DIMS if rehearse else DIMS, DTYPES))
    wrong = asked = done = 0
    with tempfile.TemporaryDirectory() as folder:
        for dim, dtype in tables:
            if time.time() > until:
                left = ", ".join(f"{dtype} {dim}" for dim, dtype in tables[done:])
                print(f"{NO_TIME} {len(tables) - done} of {len(tables)} tables: {left}", flush=True)
                break
            for name, variant, batch in _questions(_published(folder, dtype, dim), dtype, dim, device):
                asked += 1
                if found := variant.check(batch):
                    wrong += 1
                    print(f"WRONG: {name}: {found}", flush=True)
            done += 1
            print(f"{dtype} {dim}: {asked} {COMPARED}, {wrong} wrong", flush=True)
    return wrong


def _published(folder: str, dtype: str, dim: int) -> Snapshot:
    """A version over another one: rows that were replaced, and ids that are no more."""
    series = EmbeddingStore(folder).create(f"{dtype}-{dim}", dim=dim, dtype=dtype)
    generator = torch.Generator().manual_seed(dim)
    with series.write(as_of=0, space="random-1") as writer:
        writer.append(ids_of(torch.arange(ROWS)), torch.randn(ROWS, dim, generator=generator))
    with series.write(as_of=1, space="random-1", base=1) as writer:
        writer.append(ids_of(torch.arange(50)), torch.randn(50, dim, generator=generator))
        writer.delete(ids_of(torch.arange(60, 70)))
    return series.latest()


def _tiered(made: Snapshot, device: torch.device) -> Table:
    """A third of its rows on the device, whatever these take."""
    budget = device_bytes(made, HOT_ROWS)
    return made.load(device, gpu_bytes=budget, hot_ids=ids_of(torch.arange(0, ROWS, 5)))


def _questions(made: Snapshot, dtype: str, dim: int, device: torch.device) -> list[tuple[str, Variant, Batch]]:
    """Name, lookup and batch of all that is asked of a table and of its tiered form."""
    on_host = made.load()
    tables = {"whole": made.load(device), "tiered": _tiered(made, device)}
    singles = [draw(UNIFORM, 1, keys, ROWS, device, keys, missing=0.2)[0] for keys in NUMBERS]
    (bags,) = draw_bags(lambda _: torch.tensor(LENGTHS), 1, ROWS, device, dim)
    found = []
    for kind, table in tables.items():
        for out in OUTS:
            name = f"{kind} {dtype} {dim} -> {out}"
            found += [(f"{name}, {len(batch.ids)} ids", store(table, on_host, out), batch) for batch in singles]
            found.append((f"{name}, bags", pooled_store(table, on_host, out), bags))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--until", type=float, default=float("inf"), help="seconds since 1970")
    given = parser.parse_args()
    sys.exit(min(main(rehearse=given.rehearse, until=given.until), 1))
