"""The two-tower model's job: train it on all ranks together, and publish what its towers make of users and items.

It is an upstream of another kind: it learns from the positives of downstream's rows and reads the store's vectors as
features, each row what was known at its time; everything else is the upstreams' code. Each training publishes one
version, of a space of its own, as of its newest row, with the items' prior: `recsys index` and `recsys retrieve` take
it as any other upstream.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from embedding_store import EmbeddingStore, Series
from recsys.config import ConfigError, TwoTowerConfig, UpstreamConfig, to_dict
from recsys.data.batch import Batch
from recsys.data.entities import withdrawn_after
from recsys.data.errors import DataError
from recsys.data.files import find_files
from recsys.data.last_events import last_events
from recsys.data.negatives import UniformNegatives
from recsys.data.quarantine import Quarantine, places
from recsys.data.scan import Part
from recsys.data.schema import Schema, entity_schema
from recsys.data.seen import SCAN_ROWS, read_ids
from recsys.data.stream import EventStream
from recsys.data.times import newest_time
from recsys.downstream.features import StoreFeatures
from recsys.downstream.visible import check_visible
from recsys.folders import store_of, upstream_folder
from recsys.identity import effective, flatten, identify_files
from recsys.models.two_tower import TwoTower, TwoTowerTask
from recsys.models.vocabulary import Vocabulary
from recsys.positives import count_positives
from recsys.refresh.arms import ENTITIES
from recsys.refresh.first import load_into, publish_source, source_of
from recsys.refresh.publish import Publisher, space_name
from recsys.refresh.records import PUBLISHED
from recsys.screening import screen
from recsys.source import TABLES, upstream_schema
from recsys.stages import exclusive, stage
from recsys.train.distributed import Environment, broadcast, process_group
from recsys.train.exchange import ranks_of
from recsys.train.heartbeat import beat
from recsys.train.predict import device_batches, loss_forward
from recsys.train.trainer import fit
from recsys.train.watch import Pulse
from recsys.upstream import screen_source, size_tables


def stage_name(config: TwoTowerConfig) -> str:
    """Of the job's stage in a run."""
    return f"towers-{config.name}"


def train_two_tower(config: TwoTowerConfig, data: Path, out: Path, store: str | Path | None = None) -> None:
    """Train a two-tower model and publish its vectors; every rank calls it. The same command goes on where it stopped.

    Args:
        config: of the job.
        data: folder of the events.
        out: folder of the run; checkpoints and figures go to `upstream/<name>` in it.
        store: the store that is read and written; None: the run's own.

    Raises:
        DataError: no positive in the training or the validation files; series that no training row can read; or
            training rows that are older than what the store has of this name.
        ConfigError: the store has series of this name of another dimension.
        SchemaError, KeyError, PlanError, LossError, CheckpointError, StoreError: as their rooms say.
    """
    opened, upstream = EmbeddingStore(store or store_of(out)), config.upstream()
    folder = upstream_folder(out, config.name)
    check_target(config, opened)
    features = StoreFeatures(opened, config.series, config.publish_delay_ms)
    with (
        process_group() as environment,
        exclusive(folder, environment),
        stage(out, stage_name(config), environment),
    ):
        schema = upstream_schema(upstream, data)
        rows = _Rows.read(config, schema, data, out, environment)
        _check_times(config, schema, opened, data, rows.skip, folder)
        size_tables(rows.train, schema, rows.positives, folder / TABLES, f"towers {config.name}", environment)
        schema = upstream_schema(upstream, data, out)
        _Training(config, upstream, schema, data, rows, features, environment).fit(folder)
        _publish(config, schema, data, out, opened, features, environment)


def check_target(config: TwoTowerConfig, store: EmbeddingStore) -> None:
    """Raise ConfigError if what is to be published does not fit what the store has under its name."""
    known = set(store.list())
    for series in (store.series(name) for name in _target(config) if name in known):
        if series.dim != config.model.vector_dim:
            raise ConfigError(
                f"name is {config.name!r}, and {store.location} has a series {series.name!r} of {series.dim} "
                f"dimensions; model.out_tokens * model.out_dim is {config.model.vector_dim}: choose another name, or "
                "make them equal"
            )


def _target(config: TwoTowerConfig) -> tuple[str, ...]:
    return tuple(f"{owner}_{config.name}" for owner in ENTITIES)


