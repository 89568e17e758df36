"""Lookups of rows of other dimensions."""

from __future__ import annotations

from benchmarks.gpu.cells import Bench
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.names import UNIFORM
from benchmarks.gpu.parts.grid import measure
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.tables import written

DTYPES = ("float32", "int8", "float16")


def run(settings: Settings, journal: Journal) -> None:
    """Every dimension and dtype."""
    wanted = [(dtype, dim, settings.dims_rows) for dtype in DTYPES for dim in settings.dims]
    forms = written(settings, journal, wanted)
    bench = Bench(settings, journal)
    for form in forms:
        measure(bench, journal, *form, settings.dims_keys, [(UNIFORM, 0.0)])
