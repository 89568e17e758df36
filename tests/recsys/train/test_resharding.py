"""A training that moves between numbers of ranks and plans: the losses of one rank, and every event of a pass once."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.config import TableConfig, TrainConfig
from recsys.data.batch import Batch
from recsys.data.schema import Feature, Label, Schema
from recsys.data.stream import EventStream
from recsys.train import checkpoint
from recsys.train.checkpoint import CheckpointError
from recsys.train.distributed import Environment, current_environment
from recsys.train.interrupt import Interrupted
from recsys.train.optimizer import build_optimizer
from recsys.train.running_metrics import Metrics
from recsys.train.sharding import shard
from recsys.train.tables import draw_tables
from recsys.train.trainer import fit
from tests.distributed import run_ranks
from tests.recsys.train.toy import TASKS, ListStream, make_batch, make_task

ROWS, BATCH = 192, 4
LEGS = [(4, 6), (2, 9), (3, None)]
"""Ranks, and the step after which they are stopped. All batches of a step are of the same size: see the sums below."""
PLANS = {
    4: {"t_user": "row_wise", "t_item": "table_wise", "t_seen": "row_wise"},
    2: {"t_user": "table_wise", "t_item": "data_parallel", "t_seen": "table_wise"},
    3: {"t_user": "row_wise", "t_item": "row_wise", "t_seen": "row_wise"},
}
SCHEMA = Schema(features=(Feature(name="user_id", owner="user", kind="id", rows=10),), labels=(Label(name="click"),))


def pool() -> Batch:
    return make_batch(ROWS, torch.Generator().manual_seed(3), all_valid=True)


def rows_of(whole: Batch, rows: torch.Tensor, like: Batch | None = None) -> Batch:
    """Some rows of a batch, by number."""
    parts = [torch.split(x.values(), x.lengths().tolist()) for x in whole.sparse.to_dict().values()]
    chosen = [part[row] for part in parts for row in rows.tolist()]
    batch = Batch(
        dense={owner: values[rows] for owner, values in whole.dense.items()},
        sparse=KeyedJaggedTensor(
            keys=whole.sparse.keys(),
            values=torch.cat(chosen),
            lengths=torch.tensor([len(each) for each in chosen], dtype=torch.int32),
        ),
        labels=whole.labels[rows],
        label_mask=whole.label_mask[rows],
        user_ids=whole.user_ids[rows],
        item_ids=rows,
        timestamps=whole.timestamps[rows],
    )
    batch.position, batch.epoch = (like.position, like.epoch) if like is not None else (0, 0)
    return batch


def recorded(task: torch.nn.Module, found: list[tuple[int, list[int]]]) -> torch.nn.Module:
    """Note pass and rows of each batch that the task is trained on."""

    def note(module: torch.nn.Module, arguments: tuple) -> None:
        found.append((arguments[2].epoch, arguments[2].item_ids.tolist()))

    task.over.register_forward_pre_hook(note)
    return task


def config(ranks: int, **others: Any) -> TrainConfig:
    tables = {name: TableConfig(sharding=kind) for name, kind in PLANS.get(ranks, {}).items()}
    rates = {"sparse_lr": 0.1, "dense_lr": 0.01}
    return TrainConfig(batch_size=BATCH, log_every=1, checkpoint_every=4, tables=tables, epochs=2, **rates, **others)


def leg(folder: Path, stop: int | None) -> list[tuple[int, list[int]]]:
    """Train on all ranks until that step; pass and rows of each batch of this rank."""
    environment, found = current_environment(), []
    settings, options = config(environment.world_size), {"tasks": TASKS, "out": folder / "run", "title": None}
    whole = pool()
    stream = EventStream(
        [folder / "events.parquet"],
        SCHEMA,
        batch_size=BATCH,
        rank=environment.rank,
        world_size=environment.world_size,
        shuffle_batches=4,
        seed=5,
        epochs=2,
        transform=lambda batch: rows_of(whole, batch.item_ids, batch),
    )
    update = Metrics.update

    def stopping(self: Metrics, step: int, *arguments: Any) -> None:
        update(self, step, *arguments)
        if step == stop and environment.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with patch.object(Metrics, "update", stopping):
        try:
            fit(recorded(make_task(dropout=0.0), found), stream, settings, environment, **options)
        except Interrupted:
            assert stop is not None
    return found


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_four_ranks_then_two_then_three(tmp_path: Path, environment: Environment) -> None:
    ids = list(range(ROWS))
    times = [1_700_000_000_000 + row for row in ids]
    table = {"timestamp": times, "user_id": ids, "item_id": ids, "click": [0] * ROWS}
    pq.write_table(pa.table(table), tmp_path / "events.parquet", row_group_size=10)
    steps: list[tuple[int, list[int]]] = []
    for ranks, stop in LEGS:
        for together in zip(*run_ranks(leg, ranks, tmp_path, stop), strict=True):
            assert len({epoch for epoch, _ in together}) == 1
            assert {len(rows) for _, rows in together} == {BATCH}
            steps.append((together[0][0], [row for _, rows in together for row in rows]))
    for turn in range(2):
        assert Counter(row for epoch, rows in steps if epoch == turn for row in rows) == Counter(ids)
    whole = pool()
    alone = ListStream([rows_of(whole, torch.tensor(rows)) for _, rows in steps])
    options = {"tasks": TASKS, "out": tmp_path / "alone", "title": None}
    fit(make_task(dropout=0.0), alone, config(1), environment, **options)
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "alone"), rel=1e-4)


def save(folder: Path, tables: dict[str, TableConfig]) -> None:
    environment = current_environment()
    model = draw_tables(shard(make_task(), environment, sparse_lr=0.1, tables=tables), 0)
    optimizer = build_optimizer(model, dense_lr=0.01, sparse_lr=0.1)
    checkpoint.save(folder, 1, model=model, optimizer=optimizer, metrics={}, progress={}, environment=environment)


def restored(folder: Path, tables: dict[str, TableConfig]) -> str:
    """What is said of a checkpoint that these tables cannot go on from; empty: they do."""
    environment = current_environment()
    model = shard(make_task(), environment, sparse_lr=0.1, tables=tables)
    optimizer = build_optimizer(model, dense_lr=0.01, sparse_lr=0.1)
    try:
        checkpoint.restore(folder / "step-00000001", model=model, optimizer=optimizer, environment=environment)
    except CheckpointError as error:
        return str(error)
    return ""


def test_column_shards_move_between_ranks_but_to_no_other_columns(tmp_path: Path) -> None:
    halves = {"t_item": TableConfig(sharding="column_wise", columns=4)}
    run_ranks(save, 2, tmp_path, halves)
    assert run_ranks(restored, 2, tmp_path, halves) == ["", ""]
    for tables in ({"t_item": TableConfig(sharding="row_wise")}, {}):
        for told in run_ranks(restored, 2, tmp_path, tables):
            assert told == (
                f"{tmp_path}/step-00000001: table 't_item' was trained in 2 shards of columns, which have momentum1 of "
                "their own, and has one piece or shards of rows now: give training.tables.t_item the sharding and "
                "columns it was trained with"
            )
