"""Scoring with a bundle: rows a second beside the bare forward, and the latency of a request.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.bundle

Trains a ranker for a pass on a small market (SYNTHETIC) with a store of random vectors, and leaves it as a bundle; then

- `recsys score` of the market's events, repeated, from Parquet to Parquet in this process; in turn with it the exported
  program alone on batches that were prepared before: `ratio` is one speed over the other, medians;
- a request of one user and 500 items through `Bundle.predict`, Arrow table in, probabilities out.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro

from benchmarks.common import in_turn, print_record
from embedding_store import EmbeddingStore
from recsys.bundle import Bundle, load_bundle
from recsys.bundle.score import BATCH_ROWS, score_files
from recsys.bundle.write import train_bundle
from recsys.config import ArmConfig, RankerConfig
from recsys.data.convert import to_batch
from recsys.data.files import find_files
from recsys.data.synthetic import prepare_synthetic
from recsys.dates import DAY_MS
from recsys.folders import bundle_folder
from recsys.recipes import synthetic


@dataclass(frozen=True, kw_only=True)
class Options:
    """Sizes of the measurement."""

    rows: int = 500_000
    """Rows that are scored."""
    dim: int = 64
    """D of both series."""
    entities: int = 1_000_000
    """Vectors of each series; the market's own users and items are among them."""
    items: int = 500
    """Of a request."""
    requests: int = 500
    """After fifty that do not count."""
    rounds: int = 5
    """Times that the rows are scored."""
    compiled: bool = False
    """Compile the program with AOTInductor."""


def main(options: Options) -> None:
    """Measure."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, store, out = folder / "data", folder / "store", folder / "out"
        prepare_synthetic(data, users=2_500, items=5_000, events_per_day=5_000)
        publish(data, store, options)
        train_bundle(job(), "both", data, out, str(store), compiled=options.compiled)
        bundle = load_bundle(bundle_folder(out))
        rows = many_rows(data, options.rows)
        figures = {
            **scored(bundle, bundle_folder(out), rows, folder, options.rounds),
            **requested(bundle, rows, options),
        }
    print_record("bundle", {"rows": options.rows, "compiled": options.compiled, **figures})


def job() -> RankerConfig:
    """The market's ranker, for one pass."""
    rankers = synthetic().rankers
    arm = ArmConfig(name="both", series=("user_ctr", "item_ctr"))
    settings = {field.name: getattr(rankers, field.name) for field in fields(rankers)}
    settings["training"] = replace(rankers.training, epochs=1)
    return RankerConfig(**settings, name="bench", arms=(arm,))


def publish(data: Path, store: Path, options: Options, *, versions: int = 1) -> None:
    """Random vectors of the market's users and items, and of many others, anew each day up to the last upstream one."""
    generator = torch.Generator().manual_seed(0)
    for owner in ("user", "item"):
        rows = pq.ParquetFile(data / f"market/{owner}s/part-0.parquet").read(["timestamp", f"{owner}_id"])
        ids = torch.from_numpy(rows[f"{owner}_id"].to_numpy().copy())
        ids = torch.cat([ids, torch.arange(options.entities - len(ids)) + 10**12])
        series = EmbeddingStore(store).create(f"{owner}_ctr", dim=options.dim)
        for before in reversed(range(versions)):
            with series.write(as_of=rows["timestamp"][0].as_py() - before * DAY_MS, space="ctr-1") as writer:
                for part in ids.split(65_536):
                    writer.append(part, torch.randn(len(part), options.dim, generator=generator))


def many_rows(data: Path, rows: int) -> pa.Table:
    """Events of the last days, again and again."""
    table = pa.concat_tables(pq.ParquetFile(path).read() for path in find_files(data, job().test))
    return pa.concat_tables([table] * -(-rows // len(table))).slice(0, rows)


def scored(bundle: Bundle, source: Path, rows: pa.Table, folder: Path, rounds: int) -> dict[str, float]:
    """Rows a second of `recsys score`, and of the program alone on the same rows, in turn."""
    (folder / "in").mkdir()
    pq.write_table(rows, folder / "in/rows.parquet", row_group_size=131_072)
    files = [folder / "in/rows.parquet"]
    prepared = [
        bundle.prepare(to_batch(rows.slice(first, BATCH_ROWS), bundle.schema))
        for first in range(0, len(rows), BATCH_ROWS)
    ]

    def forward(_: int) -> None:
        for batch in prepared:
            bundle.run(batch)

    def score(number: int) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            score_files(bundle, source, files, folder / "in", Path(out))

    seconds = in_turn({"score": score, "forward": forward}, range(rounds))
    speeds = {f"{name}_rows_per_s": round(len(rows) / each) for name, each in seconds.items()}
    return {**speeds, "ratio": round(seconds["forward"] / seconds["score"], 3)}


def requested(bundle: Bundle, rows: pa.Table, options: Options) -> dict[str, float]:
    """Milliseconds of a request of one user and many items."""
    seconds, generator = list[float](), np.random.default_rng(0)
    for _ in range(50 + options.requests):
        request = request_of(rows, options.items, generator)
        start = time.perf_counter()
        bundle.predict(request)
        seconds.append(time.perf_counter() - start)
    p50, p99 = np.percentile(seconds[50:], [50, 99]) * 1000
    return {"request_items": options.items, "request_p50_ms": round(p50, 2), "request_p99_ms": round(p99, 2)}


def request_of(rows: pa.Table, items: int, generator: np.random.Generator) -> pa.Table:
    """One user, drawn at random, and many items."""
    first = int(generator.integers(0, len(rows) - items))
    request, user = rows.slice(first, items).combine_chunks(), rows.slice(first, 1)
    for name in rows.column_names:
        if name.startswith("user") or name in ("country", "age_bucket"):
            column = pa.concat_arrays([user[name].combine_chunks()] * items)
            request = request.set_column(request.schema.get_field_index(name), name, column)
    return request


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
