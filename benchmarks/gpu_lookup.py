"""Lookup on a GPU: hash and gather beside a gather of known rows, small and large batches, and a table in two tiers.

    python -m benchmarks.gpu_lookup --out gpu_lookup.json

Writes a float32 and an int8 snapshot of random vectors into a temporary folder (11 GB by default), loads them to the
GPU and looks up ids drawn uniformly and by Zipf's law (1.05), in turn with

- the roof: a gather of the same rows, already known, with the same bytes read and written and no hash. For float32 the
  faster of `torch.index_select` and a compiled `table[rows]`; for int8 -> float16 a compiled gather that dequantises;
- FBGEMM's `IntNBitTableBatchedEmbeddingBagsCodegen` on known rows, in GPU memory, and through its cache of managed
  memory (UVM) beside the tiered table, which keeps 10 % of the rows in GPU memory.

Each call is timed on the GPU (between two events) and by the clock of a caller who waits for it; p50 and p99 over all
batches and rounds. Prints a table and the ratios to aim at; `--out` also writes them as JSON. What could not be run,
say because FBGEMM is not installed, is named.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table as Printed
from torch import Tensor

from embedding_store import EmbeddingStore, Snapshot, Table, TieredTable

APPEND_ROWS = 1 << 20
ID_STEP = 0x9E3779B97F4A7C15 - 2**64  # odd: multiples of it are distinct, and look like nothing
ZIPF = "zipf 1.05"
AHEAD_CYCLES = 1_000_000  # of the GPU's clock: what the host needs to prepare any of the calls, generously


@dataclass(frozen=True, kw_only=True)
class Options:
    """Sizes of the measurement."""

    rows: int = 1 << 24
    """Rows of the table."""
    dim: int = 128
    """D."""
    keys: tuple[int, ...] = (1_000, 10_000, 1_000_000)
    """Ids a lookup."""
    batches: int = 32
    """Batches, drawn ahead, so that one does not find what the one before it left in the cache."""
    rounds: int = 5
    """Times each batch is looked up."""
    hot: float = 0.1
    """Share of the rows that the tiered table keeps in GPU memory."""
    out: Path | None = None
    """A JSON file to write."""

    def __post_init__(self) -> None:
        least = min(self.rows, self.dim, self.batches, self.rounds, *self.keys)
        if least < 1:
            raise ValueError(f"rows, dim, keys, batches and rounds must be at least 1, one is {least}")
        if not 0 < self.hot < 1:
            raise ValueError(f"hot is {self.hot}; give a share of the rows between 0 and 1")


@dataclass(frozen=True)
class Batch:
    """What to look up, in the forms that the variants take."""

    rows: Tensor
    """int64 [N]: row numbers."""
    ids: Tensor
    """int64 [N]: their ids."""
    rows32: Tensor
    """int32 [N], for FBGEMM."""
    offsets32: Tensor
    """int32 [N + 1], for FBGEMM: bags of one."""

    @staticmethod
    def of(rows: Tensor) -> Batch:
        """The batch of these row numbers, int64 [N]."""
        offsets = torch.arange(len(rows) + 1, dtype=torch.int32, device=rows.device)
        return Batch(rows, rows * ID_STEP, rows.to(torch.int32), offsets)


Lookup = Callable[[Batch], Any]


@dataclass(frozen=True)
class Timing:
    """One way of looking up, for one distribution and number of ids. Times in microseconds."""

    what: str
    ids: str
    keys: int
    gpu_p50: float
    gpu_p99: float
    wall_p50: float
    wall_p99: float

    @property
    def rows_per_second(self) -> float:
        """By the GPU's median."""
        return self.keys / self.gpu_p50 * 1e6


def publish(store: EmbeddingStore, dtype: str, options: Options) -> Snapshot:
    """A snapshot of random vectors; the row with number i has id i * ID_STEP."""
    series = store.create(f"entities_{dtype}", dim=options.dim, dtype=dtype)
    generator = torch.Generator(device="cuda").manual_seed(0)
    with series.write(as_of=0, space="random-1") as writer:
        for first in range(0, options.rows, APPEND_ROWS):
            rows = torch.arange(first, min(first + APPEND_ROWS, options.rows))
            vectors = torch.randn(len(rows), options.dim, device="cuda", generator=generator)
            writer.append(rows * ID_STEP, vectors.cpu())
    return series.latest()


def draw(kind: str, keys: int, options: Options, device: str = "cuda") -> list[Batch]:
    """Batches of `keys` ids: uniform, or Zipf 1.05, where row 0 is the most popular one."""
    generator = torch.Generator(device).manual_seed(keys)
    shape = (options.batches, keys)
    if kind == "uniform":
        return [Batch.of(rows) for rows in torch.randint(options.rows, shape, generator=generator, device=device)]
    power = -0.05
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64, device=device)
    ranks = ((uniform * ((options.rows + 1.0) ** power - 1) + 1) ** (1 / power) - 1).long()
    return [Batch.of(rows) for rows in ranks.clamp_(0, options.rows - 1)]


