"""The ranker's job: train rankers that read the store's vectors, and keep what they predict.

This is what `launchers/downstream.py` starts. Each trained ranker leaves one file of test predictions, beside what it
came to on the validation rows, so a run that was stopped goes on with the rankers that are missing.

The validation rows choose three things, the test rows none: the epoch, whether the ranker reads its arm's vectors at
all, and the recalibration that is applied to the predictions.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from embedding_store import EmbeddingStore
from recsys.atomic import whole_file
from recsys.config import RankerConfig, RankerSettings
from recsys.data.errors import DataError
from recsys.data.files import check_files, find_files
from recsys.data.quarantine import NOTHING, Quarantine
from recsys.data.scan import Findings, Part
from recsys.data.schema import Schema
from recsys.data.seen import Ints, read_ids
from recsys.data.sizes import Tables, described, with_tables
from recsys.data.stream import EventStream
from recsys.data.tables import count_tables
from recsys.dates import UNTIMED
from recsys.downstream.features import StoreFeatures
from recsys.downstream.validation import REFERENCE, Validation, gain, named, row_losses, validate
from recsys.evaluate.metrics import normalized_entropy
from recsys.evaluate.recalibration import fit_recalibration
from recsys.folders import store_folder
from recsys.models.dlrm import DLRM, RankerTask
from recsys.models.vocabulary import Vocabulary
from recsys.screening import screen
from recsys.source import ranker_schema
from recsys.stages import stage
from recsys.train.distributed import Environment, process_group
from recsys.train.predict import predict
from recsys.train.trainer import TrainResult, fit


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

    def read(self, out: Path) -> dict[str, NDArray]:
        """What `write_predictions` has put there."""
        return read_predictions(self.path(out))

    def validation(self, out: Path) -> Path:
        """Where its figures on the validation rows go."""
        return self.path(out).with_suffix(".json")


def all_rankers(config: RankerConfig) -> Iterator[Ranker]:
    """Every ranker of a job."""
    for task in config.tasks:
        for arm in config.arms:
            for seed in config.seeds:
                yield Ranker(config.name, task, arm.name, config.series(arm, seed), seed, once=arm.once)


def stage_name(config: RankerConfig) -> str:
    """Of the job's stage in a run."""
    return f"downstream-{config.name}"


def train_rankers(config: RankerConfig, data: Path, out: Path, store: str | Path | None = None) -> None:
    """Train every ranker of a job that has not left its predictions yet.

    The rankers are many and small: each rank of the job trains its share of them alone, all seeds of an arm one after
    the other, since the later ones read the vectors if the first one does.

    Args:
        config: of the job.
        data: folder of the events.
        out: folder of the run.
        store: the store that they read; None: the run's own.

    Raises:
        SchemaError, DataError, KeyError: a file, feature, label or series is not there.
    """
    opened = EmbeddingStore(store or store_folder(out))
    part, parts = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    rankers = list(all_rankers(config))
    with process_group(alone=True) as environment, stage(out, stage_name(config), environment, part=part, parts=parts):
        skip = screen_splits(config, data, out).quarantine
        series = list(dict.fromkeys(name for ranker in rankers for name in ranker.series))
        _check_visible(series, config, data, opened, skip)
        config, tables = sized(config, data, skip, told=part == 0)
        arms = [list(seeds) for _, seeds in groupby(enumerate(rankers, start=1), key=lambda x: (x[1].task, x[1].arm))]
        for number, ranker in (each for arm in arms[part::parts] for each in arm):
            if ranker.path(out).is_file():
                continue
            score = train_ranker(ranker, config, data, out, environment, skip, tables, opened)
            which = f"{ranker.job}/{ranker.task}/{ranker.arm}/seed {ranker.seed}"
            print(f"ranker {number}/{len(rankers)} {which}: validation ne {score:.4f}", flush=True)


def sized(config: RankerConfig, data: Path, skip: Quarantine, *, told: bool) -> tuple[RankerConfig, Tables]:
    """The same with the batch size, and the rows of the tables, that follow from the training rows where none are
    given; which can be `told`.

    Raises:
        DataError: what `EventStream` raises.
    """
    files, schema = find_files(data, config.train), ranker_schema(config, data, tuple(config.tasks.values()))
    rows, training = check_files(files, schema) - skip.count(files), config.training
    training = training.sized(rows)
    if told and not config.training.batch_size:
        print(f"rankers: {rows:,} rows, so batches of {training.batch_size}: {training.steps(rows)} a pass", flush=True)
    tables = count_tables(files, schema, skip)
    if told and tables:
        print(f"rankers: tables of {described(tables)} rows, by the ids of their training rows", flush=True)
    return replace(config, training=training), tables


