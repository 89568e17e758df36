"""One ranker's training: the same on one rank or many, with one task or several, kept in checkpoints or not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from recsys.config import RankerSettings
from recsys.data.errors import DataError
from recsys.data.files import check_files, find_files
from recsys.data.label_facts import LabelFacts, known_until, survey_labels
from recsys.data.quarantine import Quarantine
from recsys.data.ranks import Ranks
from recsys.data.schema import Label, Schema
from recsys.data.seen import SCAN_ROWS, Ints
from recsys.data.sizes import Tables, described
from recsys.data.stream import EventStream
from recsys.data.tables import count_tables
from recsys.downstream.features import StoreFeatures
from recsys.downstream.spread import SpreadStream
from recsys.downstream.validation import Validation, row_losses, validate
from recsys.evaluate.recalibration import Recalibration
from recsys.models.objective import Objective
from recsys.models.ranker import Ranker, RankerTask
from recsys.models.rankers import build_ranker
from recsys.models.vocabulary import Vocabulary
from recsys.shared_figures import shared_loss, shared_recalibration
from recsys.source import ranker_schema
from recsys.train.distributed import Environment
from recsys.train.exchange import ranks_of
from recsys.train.heartbeat import computing
from recsys.train.predict import predict
from recsys.train.run import TrainResult
from recsys.train.trainer import fit
from recsys.train.watch import Pulse

S = TypeVar("S", bound=RankerSettings)


@dataclass(frozen=True)
class RankerTraining:
    """What a training is of. The tasks are the schema's labels, which one model learns together."""

    seed: int
    schema: Schema
    """With the sizes of all tables, see `sized`."""
    config: RankerSettings
    """With a batch size, see `sized`."""
    data: Path
    features: StoreFeatures
    """The vectors that the ranker reads."""
    seen: dict[str, Ints]
    """The ids of the training rows, by owner."""
    environment: Environment
    """The ranks that train it together."""
    skip: Quarantine
    started: bool = False
    """Whether it goes on from another, from which it has the delays of outcomes."""

    @property
    def ranks(self) -> Ranks:
        """Who have the rows that it is judged by, each its own."""
        return ranks_of(self.environment)

    @property
    def labels(self) -> tuple[str, ...]:
        """Of the tasks, in the order of the logits."""
        return tuple(label.name for label in self.schema.labels)

    def column(self, task: str) -> int:
        """Of the task's label among them."""
        return self.labels.index(self.config.tasks[task])

    def model(self) -> Ranker:
        """As it is before it is trained, its tables on "meta"."""
        torch.manual_seed(self.seed)  # the same start for every arm: see recsys/models/ranker.py
        ranking = build_ranker(self.schema, self.config.network, self.features.specs, tasks=len(self.labels))
        ranking.raise_logits(self.objective().levels)
        for name, relations in self.features.relations.items():
            assert ranking.learned is not None
            ranking.learned.join.views_of(name).set(*relations)
        return ranking

    @cached_property
    def facts(self) -> LabelFacts:
        """Of the training rows."""
        files = find_files(self.data, self.config.train)
        return survey_labels(files, self.schema, self.skip, with_delays=not self.started)

    def known_until(self, patterns: tuple[str, ...]) -> int | None:
        """Of these files, which are judged by, see `recsys.data.label_facts.known_until`."""
        if patterns not in self._known_until:
            self._known_until[patterns] = known_until(find_files(self.data, patterns), self.schema, self.skip)
        return self._known_until[patterns]

    @cached_property
    def _known_until(self) -> dict[tuple[str, ...], int | None]:
        return {}

    def objective(self) -> Objective:
        """What the logits are learned by."""
        return Objective(self.schema.labels, self.facts, self.config.value_loss, tempered=True)

    def task(self, ranking: Ranker) -> RankerTask:
        """A model of this training and its loss."""
        return RankerTask(ranking, self.given(), self.objective())

    def given(self) -> dict[int, int]:
        """Task -> the one whose label has to be 1 for its own to exist, where it is learned over the entire space."""
        if not self.config.entire_space:
            return {}
        labels = self.labels
        return {
            number: labels.index(label.valid)
            for number, label in enumerate(self.schema.labels)
            if label.valid in labels
        }

    def train(
        self,
        out: Path | None = None,
        *,
        title: str | None = None,
        identity: Mapping[str, Mapping[str, str]] | None = None,
        start: Path | None = None,
        before: Callable[[nn.Module, Vocabulary], None] | None = None,
    ) -> TrainedRanker:
        """The model of each task's best pass. A collective of the environment's ranks.

        Args:
            out: folder of checkpoints, from which it goes on, and figures; None writes nothing.
            title: of the training in the terminal; None: quiet.
            identity: what the training is of, see `fit`.
            start: the checkpoint of another training to begin with.
            before: called with the model of `start` and the ids that it knows, see `fit`.

        Raises:
            PlanError, LossError, CheckpointError, DataError: as their rooms say.
        """
        with Pulse("a survey of training rows", self.environment):
            ranking = self.model()
            vocabulary = ranking.vocabulary
            task, stream = self.task(ranking), self.stream(self.config.train, vocabulary, training=True)
        result = fit(
            task,
            stream,
            replace(self.config.training, seed=self.seed),
            self.environment,
            tasks=self.labels,
            values=[label.name for label in self.schema.labels if label.is_value],
            identity=identity,
            out=out,
            title=title,
            start=start,
            before=None if before is None else lambda model: before(model, vocabulary),
            begun=lambda: self._begin(ranking),
            after_epoch=lambda model: self._judge(model, vocabulary),
            taken=self.features.device_bytes,
        )
        with Pulse("the predictions of the best passes", self.environment):
            said = result.best.predict(result.model, self.stream(self.config.validation, vocabulary), self.environment)
        return TrainedRanker(self, result, vocabulary, *(x.numpy() for x in said))

    def _begin(self, ranking: Ranker) -> None:
        """Give the training's ids their rows, and these their rates."""
        with computing():
            ranking.vocabulary.admit(self.seen)
        if ranking.learned is not None and self.config.network.frequency_adaptive:
            ranking.learned.join.set_frequencies(self._frequencies(ranking.vocabulary))

    def _frequencies(self, vocabulary: Vocabulary) -> dict[str, torch.Tensor]:
        """Owner -> how many training rows read each row of its own id, [rows]. Every rank reads all of them."""
        own = vocabulary.features
        facts = self.schema.select(features=tuple(x.name for x in own.values()), labels=())
        files = find_files(self.data, self.config.train)
        counts = {owner: torch.zeros(feature.rows + 1) for owner, feature in own.items()}
        for batch in EventStream(
            files, facts, batch_size=SCAN_ROWS, drop_last=False, skip=self.skip, transform=vocabulary.resolve
        ):
            for owner, feature in own.items():
                rows = batch.sparse[feature.name].values()
                counts[owner].index_add_(0, rows, torch.ones(len(rows)))
        return counts

    def stream(self, patterns: tuple[str, ...], vocabulary: Vocabulary, *, training: bool = False) -> EventStream:
        """This rank's rows of these files: in their order, or as they are trained on."""
        settings, dropout = self.config.training, self.config.network.id_dropout if training else 0.0
        options: dict[str, Any] = {
            "transform": lambda batch: self.features(vocabulary.resolve(batch, dropout, self.seed))
        }
        if self.features.spread:
            options = {"transform": lambda batch: vocabulary.resolve(batch, dropout, self.seed)}
            options |= {"features": self.features, "environment": self.environment}
        return (SpreadStream if self.features.spread else EventStream)(
            find_files(self.data, patterns),
            self.schema,
            batch_size=settings.batch_size if training else 4096,
            rank=self.environment.rank,
            world_size=self.environment.world_size,
            shuffle_batches=settings.shuffle_batches if training else 0,
            seed=self.seed,
            epochs=settings.epochs if training else 1,
            drop_last=training,
            skip=self.skip,
            as_of=self.facts.as_of if training else self.known_until(patterns),
            workers=self.environment.input_threads,
            pin_memory=self.environment.device.type == "cuda",
            **options,
        )

    def _judge(self, model: nn.Module, vocabulary: Vocabulary) -> list[float]:
        """The normalized entropy of the validation rows, of values the deviance, of each task: it is predicted by the
        pass that was best for it. Clicks of every row are learned sooner than conversions of the few that have them,
        and would overfit while these are learned."""
        said = predict(model, self.stream(self.config.validation, vocabulary), self.environment)
        logits, labels, mask, _ = (x.numpy() for x in said)
        return [
            self._loss(label, labels[mask[:, task], task], logits[mask[:, task], task])
            for task, label in enumerate(self.schema.labels)
        ]

    def _loss(self, label: Label, known: NDArray, said: NDArray) -> float:
        """Of the rows of all ranks, recalibrated, as it will be judged."""
        loss = partial(shared_loss, known, said, is_value=label.is_value, ranks=self.ranks)
        score = loss(Recalibration())
        if math.isfinite(score):
            return loss(shared_recalibration(known, said, is_value=label.is_value, ranks=self.ranks))
        if math.isnan(score) and not self.ranks.sum(np.isnan(said).sum(keepdims=True))[0]:
            lacking = "two different values" if label.is_value else "both a 0 and a 1"
            hint = f", up to a window of {label.window} before what they know of outcomes ends" if label.time else ""
            raise DataError(
                f"the validation files {', '.join(self.config.validation)} do not hold {lacking} of label "
                f"{label.name!r}, so no epoch can be chosen by them: give more of them{hint}"
            )
        return score


