"""A table in two tiers, the popular rows on the device, under ids by Zipf's law; and FBGEMM's cache of as many rows."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.gpu.cells import Bench, if_possible
from benchmarks.gpu.ids import Batch, draw, ids_of, scattered
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.names import ZIPF
from benchmarks.gpu.roof import Form, bus_rates, lookup_bytes, out_of
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.tables import device_bytes, snapshot, written
from benchmarks.gpu.timing import free
from benchmarks.gpu.variants import fbgemm, store
from embedding_store import Snapshot, TieredTable

DTYPES = ("float32", "int8")


def run(settings: Settings, journal: Journal) -> None:
    """Every number of ids, for each dtype."""
    forms = written(settings, journal, [(dtype, settings.dim, settings.rows) for dtype in DTYPES])
    bench, device = Bench(settings, journal), settings.device
    bus = bus_rates(settings, bench.clock)["to the device"]
    journal.write("bus", GB_per_s=round(bus / 1e9, 2))
    hot_rows = int(settings.hot * settings.rows)
    hot = scattered(torch.arange(hot_rows), settings.rows)
    is_cold = torch.ones(settings.rows, dtype=torch.bool, device=device)
    is_cold[hot.to(device)] = False
    for dtype, _, _ in forms:
        form = Form(dtype, settings.dim, out_of(dtype))
        made = snapshot(settings, journal, dtype, settings.dim, settings.rows)
        table = _load(made, settings, hot)

        def bounds(batch: Batch, form: Form = form) -> dict[str, float]:
            crossing = int(is_cold[batch.rows.unique()].sum()) * form.row_bytes
            return {"bus": crossing / bus * 1e6}

        variants = [
            store(table, made.load(), form.out, f"store, {settings.hot:.0%} hot"),
            *if_possible(
                journal, f"fbgemm {form}, cached", partial(fbgemm, form, settings.rows, device, cached=settings.hot)
            ),
        ]
        for keys in settings.keys:
            table.reset_hits()
            bench.cell(
                variants,
                partial(draw, ZIPF, settings.batches(keys), keys, settings.rows, device),
                partial(lookup_bytes, form=form, rows=settings.rows),
                bounds,
                dtype=dtype,
                dim=settings.dim,
                ids=ZIPF,
                keys=keys,
            )
            journal.write("hits", dtype=dtype, keys=keys, rate=round(table.hits().rate, 4))
        del variants, table
        free(device)


def _load(made: Snapshot, settings: Settings, hot: torch.Tensor) -> TieredTable:
    """With the index and the hot rows on the device, and no others, of which the bounds would know nothing."""
    table = made.load(settings.device, gpu_bytes=device_bytes(made, len(hot)), hot_ids=ids_of(hot))
    assert isinstance(table, TieredTable)
    return table