def measure(
    variants: Mapping[str, Lookup],
    batches: Sequence[Batch],
    kind: str,
    rounds: int,
) -> list[Timing]:
    """Time each variant on each batch, in turn, after one round that is not counted."""
    on_gpu: dict[str, list[float]] = {name: [] for name in variants}
    waited: dict[str, list[float]] = {name: [] for name in variants}
    for counted in [False] + [True] * rounds:
        for batch in batches:
            for name, function in variants.items():
                microseconds = _gpu_time(function, batch), _wall_time(function, batch)
                if counted:
                    on_gpu[name].append(microseconds[0])
                    waited[name].append(microseconds[1])
    keys = len(batches[0].ids)
    return [Timing(name, kind, keys, *_quantiles(on_gpu[name]), *_quantiles(waited[name])) for name in variants]


def _gpu_time(function: Lookup, batch: Batch) -> float:
    """Microseconds between two events, with the host so far ahead that the GPU never waits for it."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(AHEAD_CYCLES)
    start.record()
    function(batch)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3


def _wall_time(function: Lookup, batch: Batch) -> float:
    """Microseconds until the result is there, by the clock of who waits for it."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    function(batch)
    torch.cuda.synchronize()
    return (time.perf_counter() - started) * 1e6


def float32_variants(table: Table, options: Options, left_out: dict[str, str]) -> dict[str, Lookup]:
    """Lookups of float32 rows, by name; the roofs' names begin with "roof"."""
    rows, dim = options.rows, options.dim
    start = int(table.layout[8])
    weights = table.storage[start : start + rows * dim * 4].view(torch.float32).view(rows, dim)
    variants: dict[str, Lookup] = {
        "store float32": lambda x: table.lookup(x.ids),
        "roof float32: index_select": lambda x: weights.index_select(0, x.rows),
    }
    _add(variants, left_out, "roof float32: compiled gather", lambda: _compiled(lambda rows: weights[rows]))
    _add(variants, left_out, "fbgemm float32, known rows", lambda: fbgemm(options, "FP32", "FP32", "DEVICE"))
    return variants


def int8_variants(table: Table, options: Options, left_out: dict[str, str]) -> dict[str, Lookup]:
    """Lookups of int8 rows as float16, by name."""
    rows, dim = options.rows, options.dim
    start, pairs_start = table.layout[8:10].tolist()
    values = table.storage[start : start + rows * dim].view(rows, dim)
    pairs = table.storage[pairs_start : pairs_start + rows * 8].view(torch.float32).view(rows, 2)

    def gather(x: Tensor) -> Tensor:
        return (values[x].float() * pairs[x, :1] + pairs[x, 1:]).to(torch.float16)

    variants: dict[str, Lookup] = {"store int8 -> float16": lambda x: table.lookup(x.ids, torch.float16)}
    _add(variants, left_out, "roof int8 -> float16: compiled gather", lambda: _compiled(gather))
    _add(variants, left_out, "fbgemm int8 -> float16, known rows", lambda: fbgemm(options, "INT8", "FP16", "DEVICE"))
    return variants


def fbgemm(options: Options, stored: str, given: str, location: str) -> Lookup:
    """FBGEMM's inference module with random weights. Raises ImportError without FBGEMM."""
    from fbgemm_gpu.split_embedding_configs import SparseType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen

    module = IntNBitTableBatchedEmbeddingBagsCodegen(
        embedding_specs=[("t", options.rows, options.dim, SparseType[stored], EmbeddingLocation[location])],
        device="cuda",
        pooling_mode=PoolingMode.NONE,
        output_dtype=SparseType[given],
        cache_load_factor=options.hot,
    )
    module.fill_random_weights()
    return lambda x: module(x.rows32, x.offsets32)