def screen_splits(config: RankerConfig, data: Path, out: Path) -> Findings:
    """Find what is wrong with the rows of a job's train, validation and test files, alone; raises what `screen` raises.

    A row that one task's label forbids is left out for all of them, so that all have the same rows.
    """
    schema = ranker_schema(config, data, tuple(config.tasks.values()))
    splits = (config.train, config.validation, config.test)
    parts = [Part(files=find_files(data, patterns), schema=schema) for patterns in splits]
    return screen(out, f"rankers-{config.name}", parts, data)


def _check_visible(
    names: Sequence[str], config: RankerConfig, data: Path, store: EmbeddingStore, skip: Quarantine
) -> None:
    """Refuse to train on events that all lie before the first snapshot, since no training row could read a vector, and
    to join a log with event times with one without: each would read all of the other, or nothing."""
    schema = ranker_schema(config, data, ()).select(features=())
    stream = EventStream(find_files(data, config.train), schema, batch_size=65_536, drop_last=False, skip=skip)
    newest = max(int(batch.timestamps.max()) for batch in stream) if schema.timed else UNTIMED
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
    tables: Tables = MappingProxyType({}),
    store: EmbeddingStore | None = None,
) -> float:
    """Train one ranker, choose by validation NE its epoch and whether it reads vectors at all, recalibrate it on the
    validation rows, predict the test rows once and write them. It reads this store; None: that of the run.

    It reads vectors if they lower the validation NE by more than the standard error of the difference: of two models
    that cannot be told apart, the simpler one (Breiman et al., Classification and Regression Trees, 1984, 3.4.3).

    Returns:
        its validation NE.
    """
    label = config.tasks[ranker.task]
    store = store or EmbeddingStore(store_folder(out))
    features = StoreFeatures(store, ranker.series, config.publish_delay_ms, once=ranker.once)
    schema = with_tables(ranker_schema(config, data, (label,)), tables)
    seen = read_ids(find_files(data, config.train), schema, skip)
    work = _Work(ranker.seed, label, schema, config, data, out, features, seen, environment, skip)
    works = {True: work, False: replace(work, features=StoreFeatures(store, ()))}
    choices, reference = readings(ranker, config, out), _finished(ranker, out)
    trained = {reads: works[reads].train() for reads in choices if reads or reference is None}
    tried = {named(reads): min(model.result.scores) for reads, model in trained.items()}
    losses = {reads: model.losses for reads, model in trained.items()}
    if reference is not None and False in choices:
        tried[named(False)] = reference.tried[named(False)]
        losses[False] = _reference(ranker).read(out)["validation_losses"]
    chosen = choices[0]
    if len(choices) > 1:
        gained, tried["error"] = gain(losses[False], losses[True], trained[True].users)
        chosen = gained > tried["error"]
    if chosen in trained:
        return trained[chosen].write(ranker, tried)
    assert reference is not None
    replace(reference, tried=tried).save(ranker.validation(out))
    write_predictions(ranker.path(out), **_reference(ranker).read(out))
    return reference.ne


def _reference(ranker: Ranker) -> Ranker:
    """The ranker of the same task and seed that reads no vectors."""
    return replace(ranker, arm=REFERENCE, series=(), once=False)


def _finished(ranker: Ranker, out: Path) -> Validation | None:
    """What the ranker without vectors came to, if this is another one and that one is done: it is not trained again."""
    reference = _reference(ranker)
    if reference == ranker or not reference.path(out).is_file():
        return None
    return Validation.load(reference.validation(out))


