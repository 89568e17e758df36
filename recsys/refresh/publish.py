"""Publish what an upstream knows: the job that `launchers/refresh.py` starts on every rank."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch.distributed as dist
from torch import Tensor, nn

from embedding_store import EmbeddingStore, Series
from recsys.config import RunConfig
from recsys.models.derm import DERM
from recsys.refresh.embed import embed, last_events
from recsys.stages import stage, write_json
from recsys.train.checkpoint import load_model
from recsys.train.distributed import Environment, process_group
from recsys.train.sharding import shard
from recsys.upstream import upstream_folder, upstream_schema

ENTITIES = ("user", "item")


def store_folder(out: Path) -> Path:
    """Where a run keeps its embedding store."""
    return out / "store"


def space_name(upstream: str) -> str:
    """The vector space of an upstream's first training run; a retraining from scratch would open the next."""
    return f"{upstream}-1"


def refresh_upstream(config: RunConfig, name: str, data: Path, out: Path) -> None:
    """Embed every user and item of upstream `name` by its newest checkpoint; publish `user_<name>`, `item_<name>`.

    `as_of` is the time of the newest event or entity row of the source, the same for both. A second call with the same
    checkpoint publishes nothing; after a crash between the two commits, only the one that is missing.

    Raises:
        CheckpointError: the upstream has not been trained, or by another config.
        StoreError: the store refuses a snapshot.
    """
    upstream = config.upstream(name)
    schema = upstream_schema(upstream, data)
    tasks = [label.name for label in schema.labels]
    with process_group() as environment, stage(out, f"refresh-{name}", environment):
        # The name under which DermTask holds the model, so that the checkpoint's keys are the same.
        holder = nn.ModuleDict({"model": DERM(schema, upstream.model, tasks)})
        sharded = shard(holder, environment, sparse_lr=upstream.training.sparse_lr)
        step = load_model(upstream_folder(out, name) / "checkpoints", sharded)
        model = sharded.module["model"]
        events = {owner: last_events(data, upstream.source, schema, owner) for owner in ENTITIES}
        as_of = max(selected.as_of for selected in events.values())
        record = upstream_folder(out, name) / "published.json"
        series = {owner: _open(out, f"{owner}_{name}", upstream.model.vector_dim, environment) for owner in ENTITIES}
        for owner in _missing(series, as_of, step, record, environment):
            batches = embed(model, schema, events[owner], owner, environment)
            _commit(series[owner], batches, as_of, space_name(name))
        if environment.is_main:
            write_json(record, {"step": step, "as_of": as_of})


def _open(out: Path, name: str, dim: int, environment: Environment) -> Series | None:
    """The series, made if it is not there; only rank 0 touches the store."""
    if not environment.is_main:
        return None
    return EmbeddingStore(store_folder(out)).create(name, dim=dim, dtype="float32", exist_ok=True)


def _missing(
    series: dict[str, Series | None], as_of: int, step: int, record: Path, environment: Environment
) -> tuple[str, ...]:
    """Which series this checkpoint still has to be published to, decided by rank 0 for all."""
    decision: list[tuple[str, ...]] = [ENTITIES]
    if environment.is_main:
        versions = {owner: [x.version for x in opened.history()] for owner, opened in series.items() if opened}
        newest = {owner: max(published, default=0) for owner, published in versions.items()}
        done = json.loads(record.read_text()) if record.is_file() else None
        ahead = max(newest.values())
        if done == {"step": step, "as_of": as_of}:
            decision = [()]
        elif min(newest.values()) < ahead:
            # One commit of a pair came through before a crash: the other is owed, with the same as_of.
            decision = [tuple(owner for owner, version in newest.items() if version < ahead)]
    dist.broadcast_object_list(decision, src=0)
    return decision[0]


def _commit(series: Series | None, batches: Iterator[tuple[Tensor, Tensor]], as_of: int, space: str) -> None:
    if series is None:
        for _ in batches:  # this rank computes its share; rank 0 gets and writes it
            pass
        return
    with series.write(as_of=as_of, space=space) as writer:
        for ids, vectors in batches:
            writer.append(ids, vectors)
