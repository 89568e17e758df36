"""Small lookups in a live table: replays of captured ones beside calls, beside a table that never changes, and beside
torch's embedding of rows whose numbers are known. After each number of ids another version is swapped in: the graphs
that were captured before must then give its vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks.gpu.captured import Captured, replayed
from benchmarks.gpu.cells import Bench
from benchmarks.gpu.ids import Batch, draw
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.names import UNIFORM
from benchmarks.gpu.roof import Form, lookup_bytes, out_of
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.tables import publish
from benchmarks.gpu.variants import Variant, known_rows, store, unlike
from embedding_store import CapturableLiveTable, EmbeddingStore, LiveTable, Series

NEVER = 86_400.0  # seconds between two looks for another version: swaps are told here
TAG = "served"
VERSIONS = (1, 2)


def run(settings: Settings, journal: Journal) -> None:
    """Every number of ids. Raises RuntimeError where a swap fails."""
    form = Form("float32", settings.dim, out_of("float32"))
    series = EmbeddingStore(settings.tables).create("captured", dim=form.dim, dtype=form.dtype)
    for version in VERSIONS:
        publish(settings, series, settings.graph_rows, version=version)
    series.tag(TAG, VERSIONS[0])
    bench = Bench(settings, journal)
    with CapturableLiveTable(series, tag=TAG, interval=NEVER, device=settings.device) as live:
        variants, captured = _variants(settings, series, live, form)
        for keys in settings.graph_keys:
            bench.cell(
                variants,
                partial(draw, UNIFORM, settings.graphs, keys, settings.graph_rows, settings.device),
                partial(lookup_bytes, form=form, rows=settings.graph_rows),
                dtype=form.dtype,
                dim=form.dim,
                ids=UNIFORM,
                keys=keys,
            )
            _swap(series, live)
            _check_swapped(variants[0], captured.batches, live.status.version, journal)


def _variants(settings: Settings, series: Series, live: LiveTable, form: Form) -> tuple[list[Variant], Captured]:
    """All ways of looking up, the replay of the live table's first, and what that has captured."""
    device = settings.device
    references = {version: series.version(version).load() for version in VERSIONS}

    def judge(batch: Batch, answer: Any) -> str | None:
        return unlike(references[live.status.version], batch, answer)

    called = Variant("store, called", lambda batch: live.lookup(batch.ids, form.out), judge)
    fixed = store(series.version(VERSIONS[0]).load(device), references[VERSIONS[0]], form.out)
    known = known_rows(form, settings.graph_rows, device)
    first, captured = replayed(called, "store, replayed", device)
    others = [(fixed, "store's fixed table, replayed"), (known, "torch embedding, replayed, known rows")]
    return [first, *(replayed(variant, name, device)[0] for variant, name in others), called, known], captured


def _swap(series: Series, live: LiveTable) -> None:
    """The version that is not served, from here on."""
    (other,) = {*VERSIONS} - {live.status.version}
    series.tag(TAG, other)
    status = live.refresh()
    if status.version != other:
        raise RuntimeError(f"version {other} is not served: {status.error or status}")


def _check_swapped(replays: Variant, batches: Sequence[Batch], version: int, journal: Journal) -> None:
    """Whether replays of what was captured before a swap are of the version that is served after it."""
    keys, wrong = len(batches[0].ids), [said for batch in batches if (said := replays.check(batch))]
    if wrong:
        journal.fail(f"{replays.name}, {keys} ids, after a swap: {wrong[0]}; so are {len(wrong)} of {len(batches)}")
    else:
        journal.write("swapped", keys=keys, version=version, graphs=len(batches), answers="the CPU's")
