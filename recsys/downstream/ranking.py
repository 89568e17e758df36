"""The ranker's job: train rankers that read the store's vectors, and keep what they predict.

This is what `launchers/downstream.py` starts. Every ranker is trained by all ranks together, as one that is deployed
is, but with a model for each task. It leaves a file of test predictions for each task, beside what it came to on the
validation rows, so a run that was stopped goes on with the rankers that are missing.

The validation rows choose three things, the test rows none: the pass, whether a task is ranked with the arm's vectors
at all, and the recalibration that is applied to the predictions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
from recsys.downstream.validation import REFERENCE, Validation, gain, named
from recsys.folders import store_folder
from recsys.screening import screen
from recsys.source import ranker_schema, refuse_values
from recsys.stages import stage
from recsys.train.distributed import Environment, broadcast, process_group


@dataclass(frozen=True)
class Ranker:
    """One ranker of a job, for all of its tasks, and the files its predictions go to."""

    job: str
    """Name of the job that trains it."""
    arm: str
    series: tuple[str, ...]
    """The series it reads."""
    seed: int
    once: bool = False
    """Whether it reads the series' first snapshots alone."""
    history: int = 0
    """Versions of each series that it reads, pooled, beside the newest; 0: none."""
    pooling: str = "mean"
    """How they are pooled."""

    def path(self, out: Path, task: str) -> Path:
        """Where its test predictions of a task go."""
        return out / "downstream" / self.job / task / f"{self.arm}-{self.seed}.npz"

    def read(self, out: Path, task: str) -> dict[str, NDArray]:
        """What `write_predictions` has put there."""
        return read_predictions(self.path(out, task))

    def validation(self, out: Path, task: str) -> Path:
        """Where its figures on the validation rows go."""
        return self.path(out, task).with_suffix(".json")

    def is_done(self, out: Path, tasks: Iterable[str]) -> bool:
        """Whether it has left its predictions of all these tasks."""
        return all(self.path(out, task).is_file() for task in tasks)


def all_rankers(config: RankerConfig) -> Iterator[Ranker]:
    """Every ranker of a job."""
    for arm in config.arms:
        for seed in config.seeds:
            reads = (arm.once, arm.history, arm.history_pooling)
            yield Ranker(config.name, arm.name, config.series(arm, seed), seed, *reads)


def stage_name(config: RankerConfig) -> str:
    """Of the job's stage in a run."""
    return f"downstream-{config.name}"


def train_rankers(config: RankerConfig, data: Path, out: Path, store: str | Path | None = None) -> None:
    """Train every ranker of a job that has not left its predictions yet, one after the other. Every rank calls it: all
    ranks train each ranker together, as they train one that is deployed (recsys/bundle/write.py).

    Args:
        config: of the job.
        data: folder of the events.
        out: folder of the run.
        store: the store that they read; None: the run's own.

    Raises:
        SchemaError, DataError, KeyError: a file, feature, label or series is not there.
    """
    refuse_values(ranker_schema(config, data, tuple(config.tasks.values())))
    opened = EmbeddingStore(store or store_folder(out))
    rankers = list(all_rankers(config))
    with process_group() as environment, stage(out, stage_name(config), environment):
        skip = screen_splits(config, data, out, environment).quarantine
        series = list(dict.fromkeys(name for ranker in rankers for name in ranker.series))
        check_visible(series, config, data, opened, skip)
        config, tables = sized(config, data, skip, ranks=environment.world_size, told=environment.is_main)
        for number, ranker in enumerate(rankers, start=1):
            if broadcast(ranker.is_done(out, config.tasks), environment):
                continue
            scores = train_ranker(ranker, config, data, out, environment, skip, tables, opened)
            if environment.is_main:
                said = ", ".join(f"{task} {score:.4f}" for task, score in scores.items())
                which = f"{ranker.job}/{ranker.arm}/seed {ranker.seed}"
                print(f"ranker {number}/{len(rankers)} {which}: validation ne {said}", flush=True)


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
) -> dict[str, float]:
    """Train one ranker on all ranks together, with its vectors and without; choose by the validation rows the pass, and
    for each task which of the two predicts the test rows, recalibrated, once; write it. A collective.

    Each task is learned by a model of its own, until that gets no better at it: a lift counts over the best that a team
    would have without vectors. Over the entire space all are learned by one.

    Args:
        ranker: which one.
        config: of its job.
        data: folder of the events.
        out: folder of the run.
        environment: this rank.
        skip: rows that are left out.
        tables: the sizes of tables for which the schema gives none.
        store: the store that is read; None: that of the run.

    Returns:
        task -> its validation NE.
    """
    store, scores = store or EmbeddingStore(store_folder(out)), dict[str, float]()
    alone = [{task: label} for task, label in config.tasks.items()]
    for tasks in [config.tasks] if config.entire_space else alone:
        scores |= _train(ranker, replace(config, tasks=tasks), data, out, environment, skip, tables, store)
    return scores


