"""The ranker's job: train rankers that read the store's vectors, and keep what they predict.

This is what `launchers/downstream.py` starts. Every ranker is one model of all tasks, trained as one that is deployed
is. It leaves a file of test predictions for each task, beside what it came to on the validation rows, so a run that was
stopped goes on with the rankers that are missing.

The validation rows choose three things, the test rows none: the pass, whether a task is ranked with the arm's vectors
at all, and the recalibration that is applied to the predictions.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from embedding_store import EmbeddingStore
from recsys.config import RankerConfig, RankerSettings
from recsys.data.files import find_files
from recsys.data.quarantine import NOTHING, Quarantine
from recsys.data.ranks import Ranks
from recsys.data.scan import Findings, Part
from recsys.data.seen import read_ids
from recsys.data.sizes import Tables, key_of, with_tables
from recsys.downstream.features import StoreFeatures
from recsys.downstream.predictions import (
    copy_predictions,
    count_losses,
    read_losses,
    read_predictions,
    write_predictions,
)
from recsys.downstream.training import RankerTraining, TrainedRanker, counted_tables, sized
from recsys.downstream.validation import REFERENCE, Validation, gain, mean, named
from recsys.downstream.visible import check_visible
from recsys.folders import store_of
from recsys.models.vocabulary import own_ids
from recsys.screening import screen
from recsys.source import ranker_schema, refuse_unowned, refuse_values
from recsys.stages import stage
from recsys.train.distributed import Environment, barrier, broadcast, process_group
from recsys.train.exchange import agreed
from recsys.train.planning import rank_memory

ALONE = 0.1
"""Of a rank's memory, that the tables of a ranker may fill which it trains alone."""


@dataclass(frozen=True)
class Ranker:
    """One ranker of a job, which learns all of its tasks, and the files its predictions go to."""

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
    tables: tuple[str, ...] = ()
    """What it learns in place of each series, see `ArmConfig.tables`."""

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


def all_rankers(config: RankerConfig) -> list[Ranker]:
    """Every ranker of a job, each after those that it is held against: those without vectors come first, and every arm
    of a seed before the next seed."""
    found = [
        Ranker(
            config.name,
            arm.name,
            config.series(arm, seed),
            seed,
            arm.once,
            arm.history,
            arm.history_pooling,
            arm.learned(),
        )
        for seed in config.seeds
        for arm in config.arms
    ]
    return sorted(found, key=lambda ranker: bool(ranker.series))


def stage_name(config: RankerConfig) -> str:
    """Of the job's stage in a run."""
    return f"downstream-{config.name}"


def train_rankers(config: RankerConfig, data: Path, out: Path, store: str | Path | None = None) -> None:
    """Train every ranker of a job that has not left its predictions yet. Every rank calls it.

    A ranker is trained as one that is deployed is (recsys/bundle/write.py), by all ranks together; where a rank can
    hold it alone, each rank trains rankers of its own beside the others', which is the faster: no rank waits for
    another at every step.

    Args:
        config: of the job.
        data: folder of the events.
        out: folder of the run.
        store: the store that they read; None: the run's own.

    Raises:
        SchemaError, DataError, KeyError: a file, feature, label or series is not there.
    """
    schema = ranker_schema(config, data, tuple(config.tasks.values()))
    refuse_values(schema)
    refuse_unowned(config, schema)
    opened, begun = EmbeddingStore(store or store_of(out)), dist.is_initialized()
    with process_group() as environment:
        skip = screen_splits(config, data, out, environment).quarantine
        series = list(dict.fromkeys(name for ranker in all_rankers(config) for name in ranker.series))
        check_visible(series, config, data, opened, skip)
        tables = counted_tables(config, data, skip, told=environment.is_main)
        small = table_bytes(config, data, tables, opened) <= ALONE * rank_memory(environment)
        apart = environment.world_size > 1 and not begun and small and not config.spread_vectors
        if apart and environment.is_main:
            print(f"rankers: one each on {environment.world_size} ranks; told of here are those of rank 0", flush=True)
        barrier()
        if not apart:
            with stage(out, stage_name(config), environment):
                _train_all(config, data, out, environment, skip, tables, opened)
    if apart:
        part, parts = environment.rank, environment.world_size
        with process_group(alone=True) as alone, stage(out, stage_name(config), alone, part=part, parts=parts):
            _train_all(config, data, out, alone, skip, tables, opened, part, parts)


