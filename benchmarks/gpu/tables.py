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
from embedding_store import EmbeddingStore, Series, SeriesNotFoundError, Snapshot, VersionNotFoundError
from embedding_store.dtypes import DTYPES
from embedding_store.read.copy_sizes import copied_row_bytes

INDEX_BYTES = 27  # a row, about
WRITERS = 4
APPEND_VALUES = 1 << 27
Stored = tuple[str, int, int]  # dtype, dim and rows


def snapshot(settings: Settings, journal: Journal, dtype: str, dim: int, rows: int) -> Snapshot:
    """Of random vectors; row number i has the id `ids_of(i)`. Written when it is first asked for.

    Raises:
        SkippedError: there is no room for it.
    """
    if (made := _present(settings, dtype, dim, rows)) is not None:
        return made
    needed, free = _needed(dtype, dim, rows), shutil.disk_usage(settings.tables).free
    if free < needed:
        raise SkippedError(_no_room(settings, dtype, dim, rows, free))
    series = EmbeddingStore(settings.tables).create(_name(dtype, dim, rows), dim=dim, dtype=dtype, exist_ok=True)
    started = time.perf_counter()
    publish(settings, series, rows, version=1)
    seconds = round(time.perf_counter() - started, 1)
    journal.write("written", dtype=dtype, dim=dim, rows=rows, seconds=seconds, folder=str(settings.tables))
    return series.latest()


def publish(settings: Settings, series: Series, rows: int, *, version: int) -> None:
    """The next version of a series, of random vectors; those of another version are others."""
    dim = series.dim
    generator = torch.Generator(settings.device).manual_seed(dim + 1_000_003 * version)
    step = max(1, APPEND_VALUES // dim)
    with series.write(as_of=version, space="random-1") as writer:
        for first in range(0, rows, step):
            numbers = torch.arange(first, min(first + step, rows))
            vectors = torch.randn(len(numbers), dim, device=settings.device, generator=generator)
            writer.append(ids_of(numbers), vectors.cpu())


def written(settings: Settings, journal: Journal, forms: Iterable[Stored]) -> list[Stored]:
    """Write snapshots that will be asked for, side by side, and give those for which there was room.

    Raises:
        SkippedError: there was room for none.
    """
    free, kept, reason = shutil.disk_usage(settings.tables).free, list[Stored](), ""
    for form in forms:
        needed = _needed(*form) if _present(settings, *form) is None else 0
        if needed <= free:
            free -= needed
            kept.append(form)
        else:
            reason = _no_room(settings, *form, free)
            journal.left_out(_name(*form), reason)
    if not kept:
        raise SkippedError(reason)
    with ThreadPoolExecutor(WRITERS) as pool:
        for made in [pool.submit(snapshot, settings, journal, *form) for form in kept]:
            made.result()
    return kept


def device_bytes(made: Snapshot, rows: int) -> int:
    """`gpu_bytes` of a tiered table with its indexes and so many rows on the device, and not one more."""
    return made.device_bytes - (made.rows - rows) * copied_row_bytes(DTYPES[made.dtype], made.dim)


def _present(settings: Settings, dtype: str, dim: int, rows: int) -> Snapshot | None:
    with suppress(SeriesNotFoundError, VersionNotFoundError):
        return EmbeddingStore(settings.tables).series(_name(dtype, dim, rows)).latest()
    return None


def _needed(dtype: str, dim: int, rows: int) -> int:
    """Bytes; the index is sorted beside itself."""
    return rows * (DTYPES[dtype].row_bytes(dim) + 2 * INDEX_BYTES)


def _no_room(settings: Settings, dtype: str, dim: int, rows: int, free: int) -> str:
    return (
        f"{rows:,} rows of {dim} {dtype} take {_needed(dtype, dim, rows) / 1e9:.1f} GB, {settings.tables} has "
        f"{free / 1e9:.1f}: set TMPDIR to a folder on a larger disk"
    )


def _name(dtype: str, dim: int, rows: int) -> str:
    return f"{dtype}-{dim}-{rows}"
