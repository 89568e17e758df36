"""The ranker's job: train rankers that read the store's vectors, and keep what they predict.

This is what `launchers/downstream.py` starts. Each trained ranker leaves one file of test predictions, so a run
that was stopped goes on with the rankers that are missing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from embedding_store import EmbeddingStore
from recsys.atomic import whole_file
from recsys.config import ConfigError, RankerConfig, RankerSettings
from recsys.data.errors import DataError
from recsys.data.files import find_files
from recsys.data.quarantine import NOTHING, Quarantine
from recsys.data.scan import Findings, Part
from recsys.data.schema import Schema
from recsys.data.seen import read_ids
from recsys.data.stream import EventStream
from recsys.dates import UNTIMED
from recsys.downstream.features import StoreFeatures
from recsys.evaluate.metrics import normalized_entropy
from recsys.folders import store_folder
from recsys.models.dlrm import DLRM, RankerTask
from recsys.screening import screen
from recsys.stages import stage
from recsys.train.distributed import Environment, process_group
from recsys.train.predict import predict
from recsys.train.trainer import fit


@dataclass(frozen=True)
class Ranker:
    """One ranker of a job, and the file its predictions go to."""

    job: str
    """Name of the job that trains it."""
    task: str
    arm: str
    series: tuple[str, ...]
    """The series it reads."""
    seed: int
    once: bool = False
    """Whether it reads the series' first snapshots alone."""

    def path(self, out: Path) -> Path:
        """Where its test predictions go."""
        return out / "downstream" / self.job / self.task / f"{self.arm}-{self.seed}.npz"


def ranker_schema(rankers: RankerSettings, data: Path, labels: tuple[str, ...]) -> Schema:
    """The rankers' schema, narrowed to their features and these labels.

    Raises:
        SchemaError: the file is not a schema, or lacks a feature or label that the config names.
        DataError: there is no such file.
        ConfigError: a `publish_delay_ms` where there are no event times to hold it against.
    """
    path = data / rankers.schema
    if not path.is_file():
        raise DataError(f"{path}: no such schema; correct the rankers' `schema` in the config, or --data")
    schema = Schema.load(path)
    if rankers.publish_delay_ms and not schema.timed:
        raise ConfigError(
            f"publish_delay_ms is {rankers.publish_delay_ms}, but by {path} the rankers' events have no times "
            '(timestamp = ""), so that none is later than a snapshot: set publish_delay_ms = 0'
        )
    return schema.select(features=rankers.features or None, labels=tuple(dict.fromkeys(labels)))


def all_rankers(config: RankerConfig) -> Iterator[Ranker]:
    """Every ranker of a job."""
    for task in config.tasks:
        for arm in config.arms:
            for seed in config.seeds:
                yield Ranker(config.name, task, arm.name, config.series(arm, seed), seed, once=arm.once)


def stage_name(config: RankerConfig) -> str:
    """Of the job's stage in a run."""
    return f"downstream-{config.name}"


def train_rankers(config: RankerConfig, data: Path, out: Path) -> None:
    """Train every ranker of a job that has not left its predictions yet.

    The rankers are many, small and independent: each rank of the job trains its share of them alone.

    Args:
        config: of the job.
        data: folder of the events.
        out: folder of the run, whose store they read.

    Raises:
        SchemaError, DataError, KeyError: a file, feature, label or series is not there.
    """
    part, parts = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    rankers = list(all_rankers(config))
    with process_group(alone=True) as environment, stage(out, stage_name(config), environment, part=part, parts=parts):
        skip = screen_splits(config, data, out).quarantine
        series = list(dict.fromkeys(name for ranker in rankers for name in ranker.series))
        _check_visible(series, config, data, out, skip)
        for number, ranker in list(enumerate(rankers, start=1))[part::parts]:
            if ranker.path(out).is_file():
                continue
            score = train_ranker(ranker, config, data, out, environment, skip)
            which = f"{ranker.job}/{ranker.task}/{ranker.arm}/seed {ranker.seed}"
            print(f"ranker {number}/{len(rankers)} {which}: validation ne {score:.4f}", flush=True)


def screen_splits(config: RankerConfig, data: Path, out: Path) -> Findings:
    """Find what is wrong with the rows of a job's train, validation and test files, alone; raises what `screen` raises.

    A row that one task's label forbids is left out for all of them, so that all have the same rows.
    """
    schema = ranker_schema(config, data, tuple(config.tasks.values()))
    splits = (config.train, config.validation, config.test)
    parts = [Part(files=find_files(data, patterns), schema=schema) for patterns in splits]
    return screen(out, f"rankers-{config.name}", parts, data)