def table_bytes(config: RankerConfig, data: Path, tables: Tables, store: EmbeddingStore) -> int:
    """What the tables of a ranker and their optimizer take, those that it learns in place of series included: of the
    arm that has most of them."""
    schema = with_tables(ranker_schema(config, data, ()), tables)
    rows = {key_of(feature): feature.rows for feature in schema.features}
    own = {owner: feature.rows for owner, feature in own_ids(schema).items()}
    learned = [
        sum(
            own[name.split("_", 1)[0]] * (store.series(name).dim + 1)
            for name, table in zip(config.series(arm, config.seeds[0]), arm.learned(), strict=True)
            if table
        )
        for arm in config.arms
        if arm.tables
    ]
    return 4 * (sum(rows.values()) * (config.network.embedding_dim + 1) + max(learned, default=0))


def _train_all(
    config: RankerConfig,
    data: Path,
    out: Path,
    environment: Environment,
    skip: Quarantine,
    tables: Tables,
    store: EmbeddingStore,
    part: int = 0,
    parts: int = 1,
) -> None:
    """Train every `parts`-th ranker from number `part` on; the other parts train the others at the same time."""
    config = sized(config, data, skip, ranks=environment.world_size, told=environment.is_main and not part)
    rankers = all_rankers(config)
    for number, ranker in enumerate(rankers[part::parts]):
        if broadcast(ranker.is_done(out, config.tasks), environment):
            continue
        if parts > 1:
            _wait_for(ranker, rankers, out, config)
        scores = train_ranker(ranker, config, data, out, environment, skip, tables, store)
        if environment.is_main:
            said = ", ".join(f"{task} {score:.4f}" for task, score in scores.items())
            which = f"{ranker.job}/{ranker.arm}/seed {ranker.seed}"
            print(f"ranker {part + number * parts + 1}/{len(rankers)} {which}: validation ne {said}", flush=True)


def _wait_for(ranker: Ranker, rankers: Sequence[Ranker], out: Path, config: RankerConfig) -> None:
    """Until those that a ranker is held against are done: without vectors of its seed, and of its arm's first seed.
    Where the part that trains them fails, the launcher stops this one too."""
    for other in rankers:
        first = other.arm == ranker.arm and other.seed == config.seeds[0]
        while (first or other == _reference(ranker)) and other != ranker and not other.is_done(out, config.tasks):
            time.sleep(0.1)


def screen_splits(config: RankerConfig, data: Path, out: Path, environment: Environment | None = None) -> Findings:
    """Find what is wrong with the rows of a job's train, validation and test files; raises what `screen` raises. The
    environment's ranks share the reading; None: this process alone.

    A row that one task's label forbids is left out for all of them, so that all have the same rows.
    """
    schema = ranker_schema(config, data, tuple(config.tasks.values()))
    splits = (config.train, config.validation, config.test)
    parts = [Part(files=find_files(data, patterns), schema=schema) for patterns in splits]
    return screen(out, f"rankers-{config.name}", parts, data, environment)


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

    All tasks are learned by one model, as in a bundle, each predicted by the pass that was best for it.

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
    store = store or EmbeddingStore(store_of(out))
    features = StoreFeatures(
        store,
        ranker.series,
        config.publish_delay_ms,
        once=ranker.once,
        history=ranker.history,
        pooling=ranker.pooling,
        tables=ranker.tables,
        spread=config.spread_vectors,
        device=environment.device,
        gpu_bytes=config.gpu_bytes,
    )
    schema = with_tables(ranker_schema(config, data, tuple(config.tasks.values())), tables)
    seen = read_ids(find_files(data, config.train), schema, skip)
    training = RankerTraining(ranker.seed, schema, config, data, features, seen, environment, skip)
    trainings = {True: training, False: replace(training, features=StoreFeatures(store, ()))}
    options, there = broadcast((readings(ranker, config, out), _has_reference(ranker, config, out)), environment)
    wanted = {reads for each in options.values() for reads in each}
    models = {reads: trainings[reads].train() for reads in (True, False) if reads in wanted and (reads or not there)}
    chosen = {task: _choose(ranker, task, options[task], models, out, training.ranks) for task in config.tasks}
    used = {choice.reads for choice in chosen.values()}
    tested = {reads: model.test() for reads, model in models.items() if reads in used}
    scores = {}
    for task, choice in chosen.items():
        if choice.reads in models:
            scores[task] = _write(models[choice.reads], tested[choice.reads], ranker, task, out, choice)
        else:
            scores[task] = agreed(partial(_take_over, ranker, task, out, choice), environment)
    return scores