@dataclass(frozen=True)
class _Rows:
    """The rows of the job's files, and those that are positive."""

    train: list[Path]
    validation: list[Path]
    skip: Quarantine
    """Rows that cannot be read."""
    positives: Quarantine
    """These and the rows that are not positive."""
    count: int
    """Positives of the training files."""

    @staticmethod
    def read(config: TwoTowerConfig, schema: Schema, data: Path, out: Path, environment: Environment) -> _Rows:
        """Find what cannot be read, and what is positive. Raises DataError where nothing is."""
        train, validation = find_files(data, config.train), find_files(data, config.validation)
        skip = screen_source(config.upstream(), schema, data, out, environment).quarantine
        judged = [Part(files=validation, schema=schema)]
        skip |= screen(out, f"{stage_name(config)}-validation", judged, data, environment).quarantine
        positives, counts = skip, []
        for key, files in (("train", train), ("validation", validation)):
            negative = not_positive(files, schema, skip)
            positives |= negative
            counts.append(EventStream(files, schema, batch_size=1, drop_last=False, skip=positives).rows)
            if counts[-1] < environment.world_size:
                raise DataError(
                    f"{key}: label {config.label!r} is 1 in {counts[-1]} rows of its {len(files)} files, and "
                    f"{environment.world_size} ranks need one each: choose another label, or give more events"
                )
        return _Rows(train, validation, skip, positives, counts[0])


def not_positive(files: Sequence[Path], schema: Schema, skip: Quarantine) -> Quarantine:
    """The rows, of those that are not skipped, whose only label is not 1."""
    facts, found = schema.select(features=()), {}
    for path in files:
        stream = EventStream([path], facts, batch_size=SCAN_ROWS, drop_last=False, skip=skip)
        parts = [((batch.labels[:, 0] != 1) | ~batch.label_mask[:, 0]).numpy() for batch in stream]
        rows = np.flatnonzero(np.concatenate([np.empty(0, bool), *parts]))
        found[path] = places(rows, skip.of(path))
    return Quarantine(found)


def _check_times(
    config: TwoTowerConfig, schema: Schema, store: EmbeddingStore, data: Path, skip: Quarantine, folder: Path
) -> None:
    """Series that no row could read, and rows older than what was published, are refused before anything is trained."""
    check_visible(config.series, config.population(), data, store, skip)
    if not schema.timed or (folder / PUBLISHED).is_file():
        return
    known = set(store.list())
    for series in (store.series(name) for name in _target(config) if name in known):
        last = max((snapshot.as_of for snapshot in series.history()), default=0)
        files = [(find_files(data, config.train), schema.select(features=()))]
        files += [(find_files(data, patterns), entity_schema(schema, owner)) for owner, patterns in _own(config)]
        newest = max(newest_time(paths, facts, above=last - 1) for paths, facts in files)
        if newest < last:
            raise DataError(
                f"no row to train on is later than {last} ms, the time that series {series.name!r} is of already: give "
                "newer rows, or another name"
            )


def _own(config: TwoTowerConfig) -> list[tuple[str, tuple[str, ...]]]:
    """Patterns of the entities' own rows, of those that have any."""
    return [(owner, patterns) for owner, patterns in (("user", config.users), ("item", config.items)) if patterns]


