"""Lookups of 1,000 to 4 M ids in tables of every dtype: uniform, by Zipf's law, and some or all of them missing."""

from __future__ import annotations

import time
from functools import partial

from benchmarks.gpu.cells import Bench, if_possible
from benchmarks.gpu.ids import draw
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.names import UNIFORM, ZIPF
from benchmarks.gpu.roof import Form, lookup_bytes, out_of
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.tables import snapshot, written
from benchmarks.gpu.timing import free
from benchmarks.gpu.variants import Variant, fbgemm, known_rows, store


def run(settings: Settings, journal: Journal) -> None:
    """Every cell of the grid."""
    forms = written(settings, journal, [(dtype, settings.dim, settings.rows) for dtype in settings.dtypes])
    bench = Bench(settings, journal)
    kinds = [(UNIFORM, 0.0), (ZIPF, 0.0), *((UNIFORM, share) for share in settings.missing)]
    for form in forms:
        measure(bench, journal, *form, settings.keys, kinds)


def measure(
    bench: Bench,
    journal: Journal,
    dtype: str,
    dim: int,
    rows: int,
    numbers: tuple[int, ...],
    kinds: list[tuple[str, float]],
) -> None:
    """All cells of one table, for `kinds` of ids with shares of missing ones."""
    settings, device = bench.settings, bench.settings.device
    form = Form(dtype, dim, out_of(dtype))
    variants = _variants(bench, journal, form, rows)
    for keys in numbers:
        for kind, missing in kinds:
            bench.cell(
                variants[:1] if missing else variants,  # the others know no missing id
                partial(draw, kind, settings.batches(keys), keys, rows, device, missing=missing),
                partial(lookup_bytes, form=form, rows=rows),
                dtype=dtype,
                dim=dim,
                ids=kind,
                missing=missing,
                keys=keys,
            )
    del variants
    free(device)


def _variants(bench: Bench, journal: Journal, form: Form, rows: int) -> list[Variant]:
    made, device = snapshot(bench.settings, journal, form.dtype, form.dim, rows), bench.settings.device
    bench.clock.wait()
    started = time.perf_counter()
    table = made.load(device)
    bench.clock.wait()
    rate = round(table.storage.nbytes / (time.perf_counter() - started) / 1e9, 2)
    journal.write("loaded", dtype=form.dtype, dim=form.dim, rows=rows, bytes=table.storage.nbytes, GB_per_s=rate)
    return [
        store(table, made.load(), form.out),
        *if_possible(journal, "torch embedding", lambda: known_rows(form, rows, device)),
        *if_possible(journal, f"fbgemm {form}", lambda: fbgemm(form, rows, device)),
    ]