def measure_loaded(snapshot: Snapshot, options: Options, left_out: dict[str, str]) -> tuple[list[Timing], float]:
    """Timings of a table all in GPU memory, and how fast it was loaded, GB/s."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    table = snapshot.load("cuda")
    torch.cuda.synchronize()
    rate = len(table.storage) / (time.perf_counter() - started) / 1e9
    make = float32_variants if snapshot.dtype == "float32" else int8_variants
    variants = make(table, options, left_out)
    timings = []
    for kind in ("uniform", ZIPF):
        for keys in options.keys:
            timings += measure(variants, draw(kind, keys, options), kind, options.rounds)
    return timings, rate


def measure_tiered(snapshot: Snapshot, options: Options, left_out: dict[str, str]) -> tuple[list[Timing], float]:
    """Timings of the float32 table in two tiers and of FBGEMM's cache of as many rows, and the tiers' hit rate."""
    hot_rows = int(options.hot * options.rows)
    index_bytes = 64 * int(snapshot.load().layout[2])
    budget = index_bytes + hot_rows * options.dim * 4 + 1024
    table = snapshot.load("cuda", gpu_bytes=budget, hot_ids=torch.arange(hot_rows) * ID_STEP)
    assert isinstance(table, TieredTable)
    variants: dict[str, Lookup] = {f"store float32, {options.hot:.0%} hot": lambda x: table.lookup(x.ids)}
    name = f"fbgemm float32, UVM with a cache of {options.hot:.0%}"
    _add(variants, left_out, name, lambda: fbgemm(options, "FP32", "FP32", "MANAGED_CACHING"))
    timings = []
    for keys in options.keys:
        timings += measure(variants, draw(ZIPF, keys, options), ZIPF, options.rounds)
    return timings, table.hits().rate


def main(options: Options) -> None:
    """Measure the lookup on a GPU."""
    if not torch.cuda.is_available():
        sys.exit("benchmarks.gpu_lookup: needs a CUDA GPU and a torch built for it; this torch sees none")
    timings: list[Timing] = []
    left_out: dict[str, str] = {}
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = EmbeddingStore(Path(folder))
        for dtype in ("float32", "int8"):
            snapshot = publish(store, dtype, options)
            measured, figures[f"load {dtype}, GB/s"] = measure_loaded(snapshot, options, left_out)
            timings += measured
            _free()
            if dtype == "float32":
                measured, figures["tiered, hit rate"] = measure_tiered(snapshot, options, left_out)
                timings += measured
                _free()
    figures |= ratios(timings)
    report(timings, figures, left_out, options)


def ratios(timings: Sequence[Timing]) -> dict[str, float]:
    """How near the store comes to the roof, and to FBGEMM, by the GPU's medians: 1 is as fast."""
    found = {}
    for mine in timings:
        if not mine.what.startswith("store "):
            continue
        same = [t for t in timings if (t.ids, t.keys) == (mine.ids, mine.keys)]
        tiered = mine.what.endswith("hot")
        dtype = mine.what.removeprefix("store ").partition(",")[0]
        for peer in ("roof", "fbgemm"):
            peers = [t for t in same if t.what.startswith(f"{peer} {dtype}") and ("UVM" in t.what) == tiered]
            if peers:
                best = min(t.gpu_p50 for t in peers)
                found[f"{mine.what} / {peer}, {mine.ids}, {mine.keys} keys"] = best / mine.gpu_p50
    return found


def report(
    timings: Sequence[Timing], figures: Mapping[str, float], left_out: Mapping[str, str], options: Options
) -> None:
    """Print everything; write it as JSON where asked to."""
    console = Console(width=max(Console().width, 130))  # a row a line, in a log file as well
    columns = ("what", "ids", "keys", "GPU p50 us", "p99", "wall p50 us", "p99", "M rows/s")
    printed = Printed(*columns, title=f"{torch.cuda.get_device_name()}, {options.rows:,} rows of {options.dim}")
    for t in timings:
        times = (f"{x:,.1f}" for x in (t.gpu_p50, t.gpu_p99, t.wall_p50, t.wall_p99))
        printed.add_row(t.what, t.ids, f"{t.keys:,}", *times, f"{t.rows_per_second / 1e6:,.1f}")
    console.print(printed)
    for name, value in figures.items():
        console.print(f"{name}: {value:.3f}")
    for name, reason in left_out.items():
        console.print(f"left out: {name}: {reason}")
    if options.out is not None:
        record = {
            "benchmark": "gpu_lookup",
            "device": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "date": datetime.now(UTC).date().isoformat(),
            "options": asdict(options) | {"out": str(options.out)},
            "timings": [asdict(t) for t in timings],
            "figures": dict(figures),
            "left_out": dict(left_out),
        }
        options.out.write_text(json.dumps(record, indent=2))


def _free() -> None:
    """Give back what the last measurement had on the GPU, compiled functions' tables included."""
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()


def _compiled(gather: Callable[[Tensor], Tensor]) -> Lookup:
    function = torch.compile(gather, dynamic=True)
    return lambda x: function(x.rows)


def _add(variants: dict[str, Lookup], left_out: dict[str, str], name: str, make: Callable[[], Lookup]) -> None:
    try:
        function = make()
        function(Batch.of(torch.arange(8, device="cuda")))
        torch.cuda.synchronize()
        variants[name] = function
    except Exception as error:  # whatever keeps a peer from running is reported, not fatal
        left_out[name] = f"{type(error).__name__}: {error}".splitlines()[0]


def _quantiles(values: list[float]) -> tuple[float, float]:
    p50, p99 = (
        torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.5, 0.99], dtype=torch.float64)).tolist()
    )
    return p50, p99


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