@dataclass(frozen=True)
class _Work:
    """What all trainings of one ranker share."""

    seed: int
    label: str
    schema: Schema
    config: RankerSettings
    data: Path
    out: Path
    features: StoreFeatures
    """The vectors that the ranker reads."""
    seen: dict[str, Ints]
    """The ids of the training rows, by owner."""
    environment: Environment
    skip: Quarantine

    def stream(self, patterns: tuple[str, ...], vocabulary: Vocabulary, *, training: bool = False) -> EventStream:
        """Rows of these files: in their order, or as they are trained on."""
        settings, dropout = self.config.training, self.config.network.id_dropout if training else 0.0
        return EventStream(
            find_files(self.data, patterns),
            self.schema,
            batch_size=settings.batch_size if training else 4096,
            shuffle_batches=settings.shuffle_batches if training else 0,
            seed=self.seed,
            epochs=settings.epochs if training else 1,
            drop_last=training,
            transform=lambda batch: self.features(vocabulary.resolve(batch, dropout, self.seed)),
            skip=self.skip,
        )

    def train(self) -> _Trained:
        """The model of the best epoch."""
        torch.manual_seed(self.seed)  # the same start for every arm: see DLRM
        ranking = DLRM(self.schema, self.config.network, self.features.specs)
        vocabulary = ranking.vocabulary
        result = fit(
            RankerTask(ranking, label_index=0),
            self.stream(self.config.train, vocabulary, training=True),
            replace(self.config.training, seed=self.seed),
            self.environment,
            tasks=(self.label,),
            title=None,
            begun=lambda: vocabulary.admit(self.seen),
            after_epoch=lambda model: self._validation_ne(model, vocabulary),
        )
        logits, labels, mask, users = self.predict(result.model, vocabulary, self.config.validation)
        mask = mask[:, 0]
        said = (logits[mask, 0].numpy(), labels[mask, 0].numpy(), users[mask].numpy())
        return _Trained(self, result, vocabulary, *said)

    def predict(
        self, model: nn.Module, vocabulary: Vocabulary, patterns: tuple[str, ...]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the model says of the rows of these files."""
        return predict(model, self.stream(patterns, vocabulary), self.environment)

    def _validation_ne(self, model: nn.Module, vocabulary: Vocabulary) -> float:
        logits, labels, mask, _ = self.predict(model, vocabulary, self.config.validation)
        known, said = labels[mask].numpy(), logits[mask].numpy()
        score = normalized_entropy(known, said)
        if math.isfinite(score):
            return normalized_entropy(known, fit_recalibration(known, said)(said))  # as it will be judged
        if math.isnan(score) and not logits.isnan().any():
            raise DataError(
                f"the validation files {', '.join(self.config.validation)} do not hold both a 0 and a 1 of label "
                f"{self.label!r}, so no epoch can be chosen by them: give more of them"
            )
        return score


@dataclass(frozen=True)
class _Trained:
    """A model, and what it says of the validation rows for which its label exists."""

    work: _Work
    result: TrainResult
    vocabulary: Vocabulary
    """What ids it knows."""
    logits: NDArray  # float32 [N]
    labels: NDArray  # float32 [N]
    users: NDArray  # int64 [N]

    @cached_property
    def losses(self) -> NDArray:
        """Of these rows [N], as they will be judged."""
        return row_losses(self.labels, self.logits)

    def write(self, ranker: Ranker, tried: Mapping[str, float]) -> float:
        """Recalibrate it on the validation rows, predict the test rows once and write both; its validation NE."""
        work = self.work
        found = validate(
            self.labels,
            self.logits,
            scores=self.result.scores,
            most_passes=work.config.training.epochs,
            reads=bool(work.features.specs),
            tried=tried,
        )
        found.save(ranker.validation(work.out))
        logits, labels, mask, users = work.predict(self.result.model, self.vocabulary, work.config.test)
        write_predictions(
            ranker.path(work.out),
            logits=found.recalibration(logits[:, 0].numpy()).astype(np.float32),
            labels=labels[:, 0].numpy(),
            mask=mask[:, 0].numpy(),
            users=users.numpy(),
            validation_losses=self.losses,
        )
        return found.ne


def readings(ranker: Ranker, config: RankerSettings, out: Path) -> tuple[bool, ...]:
    """Whether a ranker is to be trained with its vectors, without any, or both, of which the validation rows choose: so
    vectors that do not pay there do no harm elsewhere. Later seeds follow the first one of their arm."""
    first = replace(ranker, seed=config.seeds[0])
    if not ranker.series:
        return (False,)
    if ranker != first and first.path(out).is_file():
        return (Validation.load(first.validation(out)).reads,)
    return (True, False)


def write_predictions(
    path: Path, *, logits: NDArray, labels: NDArray, mask: NDArray, users: NDArray, validation_losses: NDArray
) -> None:
    """Keep a ranker's recalibrated test predictions, all [N] in the files' order, and the losses [V] of its validation
    rows (`row_losses`), whole or not at all."""
    with whole_file(path) as file:
        np.savez(file, logits=logits, labels=labels, mask=mask, users=users, validation_losses=validation_losses)


def read_predictions(path: Path) -> dict[str, NDArray]:
    """`logits`, `labels`, `mask`, `users`, all [N], and `validation_losses` [V]."""
    with np.load(path) as file:
        return dict(file)