@dataclass(frozen=True)
class _Training:
    """A training of the model."""

    config: TwoTowerConfig
    upstream: UpstreamConfig
    schema: Schema
    """With the sizes of all tables."""
    data: Path
    rows: _Rows
    features: StoreFeatures
    environment: Environment

    def fit(self, folder: Path) -> None:
        """Train it, or go on from the newest checkpoint in `folder`; the newest is then that of the best pass."""
        config, environment, rows, ranks = self.config, self.environment, self.rows, ranks_of(self.environment)
        training = config.training.sized(rows.count // environment.world_size)
        torch.manual_seed(training.seed)
        model = TwoTower(self.schema, config.model, self.features.specs)
        with Pulse("a survey of positives", environment):
            frequencies = count_positives(rows.train, self.schema, (config.label,), rows.skip, ranks=ranks)
        assert frequencies is not None, "there are positives"
        if environment.is_main and not config.training.batch_size:
            steps = training.steps(rows.count // environment.world_size)
            print(
                f"towers {config.name}: {rows.count:,} positives, so batches of {training.batch_size} a rank: {steps} "
                "a pass",
                flush=True,
            )
        learn, items = self._transform(model.vocabulary, config.model.id_dropout)
        judge, _ = self._transform(model.vocabulary, 0.0)
        fit(
            TwoTowerTask(model, config.temperature, frequencies, items),
            self._stream(rows.train, learn, training.batch_size, training.epochs, training.shuffle_batches),
            training,
            environment,
            tasks=(config.label,),
            identity=self._identity(),
            out=folder,
            title=f"towers {config.name}",
            begun=lambda: model.vocabulary.admit(read_ids(rows.train, self.schema, rows.skip, ranks)),
            after_epoch=lambda trained: self._judge(trained, judge, training.batch_size),
            score="softmax loss",
        )

    def _transform(self, vocabulary: Vocabulary, dropout: float) -> tuple[Callable[[Batch], Batch], int]:
        """What is done to each batch, and how many items its negatives are drawn from; 0: there are none."""
        config, seed = self.config, self.config.training.seed
        resolve = partial(vocabulary.resolve, dropout=dropout, seed=seed)

        def read(batch: Batch) -> Batch:
            return self.features(resolve(batch))

        if not config.uniform_negatives:
            return read, 0
        own = find_files(self.data, config.items) if config.items else []
        items = last_events([*self.rows.train, *own], self.schema, "item", self.rows.skip)
        items = items.without(withdrawn_after({}, own, self.schema, "item", self.rows.skip))
        rank, count = self.environment.rank, config.uniform_negatives
        negatives = UniformNegatives(items, self.schema, count, read, seed=seed, rank=rank)
        return negatives, negatives.items

    def _stream(
        self,
        files: Sequence[Path],
        transform: Callable[[Batch], Batch],
        batch_size: int,
        epochs: int = 1,
        shuffle_batches: int = 0,
    ) -> EventStream:
        """This rank's positives."""
        return EventStream(
            files,
            self.schema,
            batch_size=batch_size,
            rank=self.environment.rank,
            world_size=self.environment.world_size,
            shuffle_batches=shuffle_batches,
            seed=self.config.training.seed,
            epochs=epochs,
            transform=transform,
            skip=self.rows.positives,
        )

    def _judge(self, model: nn.Module, transform: Callable[[Batch], Batch], batch_size: int) -> tuple[float]:
        """The sampled softmax loss of the validation positives, against the same candidates after every pass."""
        stream, device = self._stream(self.rows.validation, transform, batch_size), self.environment.device
        forward, losses = loss_forward(model, self.environment), []
        with torch.no_grad():
            for batch in device_batches(stream, self.environment):
                losses.append(forward(batch.to(device, non_blocking=True))[0])
                beat()
        total = torch.stack(losses).double().mean()
        dist.all_reduce(total)
        return (float(total) / self.environment.world_size,)

    def _identity(self) -> dict[str, dict[str, str]]:
        """What the training is of: a checkpoint of something else is refused. The store's newer versions are no part of
        it: they are read by rows of later times alone."""
        config, data = self.config, self.data
        files = find_files(data, (config.schema, *config.train, *config.validation, *config.users, *config.items))
        settings = effective(flatten(to_dict(config)))
        skipped = self.rows.skip.rows.items()
        return {
            "files": identify_files(files, data),
            "config": settings | {"read": ", ".join(f"{spec.name} of {spec.space}" for spec in self.features.specs)},
            "quarantine": {path.relative_to(data).as_posix(): f"rows {x.tolist()}" for path, x in skipped},
        }


def _publish(
    config: TwoTowerConfig,
    schema: Schema,
    data: Path,
    out: Path,
    store: EmbeddingStore,
    features: StoreFeatures,
    environment: Environment,
) -> None:
    """All users and items by their last rows, reading the vectors that were known at the end of the training files."""
    upstream, folder = config.upstream(), upstream_folder(out, config.name)
    towers = TwoTower(schema, config.model, features.specs)
    model, loaded = load_into(towers, folder / "checkpoints", upstream, environment)
    source = source_of(model, loaded, config.refresh(), schema, data, out, environment)

    def read(batch: Batch) -> Batch:
        return features(replace(batch, timestamps=torch.full_like(batch.timestamps, source.as_of)))

    publisher = Publisher(out, config.refresh(), environment, store)
    source = replace(source, content=replace(source.content, read=read))
    space = broadcast(_space(config, store, folder), environment)
    if publish_source(publisher, source, out, config.name, space) and environment.is_main:
        for series in (store.series(name) for name in _target(config)):
            newest = series.latest()
            print(f"{series.name}: version {newest.version} of {newest.rows:,} in space {newest.space}", flush=True)


def _space(config: TwoTowerConfig, store: EmbeddingStore, folder: Path) -> str:
    """A new one for each training: what was begun to be published keeps its own."""
    if (folder / PUBLISHED).is_file():
        return str(json.loads((folder / PUBLISHED).read_text())["space"])
    series: list[Series] = [store.series(name) for name in _target(config)]
    return space_name(config.name, max(each.next_version for each in series))
