"""Pooled lookups: bags of equal length, and a mix of short ones with a huge one amid them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from benchmarks.gpu.cells import Bench, if_possible
from benchmarks.gpu.ids import draw_bags, even_bags, mixed_bags
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.roof import Form, out_of, pooled_bytes
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.tables import snapshot, written
from benchmarks.gpu.timing import free
from benchmarks.gpu.variants import fbgemm, known_rows, pooled_store

DTYPES = ("float32", "int8")


def run(settings: Settings, journal: Journal) -> None:
    """Every kind of bags, for each dtype."""
    forms = written(settings, journal, [(dtype, settings.dim, settings.rows) for dtype in DTYPES])
    bench, device = Bench(settings, journal), settings.device
    for dtype, _, _ in forms:
        form = Form(dtype, settings.dim, out_of(dtype))
        made = snapshot(settings, journal, dtype, settings.dim, settings.rows)
        variants = [
            pooled_store(made.load(device), made.load(), form.out),
            *if_possible(journal, "torch embedding_bag", partial(known_rows, form, settings.rows, device, pooled=True)),
            *if_possible(journal, f"fbgemm {form}", partial(fbgemm, form, settings.rows, device, pooled=True)),
        ]
        for ids in settings.pooled_ids:
            for bags, lengths in _kinds(settings, ids).items():
                bench.cell(
                    variants,
                    partial(draw_bags, lengths, settings.batches(ids), settings.rows, device),
                    partial(pooled_bytes, form=form, rows=settings.rows),
                    dtype=dtype,
                    dim=settings.dim,
                    bags=bags,
                    keys=ids,
                )
        del variants
        free(device)


def _kinds(settings: Settings, ids: int) -> dict[str, Callable[[int], Tensor]]:
    """Name -> lengths of the bags of a batch, by its seed."""

    def even(length: int) -> Callable[[int], Tensor]:
        return lambda _: even_bags(ids, length)

    return {f"of {length}": even(length) for length in settings.bags} | {"mixed, one huge": partial(mixed_bags, ids)}
