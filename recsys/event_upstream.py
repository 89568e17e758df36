"""Train an upstream on events: what `train_on` does for every kind but `graph`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from recsys.config import GraphConfig, TrainConfig, UpstreamConfig
from recsys.data.batch import Batch
from recsys.data.errors import DataError
from recsys.data.held_out import HeldOutBatches
from recsys.data.negatives import UniformNegatives
from recsys.data.schema import Label
from recsys.data.stream import EventStream
from recsys.evaluate.recalibration import Recalibration
from recsys.models.derm import DERM
from recsys.models.graph import GraphModel
from recsys.models.id_tables import IdTables
from recsys.models.kinds import build_upstream
from recsys.models.losses import DermTask
from recsys.models.objective import Objective
from recsys.progressive import Scored
from recsys.shared_figures import shared_loss
from recsys.surveying import Known, survey_events
from recsys.train.distributed import Environment
from recsys.train.exchange import ranks_of
from recsys.train.heartbeat import computing
from recsys.train.passes import Scores
from recsys.train.predict import Batches, predict
from recsys.train.tables import renew_rows
from recsys.train.trainer import fit
from recsys.trained import Trained
from recsys.training_set import TrainingSet


def train_on_events(
    given: TrainingSet,
    upstream: UpstreamConfig,
    training: TrainConfig,
    environment: Environment,
    *,
    out: Path,
    title: str | None,
    start: Path | None = None,
    steps: int = 0,
    judge: Callable[[nn.Module], Scores] | None = None,
) -> Trained:
    """Train a model of events, from its own start or from a checkpoint of another run: see `recsys.upstream.train_on`.
    A collective.

    Raises:
        DataError, PlanError, LossError, CheckpointError: as their rooms say.
    """
    torch.manual_seed(training.seed)
    model = build_upstream(upstream, given.schema)
    assert not isinstance(model, GraphModel)
    chooses = judge is None and start is None and training.epochs > 1
    held_out = upstream.held_out if chooses else 0.0
    known = survey_events(given, upstream, environment, held_out=held_out, started=start is not None)
    rows = known.rows // environment.world_size
    sized = training.sized(rows, steps)
    if environment.is_main:
        _tell(title, upstream, known, sized, rows, chosen=not training.batch_size)
    learned = _Training(given, known, upstream, model, sized, environment)
    transform = learned.transform()
    result = fit(
        learned.task(items=transform.items if isinstance(transform, UniformNegatives) else 0),
        learned.stream(transform),
        sized,
        environment,
        tasks=learned.labels,
        values=[label.name for label in given.schema.labels if label.is_value],
        identity=given.identity(upstream, training),
        out=out,
        start=start,
        title=title,
        before=learned.scored(out),
        begun=partial(learned.admit, first=start is None),
        after_epoch=learned.judge() if known.held.count else judge,
    )
    return Trained(
        result=result,
        batch_size=sized.batch_size,
        most=sized.epochs,
        held_out=known.held.count,
        collisions=model.vocabulary.without_row(known.seen) if known.seen else {},
    )


def _tell(
    title: str | None, upstream: UpstreamConfig, known: Known, training: TrainConfig, rows: int, *, chosen: bool
) -> None:
    """Say which batches follow from so many rows a rank, where nobody has `chosen` them otherwise, and whether a loss
    is left out."""
    if title and chosen:
        kept = f", {known.held.count:,} of them held out" if known.held.count else ""
        print(
            f"{title}: {known.rows + known.held.count:,} rows{kept}, so batches of {training.batch_size} a rank: "
            f"{training.steps(rows)} a pass",
            flush=True,
        )
    if known.frequencies is None and upstream.loss.contrastive_weight:
        print(f"{title or upstream.name}: no event is positive, nothing is contrasted", flush=True)


@dataclass(frozen=True)
class _Training:
    """A training of a model: what `fit` asks of it."""

    given: TrainingSet
    known: Known
    upstream: UpstreamConfig
    model: DERM | IdTables
    config: TrainConfig
    """With a batch size."""
    environment: Environment

    @property
    def labels(self) -> list[str]:
        """Names of the tasks."""
        return [label.name for label in self.given.schema.labels]

    def transform(self) -> Callable[[Batch], Batch]:
        """What is done to each batch: ids are given their rows, and negatives are drawn where the loss wants some."""
        network, seed = self.upstream.network, self.config.seed
        assert not isinstance(network, GraphConfig)
        resolve = partial(self.model.vocabulary.resolve, dropout=network.id_dropout, seed=seed)
        if not len(self.known.drawn):
            return resolve
        count, rank = self.upstream.loss.uniform_negatives, self.environment.rank
        return UniformNegatives(self.known.drawn, self.given.schema, count, resolve, seed=seed, rank=rank)

    def task(self, items: int) -> DermTask:
        """The model and its loss, whose negatives are drawn from so many items."""
        objective = Objective(self.given.schema.labels, self.known.facts, self.upstream.loss.value_loss)
        self.model.raise_logits(objective.levels)  # a checkpoint that is begun with has levels of its own
        return DermTask(self.model, self.upstream.loss, self.labels, self.known.frequencies, items, objective)

    def stream(self, transform: Callable[[Batch], Batch]) -> EventStream:
        """This rank's batches."""
        return EventStream(
            self.given.files,
            self.given.schema,
            batch_size=self.config.batch_size,
            rank=self.environment.rank,
            world_size=self.environment.world_size,
            shuffle_batches=self.config.shuffle_batches,
            seed=self.config.seed,
            epochs=self.config.epochs,
            transform=transform,
            skip=self.known.left_out,
            as_of=self.known.facts.as_of,
            workers=self.environment.input_threads,
            pin_memory=self.environment.device.type == "cuda",
        )

    def scored(self, folder: Path) -> Scored:
        """What the model that is begun with says of the events."""
        return Scored(
            self.given.files,
            self.given.schema,
            self.model.vocabulary.resolve,
            self.known.left_out,
            folder,
            self.environment,
            as_of=self.known.facts.as_of,
        )

    def judge(self) -> _Judge:
        """What chooses the pass, by the events that are held out."""
        batches = HeldOutBatches(
            self.given.files,
            self.given.schema,
            self.known.held,
            rank=self.environment.rank,
            world_size=self.environment.world_size,
            transform=self.model.vocabulary.resolve,
            as_of=self.known.facts.as_of,
        )
        return _Judge(batches, self.given.schema.labels, self.known.held.judged, self.environment)

    def admit(self, *, first: bool) -> None:
        """Give the training's ids their rows; those that others owned before begin anew. Raises DataError where a
        `first` one's tables are too small for them."""
        vocabulary = self.model.vocabulary
        with computing():
            freed = vocabulary.admit(self.known.seen, self.known.newest)
        if not isinstance(self.model, IdTables):
            return
        for owner, rows in freed.items():
            renew_rows(self.model.own_table(owner), rows, self.config.seed)
        if first:
            self._check_room()

    def _check_room(self) -> None:
        name, most, vocabulary = self.upstream.name, self.upstream.contrastive.max_collisions, self.model.vocabulary
        for owner, share in vocabulary.without_row(self.known.seen).items():
            if share > most:
                feature, ids = vocabulary.features[owner], len(self.known.seen[owner])
                raise DataError(
                    f"{share:.1%} of the {ids:,} {owner} ids of upstream {name!r} have no row of their own, more than "
                    f"contrastive.max_collisions = {most:g}: feature {feature.name!r} has rows = {feature.rows:,}; "
                    f"give it {2 * ids:,}, or leave `rows` out"
                )


@dataclass(frozen=True)
class _Judge:
    """Scores a model by the events that are held out: their normalized entropy, of values deviance, mean over tasks. A
    collective."""

    batches: Batches
    labels: Sequence[Label]
    judged: Sequence[int]
    """Those of the labels that are scored."""
    environment: Environment

    def __call__(self, model: nn.Module) -> tuple[float]:
        logits, labels, mask, _ = (x.numpy() for x in predict(model, self.batches, self.environment))
        scores = [
            shared_loss(
                labels[mask[:, x], x],
                logits[mask[:, x], x],
                Recalibration(),
                is_value=self.labels[x].is_value,
                ranks=ranks_of(self.environment),
            )
            for x in self.judged
        ]
        return (float(np.mean(scores)),)
