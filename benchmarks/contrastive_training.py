"""Training speed of an upstream of kind `contrastive`: tables of ids of every kind, on one rank and on two.

    python -m benchmarks.contrastive_training --rows 1000000 10000000

The events are SYNTHETIC pairs of a user and an item, all positive, their ids uniform over as many as half the rows of a
table and spread over the whole int64 range. Each variant is trained in fresh processes through the one training loop,
by the sampled softmax over the items of all ranks' batches and items drawn uniformly, with batches of so many pairs a
rank. Pairs are those of all ranks, the median of a few runs in turn, without the first step.

Users and items have a table of `rows` each; of `hashed` ids each of the 8 sub-tables has so many, 8 times narrower: the
weights are as many, the numbers that the optimizer keeps 8 times as many.

Bytes a row: what the resident memory of all ranks grows by over the training, with tables, optimizer and the owners of
rows (which every rank has whole), less what it grows by with the fewest rows, over the rows that are more.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro

from benchmarks.common import print_record, resident
from benchmarks.ranks import Figures, in_rounds, on_ranks, threads_of, total
from recsys.config import ContrastiveConfig, LossConfig, TrainConfig
from recsys.data.hashing import splitmix64
from recsys.data.last_events import last_events
from recsys.data.negatives import UniformNegatives
from recsys.data.quarantine import NOTHING
from recsys.data.ranks import Ints
from recsys.data.schema import Feature, Label, Schema
from recsys.data.stream import EventStream
from recsys.data.survey import OWNERS, survey
from recsys.dates import DAY_MS
from recsys.models.id_tables import IdTables
from recsys.models.losses import DermTask
from recsys.positives import frequencies_of
from recsys.train.distributed import Environment, peak_memory
from recsys.train.trainer import fit

START_MS = 1_700_000_000_000
"""When the first event was."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    rows: tuple[int, ...] = (1_000_000, 10_000_000)
    """Rows of the table of users, and of that of items."""
    ids: tuple[str, ...] = ContrastiveConfig.IDS
    """How ids find their rows."""
    dim: int = 64
    """D of the vectors."""
    batch_size: int = 512
    """Pairs a rank and step."""
    uniform_negatives: int = 256
    """Items drawn beside those of the batches, a rank and step."""
    steps: int = 100
    """Of a run."""
    ranks: tuple[int, ...] = (1, 2)
    """Numbers of ranks."""
    cores: int = 2
    """Threads of all ranks together."""
    rounds: int = 3
    """Runs of each variant; the median is printed."""


def main(options: Options) -> None:
    """Print a line for each variant."""
    with events(options) as files:
        variants = {
            (ids, rows, ranks): partial(
                on_ranks, train, ranks, files[rows], ids, rows, options, threads=threads_of(ranks, options.cores)
            )
            for ids in options.ids
            for rows in options.rows
            for ranks in options.ranks
        }
        found = in_rounds(variants, options.rounds)
    fewest = min(options.rows)
    for (ids, rows, ranks), figures in found.items():
        config = ContrastiveConfig(dim=options.dim, ids=ids)
        used = {"of_a_row": 4 * (options.dim + config.parts)}
        if rows > fewest:
            grown = figures["resident_bytes"] - found[ids, fewest, ranks]["resident_bytes"]
            used["bytes_a_row"] = round(grown / (2 * (rows - fewest)), 1)
        sizes = {"rows": rows, "dim": options.dim, "batch_size": options.batch_size}
        sizes |= {"threads": threads_of(ranks, options.cores), "uniform_negatives": options.uniform_negatives}
        print_record("contrastive_training", {"ids": ids, "ranks": ranks, **sizes, **figures, **used})


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a rank trains."""

    task: DermTask
    stream: EventStream
    training: TrainConfig
    model: IdTables
    seen: Mapping[str, Ints]
    """Owner -> its ids."""
    newest: int
    """Time of the newest event, ms."""
    before: int
    """Bytes in memory, before there was a model."""

    def begin(self) -> None:
        """Give ids their rows."""
        self.model.vocabulary.admit(self.seen, self.newest)


def train(environment: Environment, file: Path, ids: str, rows: int, options: Options) -> Figures:
    """Train for some steps. A collective."""
    ready = prepare(environment, file, ids, rows, options)
    result = fit(ready.task, ready.stream, ready.training, environment, tasks=["click"], title=None, begun=ready.begin)
    gc.collect()
    return {
        "pairs_per_second": round(result.samples_per_second),
        "input_wait_fraction": round(result.input_wait_fraction, 3),
        "contrastive": result.metrics["loss/contrastive"],
        "without_row": ready.model.vocabulary.without_row(ready.seen),
        "resident_bytes": total(resident() - ready.before),
        "peak_mib": round(total(peak_memory()) / 2**20),
    }


def prepare(environment: Environment, file: Path, ids: str, rows: int, options: Options) -> Prepared:
    """The model, and this rank's batches of it."""
    network = ContrastiveConfig(dim=options.dim, ids=ids)
    schema = _schema(rows)
    loss = LossConfig(uniform_negatives=options.uniform_negatives, contrastive_label="click")
    training = TrainConfig(epochs=1, batch_size=options.batch_size, checkpoint_every=0, log_every=10**6)
    rank, found = environment.rank, survey([file], schema, ["click"])
    frequencies, seen = frequencies_of(found.positives), {owner: found.rows[owner].ids for owner in OWNERS}
    items = last_events([file], schema, "item", NOTHING)
    before = resident()
    torch.manual_seed(0)
    model = IdTables(schema, network, ["click"])
    resolve = partial(model.vocabulary.resolve, dropout=network.id_dropout, seed=training.seed)
    negatives = UniformNegatives(items, schema, options.uniform_negatives, resolve, seed=training.seed, rank=rank)
    stream = EventStream(
        [file],
        schema,
        batch_size=training.batch_size,
        rank=rank,
        world_size=environment.world_size,
        shuffle_batches=training.shuffle_batches,
        seed=training.seed,
        transform=negatives,
    )
    stream.steps_per_epoch = stream.total_steps = min(options.steps, stream.total_steps)
    task = DermTask(model, loss, ["click"], frequencies, negatives.items)
    return Prepared(
        task=task, stream=stream, training=training, model=model, seen=seen, newest=found.newest, before=before
    )


@contextmanager
def events(options: Options) -> Iterator[dict[int, Path]]:
    """Rows of a table -> a file of as many events as the most ranks need, in time order."""
    count = options.steps * options.batch_size * max(options.ranks)
    with tempfile.TemporaryDirectory() as folder:
        files = {rows: Path(folder, f"{rows}.parquet") for rows in options.rows}
        for rows, file in files.items():
            random = np.random.default_rng(0)
            owners = [_ids(random.integers(rows // 2, size=count)) for _ in ("user", "item")]
            times = START_MS + np.arange(count) * DAY_MS // count
            columns = {"timestamp": times, "user_id": owners[0], "item_id": owners[1]}
            pq.write_table(pa.table(columns | {"click": np.ones(count, np.int8)}), file, row_group_size=65_536)
        yield files


def _ids(numbers: np.ndarray) -> np.ndarray:
    return splitmix64(numbers.astype(np.uint64)).view(np.int64)


def _schema(rows: int) -> Schema:
    features = [Feature(name=f"{owner}_id", owner=owner, kind="id", rows=rows) for owner in ("user", "item")]
    return Schema(features=tuple(features), labels=(Label(name="click"),))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
