"""The tables: snapshots of random vectors, written and loaded as users do. Nothing is put together by hand: what is
timed has the form that `Snapshot.load` makes.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import torch

from benchmarks.gpu.ids import ids_of
from benchmarks.gpu.journal import Journal, SkippedError
from benchmarks.gpu.settings import Settings
from embedding_store import EmbeddingStore, Snapshot, Table, VersionNotFoundError
from embedding_store.dtypes import DTYPES
from embedding_store.native.layout import BUCKET_BYTES, index_numbers

INDEX_BYTES = 27  # a row, about
WRITERS = 4
APPEND_VALUES = 1 << 27
COLUMNS_BYTES = 4096  # the columns' ends, aligned


def snapshot(settings: Settings, journal: Journal, dtype: str, dim: int, rows: int) -> Snapshot:
    """Of random vectors; row number i has the id `ids_of(i)`. Written when it is first asked for.

    Raises:
        SkippedError: there is no room for it.
    """
    store = EmbeddingStore(settings.tables)
    series = store.create(_name(dtype, dim, rows), dim=dim, dtype=dtype, exist_ok=True)
    with suppress(VersionNotFoundError):
        return series.latest()
    needed = rows * (DTYPES[dtype].row_bytes(dim) + 2 * INDEX_BYTES)  # the index is sorted beside itself
    free = shutil.disk_usage(settings.tables).free
    if free < needed:
        raise SkippedError(
            f"{rows:,} rows of {dim} {dtype} take {needed / 1e9:.1f} GB, {settings.tables} has {free / 1e9:.1f}: "
            "set TMPDIR to a folder on a larger disk"
        )
    started = time.perf_counter()
    generator = torch.Generator(settings.device).manual_seed(dim)
    step = max(1, APPEND_VALUES // dim)
    with series.write(as_of=0, space="random-1") as writer:
        for first in range(0, rows, step):
            numbers = torch.arange(first, min(first + step, rows))
            vectors = torch.randn(len(numbers), dim, device=settings.device, generator=generator)
            writer.append(ids_of(numbers), vectors.cpu())
    seconds = round(time.perf_counter() - started, 1)
    journal.write("written", dtype=dtype, dim=dim, rows=rows, seconds=seconds, folder=str(settings.tables))
    return series.latest()


def write(settings: Settings, journal: Journal, forms: Iterable[tuple[str, int, int]]) -> None:
    """Write snapshots that will be asked for, side by side; `forms` has dtype, dim and rows of each. Raises what
    `snapshot` raises."""
    with ThreadPoolExecutor(WRITERS) as pool:
        for made in [pool.submit(snapshot, settings, journal, *form) for form in forms]:
            made.result()


def device_bytes(
    table: Table,  # on the CPU
    rows: int,
) -> int:
    """`gpu_bytes` of a tiered table with room for its indexes and so many bytes of rows on the device."""
    return rows + COLUMNS_BYTES + sum(BUCKET_BYTES * int(numbers[2]) for numbers in index_numbers(table.layout))


def _name(dtype: str, dim: int, rows: int) -> str:
    return f"{dtype}-{dim}-{rows}"
