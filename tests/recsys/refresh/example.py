"""A tiny log with entity rows, a config that reads it, and checkpoints of untrained models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from recsys.config import ModelConfig, RankerSettings, RefreshSettings, SourceConfig, StudyConfig, UpstreamConfig
from recsys.data.schema import Feature, Label, Schema
from recsys.folders import upstream_folder
from recsys.models.derm import DERM
from recsys.models.losses import DermTask, ItemFrequencies
from recsys.train import checkpoint
from recsys.train.distributed import Environment
from recsys.train.optimizer import build_optimizer
from recsys.train.sharding import shard
from recsys.train.tables import draw_tables

SCHEMA = Schema(
    features=(
        Feature(name="user_id", owner="user", kind="id", rows=50),
        Feature(name="seen", owner="user", kind="sequence", rows=30, max_length=4, time="seen_time"),
        Feature(name="age", owner="user", kind="dense"),
        Feature(name="item_id", owner="item", kind="id", rows=30),
        Feature(name="tags", owner="item", kind="ids", rows=9),
        Feature(name="hour", owner="context", kind="id", rows=24),
    ),
    labels=(Label(name="click"),),
)
UNTIMED = replace(SCHEMA, features=tuple(replace(feature, time="") for feature in SCHEMA.features), timestamp="")
"""Of the same log without times."""
MODEL = ModelConfig(token_dim=8, layers=(("mlp",),), tokens=2, out_tokens=2, out_dim=4)
SOURCE = SourceConfig(schema="schema.toml", events=("events/*.parquet",), users=("users/*.parquet",))
CONFIG = StudyConfig(
    name="tiny",
    upstreams=(UpstreamConfig(name="ctr", source=SOURCE, model=MODEL),),
    refresh=RefreshSettings(dtype="float32"),
    rankers=RankerSettings(
        schema="schema.toml", train=("events/*",), validation=("x",), test=("y",), tasks={"ctr": "click"}
    ),
)
REFRESH = CONFIG.refresh_of(CONFIG.upstreams[0])
LAST = 1_000_000
"""Time of the newest row."""


def events(rows: int, *, users: int = 20, items: int = 9, seed: int = 0) -> pa.Table:
    """`rows` random events of `users` users (ids from -10 on) and `items` items, in order of time, all before LAST."""
    rng = np.random.default_rng(seed)
    time = np.sort(rng.integers(1000, LAST, rows))
    return pa.table(
        {
            "timestamp": time,
            "item_id": rng.integers(0, items, rows) * 3**30,
            "tags": lists(rng, rows, 9),
            "hour": rng.integers(0, 24, rows),
            "click": rng.integers(0, 2, rows),
            **_user_columns(rng, rng.integers(0, users, rows) - 10),
        }
    )


def user_rows(ids: list[int], time: int = LAST, seed: int = 1) -> pa.Table:
    """One row for each of these users."""
    columns = _user_columns(np.random.default_rng(seed), np.array(ids, np.int64))
    return pa.table({"timestamp": np.full(len(ids), time), **columns})


def lists(rng: np.random.Generator, rows: int, below: int) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 4, rows))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(rng.integers(0, below, offsets[-1])))


def _user_columns(rng: np.random.Generator, ids: np.ndarray) -> dict[str, object]:
    seen = lists(rng, len(ids), 40)
    times = pa.ListArray.from_arrays(seen.offsets, pa.array(np.arange(len(seen.values)) % 2))
    times = pa.array([sorted(row) for row in times.to_pylist()], times.type)
    return {"user_id": ids, "seen": seen, "seen_time": times, "age": rng.normal(size=len(ids)).astype(np.float32)}


def write_log(folder: Path, schema: Schema = SCHEMA) -> Path:
    """Three event files with small row groups, and rows for six users, two of them without an event; the columns of
    the schema alone."""
    for name in ("events", "users"):
        (folder / name).mkdir(parents=True)
    schema.save(folder / "schema.toml")
    table = _narrowed(events(60), schema)
    for index, start in enumerate((0, 25, 30)):
        part = table.slice(start, (25, 5, 30)[index])
        pq.write_table(part, folder / f"events/part-{index}.parquet", row_group_size=7)
    users = _narrowed(user_rows([-10, -9, -8, -7, 2**62, -(2**63)]), schema)
    pq.write_table(users, folder / "users/part-0.parquet", row_group_size=4)
    return folder


def _narrowed(table: pa.Table, schema: Schema) -> pa.Table:
    return table.select([name for name in table.column_names if name in schema.columns()])


def make_model(seed: int = 0, schema: Schema = SCHEMA) -> DERM:
    """A model to shard, whose dense parameters are the same wherever it is made; it knows all of the log's ids."""
    torch.manual_seed(seed)
    model = DERM(schema, MODEL, ["click"])
    users = np.array([*range(-10, 10), 2**62, -(2**63)])
    model.vocabulary.admit({"user": users, "item": np.arange(9) * 3**30})
    return model


def plain_model(seed: int = 0, schema: Schema = SCHEMA) -> DERM:
    """The same with whole tables in this process, as in the checkpoint of this seed."""
    return draw_tables(make_model(seed, schema), seed)


def save_checkpoint(out: Path, step: int, environment: Environment, seed: int = 0, schema: Schema = SCHEMA) -> None:
    """What a training of upstream `ctr` would leave in `out` after `step` steps."""
    frequencies = ItemFrequencies.from_counts(torch.tensor([0]), torch.tensor([1]))
    task = DermTask(make_model(seed, schema), CONFIG.upstreams[0].loss, ["click"], frequencies)
    model = draw_tables(shard(task, environment, sparse_lr=0.1), seed)
    checkpoint.save(
        upstream_folder(out, "ctr") / "checkpoints",
        step,
        model=model,
        optimizer=build_optimizer(model, dense_lr=0.1, sparse_lr=0.1),
        metrics={},
        progress={},
        environment=environment,
    )