def _train(
    ranker: Ranker,
    config: RankerSettings,
    data: Path,
    out: Path,
    environment: Environment,
    skip: Quarantine,
    tables: Tables,
    store: EmbeddingStore,
) -> dict[str, float]:
    """One model of these tasks with vectors, one without; see `train_ranker`."""
    features = StoreFeatures(
        store,
        ranker.series,
        config.publish_delay_ms,
        once=ranker.once,
        history=ranker.history,
        pooling=ranker.pooling,
    )
    schema = with_tables(ranker_schema(config, data, tuple(config.tasks.values())), tables)
    seen = read_ids(find_files(data, config.train), schema, skip)
    training = RankerTraining(ranker.seed, schema, config, data, features, seen, environment, skip)
    trainings = {True: training, False: replace(training, features=StoreFeatures(store, ()))}
    options, there = broadcast((readings(ranker, config, out), _has_reference(ranker, config, out)), environment)
    wanted = {reads for each in options.values() for reads in each}
    models = {reads: trainings[reads].train() for reads in (True, False) if reads in wanted and (reads or not there)}
    chosen = {}
    if environment.is_main:  # who alone need see what was written before
        chosen = {task: _choose(ranker, task, options[task], models, out) for task in config.tasks}
    chosen = broadcast(chosen, environment)
    used = {choice.reads for choice in chosen.values()}
    tested = {reads: model.test() for reads, model in models.items() if reads in used}
    scores = {}
    if environment.is_main:
        for task, choice in chosen.items():
            if choice.reads in models:
                scores[task] = _write(models[choice.reads], tested[choice.reads], ranker, task, out, choice)
            else:
                scores[task] = _take_over(ranker, task, out, choice)
    return broadcast(scores, environment)


@dataclass(frozen=True)
class Choice:
    """What the validation rows chose for one task of a ranker."""

    reads: bool
    """Whether it is ranked with vectors."""
    tried: Mapping[str, float]
    """See `Validation.tried`."""


def _choose(
    ranker: Ranker, task: str, readings: tuple[bool, ...], models: Mapping[bool, TrainedRanker], out: Path
) -> Choice:
    """With vectors if they lower the task's validation NE by more than the standard error of the difference: of two
    models that cannot be told apart, the simpler one (Breiman et al., Classification and Regression Trees, 1984,
    3.4.3)."""
    losses = {reads: models[reads].losses(task) for reads in readings if reads in models}
    if False in readings and False not in models:
        losses[False] = _reference(ranker).read(out, task)["validation_losses"]
    tried = {named(reads): float(losses[reads].mean()) for reads in readings}
    if len(readings) == 1:
        return Choice(readings[0], tried)
    gained, error = gain(losses[False], losses[True], models[True].of_task(task)[2])
    return Choice(gained > error, tried | {"error": error})


def _reference(ranker: Ranker) -> Ranker:
    """The ranker of the same seed that reads no vectors."""
    return replace(ranker, arm=REFERENCE, series=(), once=False, history=0, pooling="mean")


def _has_reference(ranker: Ranker, config: RankerSettings, out: Path) -> bool:
    """Whether the ranker without vectors is another one and done: it is not trained again."""
    reference = _reference(ranker)
    return reference != ranker and reference.is_done(out, config.tasks)


def _write(
    trained: TrainedRanker, tested: Sequence[NDArray], ranker: Ranker, task: str, out: Path, choice: Choice
) -> float:
    """Keep a task's figures on the validation rows, and its recalibrated predictions of the test rows; its NE."""
    found, column = trained.validated(task, choice.tried), trained.training.column(task)
    logits, labels, mask, users = tested
    found.save(ranker.validation(out, task))
    write_predictions(
        ranker.path(out, task),
        logits=found.recalibration(logits[:, column]).astype(np.float32),
        labels=labels[:, column],
        mask=mask[:, column],
        users=users,
        validation_losses=trained.losses(task),
    )
    return found.ne


def _take_over(ranker: Ranker, task: str, out: Path, choice: Choice) -> float:
    """Keep what the ranker without vectors has left as this one's, which reads none; its NE."""
    reference = _reference(ranker)
    found = Validation.load(reference.validation(out, task))
    replace(found, tried=choice.tried).save(ranker.validation(out, task))
    write_predictions(ranker.path(out, task), **reference.read(out, task))
    return found.ne


def readings(ranker: Ranker, config: RankerSettings, out: Path) -> dict[str, tuple[bool, ...]]:
    """Task -> whether it is to be learned with the ranker's vectors, without any, or both, of which the validation rows
    choose: so vectors that do not pay there do no harm elsewhere. Later seeds follow the first one of their arm."""
    first = replace(ranker, seed=config.seeds[0])
    if not ranker.series:
        return dict.fromkeys(config.tasks, (False,))
    if ranker != first and first.is_done(out, config.tasks):
        return {task: (Validation.load(first.validation(out, task)).reads,) for task in config.tasks}
    return dict.fromkeys(config.tasks, (True, False))


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
