"""The ranker's job: train rankers that read the store's vectors, and keep what they predict.

This is what `launchers/downstream.py` starts. Each trained ranker leaves one file of test predictions, beside what it
came to on the validation rows, so a run that was stopped goes on with the rankers that are missing.

The validation rows choose three things, the test rows none: the epoch, whether the ranker reads its arm's vectors at
all, and the recalibration that is applied to the predictions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from embedding_store import EmbeddingStore
from recsys.atomic import whole_file
from recsys.config import RankerConfig, RankerSettings
from recsys.data.errors import DataError
from recsys.data.files import find_files
from recsys.data.quarantine import NOTHING, Quarantine
from recsys.data.scan import Findings, Part
from recsys.data.seen import read_ids
from recsys.data.sizes import Tables, with_tables
from recsys.data.stream import EventStream
from recsys.dates import UNTIMED
from recsys.downstream.features import StoreFeatures
from recsys.downstream.training import RankerTraining, TrainedRanker, sized
from recsys.downstream.validation import REFERENCE, Validation, gain, named, row_losses, validate
from recsys.folders import store_folder
from recsys.screening import screen
from recsys.source import ranker_schema
from recsys.stages import stage
from recsys.train.distributed import Environment, process_group


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
    history: int = 0
    """Versions of each series whose mean it reads beside the newest; 0: none."""

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
                yield Ranker(config.name, task, arm.name, config.series(arm, seed), seed, arm.once, arm.history)


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
        check_visible(series, config, data, opened, skip)
        config, tables = sized(config, data, skip, told=part == 0)
        arms = [list(seeds) for _, seeds in groupby(enumerate(rankers, start=1), key=lambda x: (x[1].task, x[1].arm))]
        for number, ranker in (each for arm in arms[part::parts] for each in arm):
            if ranker.path(out).is_file():
                continue
            score = train_ranker(ranker, config, data, out, environment, skip, tables, opened)
            which = f"{ranker.job}/{ranker.task}/{ranker.arm}/seed {ranker.seed}"
            print(f"ranker {number}/{len(rankers)} {which}: validation ne {score:.4f}", flush=True)


def screen_splits(config: RankerConfig, data: Path, out: Path, environment: Environment | None = None) -> Findings:
    """Find what is wrong with the rows of a job's train, validation and test files; raises what `screen` raises. The
    environment's ranks share the reading; None: this process alone.

    A row that one task's label forbids is left out for all of them, so that all have the same rows.
    """
    schema = ranker_schema(config, data, tuple(config.tasks.values()))
    splits = (config.train, config.validation, config.test)
    parts = [Part(files=find_files(data, patterns), schema=schema) for patterns in splits]
    return screen(out, f"rankers-{config.name}", parts, data, environment)


def check_visible(
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
    features = StoreFeatures(store, ranker.series, config.publish_delay_ms, once=ranker.once, history=ranker.history)
    schema = with_tables(ranker_schema(config, data, (label,)), tables)
    seen = read_ids(find_files(data, config.train), schema, skip)
    training = RankerTraining(ranker.seed, schema, config, data, features, seen, environment, skip)
    trainings = {True: training, False: replace(training, features=StoreFeatures(store, ()))}
    choices, reference = readings(ranker, config, out), _finished(ranker, out)
    trained = {reads: trainings[reads].train() for reads in choices if reads or reference is None}
    tried = {named(reads): min(model.result.scores) for reads, model in trained.items()}
    losses = {reads: row_losses(*model.of_task()[:2]) for reads, model in trained.items()}
    if reference is not None and False in choices:
        tried[named(False)] = reference.tried[named(False)]
        losses[False] = _reference(ranker).read(out)["validation_losses"]
    chosen = choices[0]
    if len(choices) > 1:
        gained, tried["error"] = gain(losses[False], losses[True], trained[True].of_task()[2])
        chosen = gained > tried["error"]
    if chosen in trained:
        return _write(trained[chosen], ranker, out, tried)
    assert reference is not None
    replace(reference, tried=tried).save(ranker.validation(out))
    write_predictions(ranker.path(out), **_reference(ranker).read(out))
    return reference.ne


def _reference(ranker: Ranker) -> Ranker:
    """The ranker of the same task and seed that reads no vectors."""
    return replace(ranker, arm=REFERENCE, series=(), once=False, history=0)


def _finished(ranker: Ranker, out: Path) -> Validation | None:
    """What the ranker without vectors came to, if this is another one and that one is done: it is not trained again."""
    reference = _reference(ranker)
    if reference == ranker or not reference.path(out).is_file():
        return None
    return Validation.load(reference.validation(out))


def _write(trained: TrainedRanker, ranker: Ranker, out: Path, tried: Mapping[str, float]) -> float:
    """Recalibrate it on the validation rows, predict the test rows once and write both; its validation NE."""
    training = trained.training
    labels, logits, _ = trained.of_task()
    found = validate(
        labels,
        logits,
        scores=trained.result.scores,
        most_passes=training.config.training.epochs,
        reads=bool(training.features.specs),
        tried=tried,
    )
    found.save(ranker.validation(out))
    tested = training.predict(trained.result.model, trained.vocabulary, training.config.test)
    said, known, mask, users = (x.numpy() for x in tested)
    write_predictions(
        ranker.path(out),
        logits=found.recalibration(said[:, 0]).astype(np.float32),
        labels=known[:, 0],
        mask=mask[:, 0],
        users=users,
        validation_losses=row_losses(labels, logits),
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