@dataclass(frozen=True)
class TrainedRanker:
    """A model, and what it says of this rank's v validation rows: of each task what its own best pass does."""

    training: RankerTraining
    result: TrainResult
    vocabulary: Vocabulary
    """What ids it knows."""
    logits: NDArray  # float32 [v, T]
    labels: NDArray  # float32 [v, T]
    mask: NDArray  # bool [v, T]
    users: NDArray  # int64 [v]

    def of_task(self, task: str) -> tuple[NDArray, NDArray, NDArray]:
        """Labels, logits and users [n] of those of these rows for which the task's label exists."""
        column = self.training.column(task)
        valid = self.mask[:, column]
        return self.labels[valid, column], self.logits[valid, column], self.users[valid]

    def losses(self, task: str) -> NDArray:  # float64 [n]
        """Of the same rows, see `row_losses`; of a task whose label is 0 or 1. A collective."""
        labels, logits, _ = self.of_task(task)
        return row_losses(labels, logits, self.training.ranks)

    def validated(self, task: str, tried: Mapping[str, float] = MappingProxyType({})) -> Validation:
        """What the task came to on those of all ranks, `tried` as given. A collective."""
        labels, logits, _ = self.of_task(task)
        return validate(
            labels,
            logits,
            is_value=self.training.schema.labels[self.training.column(task)].is_value,
            scores=[scores[self.training.column(task)] for scores in self.result.scores],
            most_passes=self.training.config.training.epochs,
            reads=bool(self.training.features.specs),
            tried=tried,
            ranks=self.training.ranks,
        )

    def test(self) -> tuple[NDArray, NDArray, NDArray, NDArray]:
        """What it says of this rank's test rows: logits, labels and mask [n, T], users [n]. A collective."""
        training = self.training
        stream = training.stream(training.config.test, self.vocabulary)
        with Pulse("the predictions of test rows", training.environment):
            said, known, mask, users = self.result.best.predict(self.result.model, stream, training.environment)
        return said.numpy(), known.numpy(), mask.numpy(), users.numpy()


def counted_tables(config: RankerSettings, data: Path, skip: Quarantine, *, told: bool) -> Tables:
    """The rows of the tables for which the schema gives none, by the ids of the training rows; which can be `told`.

    Raises:
        DataError: what `EventStream` raises.
    """
    tables = count_tables(find_files(data, config.train), ranker_schema(config, data, ()), skip)
    if told and tables:
        print(f"rankers: tables of {described(tables)} rows, by the ids of their training rows", flush=True)
    return tables


def sized(config: S, data: Path, skip: Quarantine, *, ranks: int = 1, told: bool) -> S:
    """The same with the batch size that follows from the training rows where none is given; which can be `told`.
    `ranks`: that train a ranker together.

    Raises:
        DataError: what `EventStream` raises.
    """
    files, schema = find_files(data, config.train), ranker_schema(config, data, tuple(config.tasks.values()))
    rows = check_files(files, schema) - skip.count(files)
    training = config.training.sized(rows // ranks)
    if told and not config.training.batch_size:
        steps, each = training.steps(rows // ranks), " a rank" if ranks > 1 else ""
        print(f"rankers: {rows:,} rows, so batches of {training.batch_size}{each}: {steps} a pass", flush=True)
    return replace(config, training=training)
