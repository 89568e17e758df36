"""Train one ranker on all ranks together and leave it as a bundle: the job behind `recsys bundle`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from embedding_store import EmbeddingStore
from recsys.atomic import new_folder
from recsys.bundle.manifest import (
    COMPILED,
    EXPECTED_VALUE,
    PROBABILITY,
    PROGRAM,
    SCHEMA,
    VOCABULARY,
    Manifest,
    TaskFacts,
)
from recsys.bundle.pins import PinnedFeatures, pin
from recsys.bundle.program import Inputs, RankerProgram, compile_program, export
from recsys.bundle.start import Forecast, Start, forecasts
from recsys.config import ConfigError, RankerConfig, to_dict
from recsys.data.files import check_files, find_files
from recsys.data.quarantine import Quarantine
from recsys.data.schema import Schema
from recsys.data.seen import read_ids
from recsys.data.sizes import with_tables
from recsys.data.stream import EventStream
from recsys.downstream.features import StoreFeatures
from recsys.downstream.ranking import screen_splits
from recsys.downstream.training import RankerTraining, TrainedRanker, counted_tables, sized
from recsys.downstream.visible import check_visible
from recsys.evaluate.measures import measures
from recsys.folders import bundle_folder
from recsys.identity import code_version, effective, flatten, identify_files
from recsys.models.ranker import Ranker
from recsys.models.vocabulary import Vocabulary
from recsys.sealed import fingerprint
from recsys.source import ranker_schema, refuse_unowned
from recsys.stages import exclusive, stage
from recsys.train import checkpoint
from recsys.train.checkpoint import load_model
from recsys.train.distributed import Environment, barrier, process_group
from recsys.train.heartbeat import beat
from recsys.train.tables import allocate
from recsys.train.watch import Pulse

_EXAMPLE_ROWS = 8
"""Rows that the program is traced with."""
_WITHOUT_EFFECT = ("name", "arms", "seeds", "test", "max_ne", "spread_vectors", "gpu_bytes")
"""What may change while a ranker is trained."""


def stage_name(config: RankerConfig, arm: str) -> str:
    """Of the job's stage in a run."""
    return f"bundle-{config.name}-{arm}"


def train_bundle(
    config: RankerConfig,
    arm: str,
    data: Path,
    out: Path,
    store: str,
    *,
    compiled: bool = False,
    start: Path | None = None,
) -> None:
    """Train the ranker of one arm, of all tasks and the first seed, and write `out/bundle`. Every rank calls it.

    Checkpoints and figures lie in `out/training`; the same command goes on from there. The validation rows choose the
    pass and fit the recalibration of each task. No test file is opened.

    Args:
        config: the rankers.
        arm: whose series are read.
        data: folder of the events.
        out: folder of the work and of the bundle.
        store: path or URL of the store that is read; its newest versions are pinned.
        compiled: also compile the program for this kind of device.
        start: `out` of an earlier ranker of the same arm, to go on from with the rows of this config.

    Raises:
        BundleError: no versions can be pinned, or the earlier ranker is of other tasks or other vectors.
        ConfigError: no such arm, or a sequence without a length that a Transformer is to read.
        SchemaError, DataError, KeyError, PlanError, LossError, CheckpointError: as their rooms say.
    """
    names, opened = config.series(config.arm(arm), config.seeds[0]), EmbeddingStore(store)
    history, pooling = config.arm(arm).history, config.arm(arm).history_pooling
    pins, folder = pin(opened, names, history), out / "training"
    earlier = None if start is None else Start(start)
    if earlier is not None:
        earlier.check(config.arm(arm), tuple(config.tasks), pins)
    schema = ranker_schema(config, data, tuple(config.tasks.values()))
    _check_lengths(schema, config)
    refuse_unowned(config, schema)
    with (
        process_group() as environment,
        exclusive(folder, environment),
        stage(out, stage_name(config, arm), environment),
    ):
        skip = screen_splits(config, data, out, environment).quarantine
        with Pulse("a survey of training rows", environment):
            check_visible(names, config, data, opened, skip)
            features = StoreFeatures(
                opened,
                names,
                config.publish_delay_ms,
                history=history,
                pooling=pooling,
                tables=config.arm(arm).learned(),
                spread=config.spread_vectors,
                device=environment.device,
                gpu_bytes=config.gpu_bytes,
            )
            training = _training(config, features, data, environment, skip, earlier)
            identity = _identity(config, features, data, skip, earlier)
        before = None if earlier is None else Forecast(earlier, training, folder, config.max_ne)
        begin = None if earlier is None else earlier.checkpoint
        trained = training.train(folder, title=f"ranker {config.name}", identity=identity, start=begin, before=before)
        with Pulse("a bundle", environment):
            tasks = _facts(trained, config)
            if environment.is_main:
                read = PinnedFeatures(opened, pins, history, pooling, torch.device("cpu"))
                _write(trained, config, tasks, arm, read, out, opened, compiled, earlier)
            barrier()


def _check_lengths(schema: Schema, config: RankerConfig) -> None:
    """A program's Transformer pads every sequence to a length that is known when it is traced."""
    endless = [x.name for x in schema.features if x.kind == "sequence" and not x.max_length]
    if endless and config.network.kind != "dlrm":
        raise ConfigError(
            f"sequence {endless[0]!r} has no max_length in {config.schema}: give it one, or choose network.kind = "
            '"dlrm"'
        )


