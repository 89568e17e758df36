"""`recsys embed` of new items into a large store: wall clock of the command, imports included.

    python -m benchmarks.embed_rows

Makes a small market (SYNTHETIC), an untrained checkpoint of its upstream `ctr` (speed does not depend on weights) and a
store of 1 M users and 1 M items with random vectors, as if published. Then the command embeds 1,000 new items, again
and again, each time others. Beside it the import of what it needs, in a process of its own, and the processor time.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro
from torch import nn

from benchmarks.common import print_record
from embedding_store import EmbeddingStore
from recsys.atomic import write_json
from recsys.config import RefreshConfig, UpstreamConfig
from recsys.data.files import find_files
from recsys.data.schema import Schema, entity_schema
from recsys.data.synthetic import prepare_synthetic
from recsys.folders import store_folder, upstream_folder
from recsys.models.derm import DERM
from recsys.recipes import synthetic
from recsys.refresh.aggregator import ACTIVITY_DIM, activity_name
from recsys.refresh.publish import Publication
from recsys.refresh.records import PUBLISHED
from recsys.source import upstream_schema
from recsys.train import checkpoint
from recsys.train.distributed import process_group
from recsys.train.optimizer import build_optimizer
from recsys.train.sharding import shard
from recsys.train.tables import draw_tables

COMMAND = [sys.executable, "-m", "recsys.cli", "embed", "--owner", "item"]
IMPORT = [sys.executable, "-c", "import recsys.refresh.on_demand"]
CHUNK = 65_536


@dataclass(frozen=True, kw_only=True)
class Options:
    """Sizes of the measurement."""

    entities: int = 1_000_000
    """Users of the store, and as many items."""
    rows: int = 1_000
    """New items of a command."""
    repeats: int = 5
    """Commands, after one that is not counted."""


def main(options: Options) -> None:
    """Measure the command."""
    upstream = next(each for each in synthetic().upstreams if each.name == "ctr")
    upstream = replace(upstream, source=replace(upstream.source, events=upstream.source.events[:1]))
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "data", Path(folder) / "out"
        prepare_synthetic(data, users=2_000, items=2_000, days=1, upstream_days=1, events_per_day=5_000)
        schema = upstream_schema(upstream, data)
        save_model(upstream, schema, out)
        publish(upstream, options.entities, out)
        config = Path(folder) / "refresh.toml"
        RefreshConfig(upstream=upstream).save(config)
        commands, imports = [], []
        for number in range(1 + options.repeats):
            rows = write_rows(upstream, schema, data, options.rows, number)
            place = ["--config", config, "--rows", rows, "--data", data, "--out", out]
            commands.append(timed([*COMMAND, *map(str, place)]))
            imports.append(timed(IMPORT))
    seconds, processor = (statistics.median(column) for column in zip(*commands[1:], strict=True))
    importing, of_import = (statistics.median(column) for column in zip(*imports[1:], strict=True))
    figures = {**asdict(options), "seconds": seconds, "processor_seconds": processor}
    print_record("embed_rows", figures | {"import_seconds": importing, "import_processor_seconds": of_import})
    print(
        f"{options.rows:,} new items into {options.entities:,}: {seconds:.2f} s (target 5), {processor:.2f} s of the "
        f"processor; of these the imports {importing:.2f} s, {of_import:.2f} s"
    )


def save_model(upstream: UpstreamConfig, schema: Schema, out: Path) -> None:
    """An untrained model's checkpoint."""
    with process_group(alone=True) as environment:
        torch.manual_seed(0)
        holder = nn.ModuleDict({"model": DERM(schema, upstream.model, [label.name for label in schema.labels])})
        model = draw_tables(shard(holder, environment, sparse_lr=0.1), 0)
        optimizer = build_optimizer(model, dense_lr=0.1, sparse_lr=0.1)
        folder = upstream_folder(out, upstream.name) / "checkpoints"
        checkpoint.save(folder, 1, model=model, optimizer=optimizer, metrics={}, progress={}, environment=environment)


def publish(upstream: UpstreamConfig, entities: int, out: Path) -> None:
    """Random vectors of so many users and items, as the first publication leaves them."""
    store, dim, as_of = EmbeddingStore(store_folder(out)), upstream.model.vector_dim, 1_000_000
    names = [f"{owner}_{upstream.name}" for owner in ("user", "item")]
    for name in names:
        activity = store.create(activity_name(name), dim=ACTIVITY_DIM, dtype="float32")
        vectors = store.create(name, dim=dim, dtype="float16")
        with activity.write(as_of=as_of, space="ctr-1") as days, vectors.write(as_of=as_of, space="ctr-1") as writer:
            for start in range(0, entities, CHUNK):
                ids = torch.arange(start, min(entities, start + CHUNK)) * 7_919 - 2**40
                writer.append(ids, nn.functional.normalize(torch.randn(len(ids), dim), dim=1))
                days.append(ids, torch.tensor([[0.0, 1.0, 1.0]]).repeat(len(ids), 1))
        vectors.tag("prod", 1)
    versions = dict.fromkeys(names, 1)
    first = Publication(key={}, as_of=as_of, space="ctr-1", versions=versions, tags=dict.fromkeys(names), done=True)
    write_json(upstream_folder(out, upstream.name) / PUBLISHED, asdict(first))


def write_rows(upstream: UpstreamConfig, schema: Schema, data: Path, rows: int, number: int) -> Path:
    """A file of new items with the features of old ones."""
    source = pq.read_table(find_files(data, upstream.source.events)[0])
    narrow = entity_schema(schema, "item")
    names = [name for name in narrow.columns() if name != schema.user_id]
    table = source.select(names).take(pa.array(np.arange(rows) % len(source)))
    ids = pa.array(10**12 + number * rows + np.arange(rows))
    path = data / f"new-{number}.parquet"
    pq.write_table(table.set_column(names.index(schema.item_id), schema.item_id, ids), path)
    return path


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds that a command takes, and those of the processor."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