@dataclass(frozen=True)
class Choice:
    """What the validation rows chose for one task of a ranker."""

    reads: bool
    """Whether it is ranked with vectors."""
    tried: Mapping[str, float]
    """See `Validation.tried`."""


def _choose(
    ranker: Ranker,
    task: str,
    readings: tuple[bool, ...],
    models: Mapping[bool, TrainedRanker],
    out: Path,
    ranks: Ranks,
) -> Choice:
    """With vectors if they lower the task's validation NE by more than the standard error of the difference: of two
    models that cannot be told apart, the simpler one (Breiman et al., Classification and Regression Trees, 1984,
    3.4.3). A collective."""
    losses = {reads: models[reads].losses(task) for reads in readings if reads in models}
    if False in readings and False not in models:
        losses[False] = _share_of_losses(_reference(ranker).path(out, task), losses.get(True), ranks)
    tried = {named(reads): mean(losses[reads], ranks) for reads in readings}
    if len(readings) == 1:
        return Choice(readings[0], tried)
    gained, error = gain(losses[False], losses[True], models[True].of_task(task)[2], ranks)
    return Choice(gained > error, tried | {"error": error})


def _share_of_losses(path: Path, like: NDArray | None, ranks: Ranks) -> NDArray:
    """What a ranker that was trained before lost on this rank's validation rows, as many as `like` has; None: on any
    share of them, each rank's another. A collective."""
    if like is None:
        rows = count_losses(path)
        return read_losses(path, rows * ranks.rank // ranks.world_size, rows * (ranks.rank + 1) // ranks.world_size)
    (counts,) = ranks.gather([np.array([len(like)])])
    stop = int(counts[: ranks.rank + 1].sum())
    return read_losses(path, stop - len(like), stop)


def _reference(ranker: Ranker) -> Ranker:
    """The ranker of the same seed that reads no vectors."""
    return replace(ranker, arm=REFERENCE, series=(), once=False, history=0, pooling="mean", tables=())


def _has_reference(ranker: Ranker, config: RankerSettings, out: Path) -> bool:
    """Whether the ranker without vectors is another one and done: it is not trained again."""
    reference = _reference(ranker)
    return reference != ranker and reference.is_done(out, config.tasks)


def _write(
    trained: TrainedRanker, tested: Sequence[NDArray], ranker: Ranker, task: str, out: Path, choice: Choice
) -> float:
    """Keep a task's figures on the validation rows, and its recalibrated predictions of the test rows; its NE. A
    collective."""
    found, column = trained.validated(task, choice.tried), trained.training.column(task)
    logits, labels, mask, users = tested
    if trained.training.environment.is_main:
        found.save(ranker.validation(out, task))
    write_predictions(
        ranker.path(out, task),
        logits=found.recalibration(logits[:, column]).astype(np.float32),
        labels=labels[:, column],
        mask=mask[:, column],
        users=users,
        validation_losses=trained.losses(task),
        environment=trained.training.environment,
    )
    return found.ne


def _take_over(ranker: Ranker, task: str, out: Path, choice: Choice) -> float:
    """Keep what the ranker without vectors has left as this one's, which reads none; its NE."""
    reference = _reference(ranker)
    found = Validation.load(reference.validation(out, task))
    replace(found, tried=choice.tried).save(ranker.validation(out, task))
    copy_predictions(reference.path(out, task), ranker.path(out, task))
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