def _training(
    config: RankerConfig,
    features: StoreFeatures,
    data: Path,
    environment: Environment,
    skip: Quarantine,
    earlier: Start | None,
) -> RankerTraining:
    told = environment.is_main
    config = sized(config, data, skip, ranks=environment.world_size, told=told)
    tables = counted_tables(config, data, skip, told=told) if earlier is None else earlier.tables
    schema = with_tables(ranker_schema(config, data, tuple(config.tasks.values())), tables)
    return RankerTraining(
        seed=config.seeds[0],
        schema=schema,
        config=config,
        data=data,
        features=features,
        seen=read_ids(find_files(data, config.train), schema, skip),
        environment=environment,
        skip=skip,
        started=earlier is not None,
    )


def _identity(
    config: RankerConfig, features: StoreFeatures, data: Path, skip: Quarantine, earlier: Start | None
) -> dict[str, dict[str, str]]:
    """What a training is of: a checkpoint of something else is refused. The store's newer versions are no part of it:
    they are read by rows of later times alone."""
    files = find_files(data, (config.schema, *config.train, *config.validation))
    settings = effective(flatten(to_dict(config)), _WITHOUT_EFFECT)
    return {
        "files": identify_files(files, data),
        "config": settings
        | {"series": ", ".join(f"{spec.name} {spec.table}".strip() for spec in features.specs)}
        | (earlier.identity() if earlier else {}),
        "quarantine": {path.relative_to(data).as_posix(): f"rows {x.tolist()}" for path, x in skip.rows.items()},
    }


def _write(
    trained: TrainedRanker,
    config: RankerConfig,
    tasks: tuple[TaskFacts, ...],
    arm: str,
    features: PinnedFeatures,
    out: Path,
    store: EmbeddingStore,
    compiled: bool,
    earlier: Start | None,
) -> None:
    """The bundle of a trained ranker, whole or not at all."""
    training, passes = trained.training, trained.result.best.numbers
    schema, device = training.schema.select(labels=()), training.environment.device
    rankers = {number: _ranker_of(trained, number, out / "training") for number in sorted(set(passes))}
    program = RankerProgram(
        list(rankers.values()),
        [list(rankers).index(number) for number in passes],
        [x.recalibration for x in tasks],
        [x.is_value for x in tasks],
    ).eval()
    vocabulary = rankers[passes[0]].vocabulary  # the ids are those of all passes
    example = _example(training, schema, features, vocabulary)
    with new_folder(bundle_folder(out)) as folder:
        exported = export(program, example)
        beat()
        torch.export.save(exported, folder / PROGRAM)
        beat()
        if compiled:
            compile_program(exported, folder / COMPILED, device)
            beat()
        schema.save(folder / SCHEMA)
        owners = {owner: marks.numpy() for owner, marks in vocabulary.state().items()}
        np.savez(folder / VOCABULARY, allow_pickle=False, **owners)
        files = {path.name: fingerprint(path) for path in sorted(folder.iterdir())}
        Manifest(
            name=config.name,
            arm=arm,
            history=features.history,
            history_pooling=features.pooling,
            tasks=tasks,
            pins=features.pins,
            store=store.location,
            training=_about(trained, out / "training", earlier),
            compiled=device.type if compiled else "",
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            files=files,
        ).save(folder)


def _ranker_of(trained: TrainedRanker, number: int, folder: Path) -> Ranker:
    """As it was after one of the best passes."""
    ranker = trained.training.model()
    load_model(
        checkpoint.at(folder / "checkpoints", trained.result.ends[number]), allocate(trained.training.task(ranker))
    )
    beat()
    return ranker


def _facts(trained: TrainedRanker, config: RankerConfig) -> tuple[TaskFacts, ...]:
    """What each task's output is, with the recalibration that the validation rows ask for. A collective."""
    facts = []
    for name, label in config.tasks.items():
        found, learned = trained.validated(name), trained.training.schema.label(label)
        judged = measures(is_value=learned.is_value)
        measured = {
            judged.loss_name: found.ne,
            judged.ranking_name: found.auc,
            **{key: getattr(found, key) for key in ("calibration", "rows", "positives")},
        }
        facts.append(
            TaskFacts(
                name=name,
                label=label,
                kind=EXPECTED_VALUE if learned.is_value else PROBABILITY,
                scale=found.scale,
                bias=found.bias,
                kept_negatives=learned.kept_negatives,
                validation=measured,
            )
        )
    return tuple(sorted(facts, key=lambda fact: trained.training.column(fact.name)))


def _about(trained: TrainedRanker, folder: Path, earlier: Start | None) -> dict[str, object]:
    training, scores = trained.training, trained.result.scores
    files = find_files(training.data, training.config.train)
    rows = check_files(files, training.schema) - training.skip.count(files)
    return {
        "rows": rows,
        "passes": len(scores),
        "best_passes": {task: trained.result.best.numbers[training.column(task)] + 1 for task in training.config.tasks},
        "ranks": training.environment.world_size,
        "seed": training.seed,
        "code": code_version(),
        "progressive": forecasts(earlier, folder, rows),
    }


def _example(training: RankerTraining, schema: Schema, features: PinnedFeatures, vocabulary: Vocabulary) -> Inputs:
    """The first validation rows, as the program takes them."""
    files = find_files(training.data, training.config.validation)
    stream = EventStream(files, schema, batch_size=_EXAMPLE_ROWS, drop_last=False, skip=training.skip)
    batch = features(vocabulary.resolve(next(iter(stream))))
    return Inputs.of(batch, torch.device("cpu"))