def _check_visible(names: Sequence[str], config: RankerConfig, data: Path, out: Path, skip: Quarantine) -> None:
    """Refuse to train on events that all lie before the first snapshot, since no training row could read a vector, and
    to join a log with event times with one without: each would read all of the other, or nothing."""
    schema = ranker_schema(config, data, ()).select(features=())
    stream = EventStream(find_files(data, config.train), schema, batch_size=65_536, drop_last=False, skip=skip)
    newest = max(int(batch.timestamps.max()) for batch in stream) if schema.timed else UNTIMED
    store = EmbeddingStore(store_folder(out))
    for name in names:
        times = [snapshot.as_of for snapshot in store.series(name).history(refused=False)]
        if any((as_of == UNTIMED) != (newest == UNTIMED) for as_of in times):
            raise DataError(_unlike(name, max(times), newest))
        first = min(times, default=None)
        if first is not None and newest < first + config.publish_delay_ms:
            raise DataError(
                f"the newest training event is of {newest} ms, but series {name!r} begins with as_of = {first} ms (and "
                f"publish_delay_ms = {config.publish_delay_ms}): no ranker could read it. Let the upstream's events "
                "end before the ranker's begin, or publish_delay_ms be 0 if nothing is published by days"
            )


def _unlike(name: str, as_of: int, newest: int) -> str:
    """What to say of a series and training events of which one has event times and the other none."""
    if newest == UNTIMED:
        return (
            f"series {name!r} is as of {as_of} ms, but the training events have no times: none could read it. Name the "
            "column of their times in the rankers' schema"
        )
    return (
        f"series {name!r} was published without event times (as_of = {UNTIMED}), but the newest training event is of "
        f"{newest} ms: every event would read it, whatever its upstream has seen. Name the column of the times in the "
        "upstream's schema; a counter begins with 1"
    )


def train_ranker(
    ranker: Ranker,
    config: RankerSettings,
    data: Path,
    out: Path,
    environment: Environment,
    skip: Quarantine = NOTHING,
) -> float:
    """Train one ranker, choose its epoch by validation NE, predict the test rows once and write them.

    Returns:
        the chosen epoch's validation NE.
    """
    label = config.tasks[ranker.task]
    schema = ranker_schema(config, data, (label,))
    store = EmbeddingStore(store_folder(out))
    features = StoreFeatures(store, ranker.series, config.publish_delay_ms, once=ranker.once)
    training = config.training
    torch.manual_seed(ranker.seed)  # the same start for every arm: see DLRM
    ranking = DLRM(schema, config.network, features.specs)

    def stream(patterns: tuple[str, ...], *, epochs: int) -> EventStream:
        training_rows = epochs > 0
        dropout = config.network.id_dropout if training_rows else 0.0
        return EventStream(
            find_files(data, patterns),
            schema,
            batch_size=training.batch_size if training_rows else 4096,
            shuffle_batches=training.shuffle_batches if training_rows else 0,
            seed=ranker.seed,
            epochs=max(1, epochs),
            drop_last=training_rows,
            transform=lambda batch: features(ranking.vocabulary.resolve(batch, dropout, ranker.seed)),
            skip=skip,
        )

    validation = stream(config.validation, epochs=0)

    def validation_ne(model: nn.Module) -> float:
        logits, labels, mask, _ = predict(model, validation, environment)
        score = normalized_entropy(labels[mask].numpy(), logits[mask].numpy())
        if math.isnan(score) and not logits.isnan().any():
            raise DataError(
                f"the validation files {', '.join(config.validation)} do not hold both a 0 and a 1 of label "
                f"{label!r}, so no epoch can be chosen by them: give more of them"
            )
        return score

    result = fit(
        RankerTask(ranking, label_index=0),
        stream(config.train, epochs=training.epochs),
        replace(training, seed=ranker.seed),
        environment,
        tasks=(label,),
        title=None,
        begun=lambda: ranking.vocabulary.admit(read_ids(find_files(data, config.train), schema, skip)),
        after_epoch=validation_ne,
    )
    logits, labels, mask, users = predict(result.model, stream(config.test, epochs=0), environment)
    write_predictions(ranker.path(out), logits[:, 0], labels[:, 0], mask[:, 0], users)
    return min(result.scores)


def write_predictions(path: Path, logits: Tensor, labels: Tensor, mask: Tensor, users: Tensor) -> None:
    """Keep a ranker's test predictions, all [N] in the files' order, whole or not at all."""
    with whole_file(path) as file:
        np.savez(file, logits=logits.numpy(), labels=labels.numpy(), mask=mask.numpy(), users=users.numpy())


def read_predictions(path: Path) -> dict[str, NDArray]:
    """`logits`, `labels`, `mask`, `users`, all [N]."""
    with np.load(path) as file:
        return dict(file)
