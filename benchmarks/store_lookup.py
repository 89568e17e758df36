"""Lookup on the CPU beside its peers: ids -> vectors, ids drawn uniformly, by Zipf's law, and missing.

    python -m benchmarks.store_lookup

Writes a float32 and an int8 snapshot of random vectors into a temporary folder and looks up batches of ids with

- this store, one thread and two, float32 and int8 -> float32;
- `torch.index_select` of the rows, already known, as it comes and into one buffer that is used again, as the store uses
  the memory of results that are gone: the roof, as it neither searches nor can miss;
- pandas: `Index.get_indexer`, then `take`; `torch.searchsorted` in the sorted ids, then `index_select`; a Python dict;
- FBGEMM's `IntNBitTableBatchedEmbeddingBagsCodegen` (float32 and int8 rows), known rows.

All in one process, in turn, medians. The peers' tables are plain memory; the store's are mapped files. Prints a line of
JSON, then ratios.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import tyro
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen
from torch import Tensor

from benchmarks.common import in_turn, print_record
from embedding_store import EmbeddingStore, Table

Lookup = Callable[[tuple[Tensor, Tensor]], Any]  # (ids, rows), int64 [N] each


@dataclass(frozen=True, kw_only=True)
class Options:
    """Sizes of the measurement."""

    rows: int = 2_000_000
    """Rows of the table."""
    dim: int = 128
    """D."""
    batch: int = 65_536
    """Ids a lookup."""
    batches: int = 20
    """Batches, drawn ahead."""
    rounds: int = 3
    """Times each batch is looked up by each variant."""


def publish(store: EmbeddingStore, dtype: str, ids: Tensor, vectors: Tensor) -> Table:
    """A snapshot of these rows, loaded and checked."""
    series = store.create(f"entities_{dtype}", dim=vectors.shape[1], dtype=dtype)
    with series.write(as_of=0, space="random-1") as writer:
        writer.append(ids, vectors)
    return series.latest().load(verify=True)


def peers(ids: Tensor, vectors: Tensor) -> dict[str, Lookup]:
    """The other ways of looking up, by name; all give float32 [N, D]."""
    index = pd.Index(ids.numpy())
    frame = vectors.numpy()
    order = ids.argsort()
    in_order, vectors_in_order = ids[order], vectors[order]
    by_id = {int(id): row for row, id in enumerate(ids.tolist())}
    fbgemm = {f"fbgemm {kind.value}, known rows": _fbgemm(vectors, kind) for kind in (SparseType.FP32, SparseType.INT8)}
    return {
        "index_select, known rows": lambda x: vectors.index_select(0, x[1]),
        "the same into one buffer": _index_select_into(vectors),
        "searchsorted + index_select": lambda x: vectors_in_order.index_select(0, torch.searchsorted(in_order, x[0])),
        "pandas get_indexer + take": lambda x: frame.take(index.get_indexer(x[0].numpy()), axis=0),
        "dict + index_select": lambda x: vectors.index_select(0, torch.tensor([by_id[id] for id in x[0].tolist()])),
        **fbgemm,
    }


def _index_select_into(vectors: Tensor) -> Lookup:
    buffer = torch.empty(0, vectors.shape[1])

    def look_up(batch: tuple[Tensor, Tensor]) -> Tensor:
        return torch.index_select(vectors, 0, batch[1], out=buffer.resize_(len(batch[1]), vectors.shape[1]))

    return look_up


def _fbgemm(vectors: Tensor, kind: SparseType) -> Lookup:
    module = IntNBitTableBatchedEmbeddingBagsCodegen(
        embedding_specs=[("entities", *vectors.shape, kind, EmbeddingLocation.HOST)],
        device="cpu",
        pooling_mode=PoolingMode.NONE,
        output_dtype=SparseType.FP32,
    )
    module.fill_random_weights()
    weights, scales = module.split_embedding_weights()[0]
    if kind == SparseType.FP32:
        weights.copy_(vectors.view(torch.uint8))
    rows = torch.int32

    def look_up(batch: tuple[Tensor, Tensor]) -> Tensor:
        known = batch[1].to(rows)
        return module(known, torch.arange(len(known) + 1, dtype=rows))

    assert scales is None or len(scales) == len(vectors)
    return look_up


def draw(kind: str, options: Options, generator: torch.Generator) -> list[Tensor]:
    """Rows of each batch, int64 [batch]: uniform, or Zipf 1.05 with the popular rows anywhere."""
    shape = (options.batches, options.batch)
    if kind == "uniform":
        return list(torch.randint(options.rows, shape, generator=generator))
    power = -0.05
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
    ranks = ((uniform * ((options.rows + 1.0) ** power - 1) + 1) ** (1 / power) - 1).long().clamp_(0, options.rows - 1)
    return list(torch.randperm(options.rows, generator=generator)[ranks])


def main(options: Options) -> None:
    """Measure the lookup beside its peers."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.from_numpy(np.random.default_rng(0).choice(2**62, options.rows, replace=False) * 2 - 2**62)
    vectors = torch.randn(options.rows, options.dim, generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        store = EmbeddingStore(Path(folder))
        table, quantised = (publish(store, dtype, ids, vectors) for dtype in ("float32", "int8"))
        ours: dict[str, Lookup] = {
            "store": lambda x: table.lookup(x[0]),
            "store int8": lambda x: quantised.lookup(x[0]),
            "store, 2 threads": lambda x: _with_threads(2, table, x[0]),
        }
        torch.set_num_threads(1)
        rates: dict[str, dict[str, float]] = {}
        for kind in ("uniform", "zipf"):
            batches = [(ids[rows], rows) for rows in draw(kind, options, generator)]
            rates[kind] = _rates({**ours, **peers(ids, vectors)}, batches, options)
        missing = [(ids[rows] + 1, rows) for rows in draw("uniform", options, generator)]  # ours are even
        rates["missing"] = _rates(ours, missing, options)
    print_record("store_lookup", {"rows": options.rows, "dim": options.dim, "batch": options.batch, "ids/s": rates})
    _print_ratios(rates)


def _with_threads(threads: int, table: Table, ids: Tensor) -> None:
    torch.set_num_threads(threads)
    table.lookup(ids)
    torch.set_num_threads(1)


def _rates(variants: dict[str, Lookup], batches: list[tuple[Tensor, Tensor]], options: Options) -> dict[str, float]:
    seconds = in_turn(variants, batches, rounds=options.rounds)
    return {name: round(options.batch / value) for name, value in seconds.items()}


def _print_ratios(rates: dict[str, dict[str, float]]) -> None:
    for kind, found in rates.items():
        print(f"\n{kind} ids, ids/s, and the store's float32 rate over it, one thread unless said:")
        for name, rate in found.items():
            print(f"  {name:32} {rate:>12,.0f}   {found['store'] / rate:6.2f}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
