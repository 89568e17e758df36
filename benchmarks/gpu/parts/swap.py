"""Lookups by one thread while another loads the next version, checks it and swaps it in."""

from __future__ import annotations

from dataclasses import replace

from benchmarks import store_swap
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.settings import Settings
from embedding_store import EmbeddingStore


def run(settings: Settings, journal: Journal) -> None:
    """Quantiles of a lookup's time, without and with a swap, for few and for many ids."""
    sizes = store_swap.Options(
        rows=settings.swap_rows,
        dim=settings.dim,
        swaps=settings.swaps,
        device=str(settings.device),
        settle=settings.settle,
    )
    series = store_swap.publish(EmbeddingStore(settings.tables), sizes)
    for keys in settings.swap_keys:
        figures = store_swap.measure(series, replace(sizes, batch=keys))
        without, during = figures["without_us"], figures["during_us"]
        ratios = {name: round(during[name] / without[name], 3) for name in without}
        journal.write("swap", **figures, ratios=ratios)
