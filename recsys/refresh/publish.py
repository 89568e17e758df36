"""Publish what an upstream knows: the job that `launchers/refresh.py` starts on every rank."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
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

    `as_of` is the time of the newest event or entity row of the source, the same for both. The two have equal versions:
    both are computed before either is committed, and a crash between the two commits is mended by the next call. A
    second call with the same checkpoint publishes nothing.

    Raises:
        CheckpointError: the upstream has not been trained, or by another config.
        DataError: a row that cannot be read, naming file and row.
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
        events = {owner: last_events(data, upstream.source, schema, owner) for owner in ENTITIES}
        as_of = max(selected.as_of for selected in events.values())
        series = {owner: _open(out, f"{owner}_{name}", upstream.model.vector_dim, environment) for owner in ENTITIES}
        for owners in _owed(series, step, as_of, upstream_folder(out, name) / "published.json", environment):
            with ExitStack() as writers:  # commits at its end, or none if anything raises before
                for owner in owners:
                    batches = embed(sharded.module["model"], schema, events[owner], owner, environment)
                    _write(series[owner], batches, as_of, space_name(name), writers)


def _open(out: Path, name: str, dim: int, environment: Environment) -> Series | None:
    """The series, made if it is not there; only rank 0 touches the store."""
    if not environment.is_main:
        return None
    return EmbeddingStore(store_folder(out)).create(name, dim=dim, dtype="float32", exist_ok=True)


def _owed(
    series: dict[str, Series | None], step: int, as_of: int, record: Path, environment: Environment
) -> list[tuple[str, ...]]:
    """For each version still to be written, the oldest first, the series that lack it; decided by rank 0 for all.

    `record` says of which checkpoint the newest version is, from before its first commit on. So what a crash has kept
    from the second series can be told from what a newer checkpoint owes to both, which never share a version.
    """
    decision: list[list[tuple[str, ...]]] = [[]]
    if environment.is_main:
        newest = {owner: max(opened.versions(), default=0) for owner, opened in series.items() if opened}
        entry = {"step": step, "as_of": as_of, "version": max(newest.values())}
        if not record.is_file() or json.loads(record.read_text()) != entry:
            entry["version"] += 1
            write_json(record, entry)
        versions = range(min(newest.values()) + 1, entry["version"] + 1)
        decision = [[tuple(owner for owner in ENTITIES if newest[owner] < version) for version in versions]]
    dist.broadcast_object_list(decision, src=0)
    return decision[0]


def _write(
    series: Series | None, batches: Iterator[tuple[Tensor, Tensor]], as_of: int, space: str, writers: ExitStack
) -> None:
    """Append the vectors to a new snapshot, to be committed when `writers` ends."""
    writer = None if series is None else writers.enter_context(series.write(as_of=as_of, space=space))
    for ids, vectors in batches:  # the other ranks compute their share; rank 0 gets and writes it
        if writer is not None:
            writer.append(ids, vectors)
