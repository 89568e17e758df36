"""Train one upstream model: the job that `launchers/upstream.py` starts on every rank."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from recsys.atomic import write_json
from recsys.config import KINDS, GraphConfig, TrainConfig, UpstreamConfig
from recsys.data.batch import Batch
from recsys.data.entities import entity_parts, withdrawn_after
from recsys.data.errors import DataError
from recsys.data.files import check_files, find_files
from recsys.data.held_out import ALL_TRAIN, HeldOut, HeldOutBatches, hold_out
from recsys.data.label_facts import survey_labels
from recsys.data.negatives import UniformNegatives
from recsys.data.quarantine import NOTHING, Quarantine
from recsys.data.ranks import Ints
from recsys.data.scan import Findings, Part
from recsys.data.schema import Schema
from recsys.data.sizes import Tables, described, key_of, unsized
from recsys.data.stream import EventStream
from recsys.data.survey import Surveyed
from recsys.data.tables import count_tables
from recsys.dates import UNTIMED
from recsys.evaluate.recalibration import Recalibration
from recsys.folders import store_of, upstream_folder
from recsys.graph_upstream import count_nodes, train_on_links
from recsys.identity import effective, flatten, identify_files
from recsys.models.derm import DERM
from recsys.models.graph import GraphModel
from recsys.models.id_tables import IdTables
from recsys.models.kinds import build_upstream
from recsys.models.losses import DermTask
from recsys.models.objective import Objective
from recsys.models.vocabulary import own_ids
from recsys.progressive import Scored
from recsys.screening import screen
from recsys.shared_figures import shared_loss
from recsys.source import TABLES, sized_upstream, upstream_schema
from recsys.stages import exclusive, stage
from recsys.surveying import find_frequencies, last_items, read_survey
from recsys.train.distributed import Environment, barrier, broadcast, process_group
from recsys.train.exchange import ranks_of
from recsys.train.passes import Scores
from recsys.train.predict import predict
from recsys.train.tables import renew_rows
from recsys.train.trainer import fit
from recsys.trained import Trained

_WITHOUT_EFFECT = ("schema.withdrawn", "schema.max_bad_rows")
"""What may change while a model is trained."""
_OF_BUNDLES = ".kept_negatives"
"""What of the schema's labels is for rankers that are deployed alone."""


def train_upstream(upstream: UpstreamConfig, data: Path, out: Path) -> None:
    """Train an upstream on its source; continue from its last checkpoint if there is one.

    Writes `out/upstream/<name>/`: checkpoints, metrics.jsonl, tensorboard, and at the end result.json.

    Raises:
        ConfigError, SchemaError, DataError, PlanError, LossError, CheckpointError: as their rooms say.
    """
    schema = upstream_schema(upstream, data)
    files = find_files(data, upstream.source.events)
    name, folder = upstream.name, upstream_folder(out, upstream.name)
    with (
        process_group() as environment,
        exclusive(folder, environment),
        stage(out, f"upstream-{name}", environment),
    ):
        training, title = upstream.training, f"upstream {name}"
        skip = screen_source(upstream, schema, data, out, environment).quarantine
        if upstream.kind == "graph":
            nodes = partial(_count_nodes, upstream, schema, data, files, out) if environment.is_main else dict[str, int]
            note_tables(nodes, folder / TABLES, title, environment)
        size_tables(files, schema, skip, folder / TABLES, title, environment)
        schema, upstream = upstream_schema(upstream, data, out), sized_upstream(upstream, out)
        items = drawn_files(upstream, data)
        trained = train_on(
            files,
            schema,
            upstream,
            training,
            environment,
            data=data,
            out=folder,
            store=store_of(out),
            title=title,
            items=items,
            withdrawn=withdrawn_after({}, items, schema, "item", skip),
            skip=skip,
        )
        if environment.is_main:
            write_json(folder / "result.json", trained.record())


def size_tables(
    files: Sequence[Path], schema: Schema, skip: Quarantine, record: Path, title: str, environment: Environment
) -> None:
    """Count the rows of the tables for which the schema gives none, once: later trainings have the same."""
    if unsized(schema):
        note_tables(partial(count_tables, files, schema, skip, ranks_of(environment)), record, title, environment)


def _count_nodes(
    upstream: UpstreamConfig, schema: Schema, data: Path, files: Sequence[Path], out: Path
) -> dict[str, int]:
    """Rows of a graph's tables; and of those by which events name users and items, which it has no use for."""
    counted = dict(count_nodes(upstream.graph, data, files, store_of(out)))
    return counted | {key_of(feature): 1 for feature in unsized(schema)}


def note_tables(count: Callable[[], Tables], record: Path, title: str, environment: Environment) -> None:
    """Note the rows of tables in this file, as rank 0 has them, if it is not there; `count` is a collective as well."""
    if broadcast(record.is_file(), environment):
        return
    tables = count()
    if environment.is_main:
        write_json(record, tables)
        print(f"{title}: tables of {described(tables)} rows, by the ids of its events", flush=True)
    barrier()


def drawn_files(upstream: UpstreamConfig, data: Path) -> list[Path]:
    """The source's own rows of items, where negatives are drawn from them."""
    return find_files(data, upstream.source.items) if upstream.loss.uniform_negatives else []


def screen_source(
    upstream: UpstreamConfig, schema: Schema, data: Path, out: Path, environment: Environment | None
) -> Findings:
    """Find what is wrong with the rows of an upstream's source. A collective where there are ranks.

    Raises what `screen` raises.
    """
    source = upstream.source
    parts = [Part(files=find_files(data, source.events), schema=schema)]
    for owner, patterns in (("user", source.users), ("item", source.items)):
        if patterns:
            parts += entity_parts(find_files(data, patterns), schema, owner)
    return screen(out, f"upstream-{upstream.name}", parts, data, environment)


def train_on(
    files: Sequence[Path],
    schema: Schema,
    upstream: UpstreamConfig,
    training: TrainConfig,
    environment: Environment,
    *,
    data: Path,
    out: Path,
    store: str | Path,
    title: str | None,
    start: Path | None = None,
    items: Sequence[Path] = (),
    withdrawn: Collection[int] = (),
    skip: Quarantine = NOTHING,
    steps: int = 0,
    as_of: int | None = None,
    surveyed: Surveyed | None = None,
    judge: Callable[[nn.Module], Scores] | None = None,
) -> Trained:
    """Train an upstream's model on these files, from its own start or from a checkpoint of another run.

    Where it begins from its own and may make several passes, events that are held out choose the best one, or `judge`.

    A collective. Where `out` has a checkpoint, continue from that.

    Args:
        files: events, in time order.
        schema: from `recsys.source.upstream_schema`.
        upstream: network and loss.
        training: the run; `upstream.training`, or other passes over the events.
        environment: this rank.
        data: folder that the files lie below. It may be moved: what they hold and their names in it must stay.
        out: folder of the run's checkpoints and figures.
        store: the store, a path or URL, which a graph's anchors are in.
        title: name of the run in the terminal; None: quiet.
        start: the checkpoint to begin with: model and optimizer.
        items: items' own rows, of which, and of the events, the last ones are what `loss.uniform_negatives` draws from.
        withdrawn: items that are not drawn.
        skip: rows that are left out.
        steps: that a pass is to have, where no batch size is given; 0: as many as `TrainConfig` says.
        as_of: time up to which the outcomes of labels are known, ms; None: the newest event's.
        surveyed: what is known of the files' rows that are not skipped, as of that time; None: they are read.
        judge: scores the task's model after each pass, less is better, see `fit`; nothing is held out then.

    Raises:
        DataError, PlanError, LossError, CheckpointError: as their rooms say.
    """
    if upstream.kind == "graph":
        return train_on_links(
            files,
            upstream,
            training,
            environment,
            data=data,
            out=out,
            store=store,
            title=title,
            start=start,
            steps=steps,
            as_of=as_of,
        )
    tasks = [label.name for label in schema.labels]
    torch.manual_seed(training.seed)
    model, network = build_upstream(upstream, schema), upstream.network
    assert not isinstance(model, GraphModel)
    assert not isinstance(network, GraphConfig)
    ranks = ranks_of(environment)
    facts, held = survey_labels(files, schema, skip, as_of=as_of, with_delays=start is None, ranks=ranks), ALL_TRAIN
    if judge is None and training.epochs > 1 and upstream.held_out and start is None:
        held = hold_out(files, schema, upstream.held_out, skip, facts.as_of, ranks)
    left_out = skip | held.rows
    rows = check_files(files, schema) - left_out.count(files)
    identity = _identity(files, items, data, schema, upstream, training, skip)  # other ranks may need other batches
    told = bool(title) and not training.batch_size
    training = training.sized(rows // environment.world_size, steps)
    if told and environment.is_main:
        _tell_batches(str(title), training, rows, held.count, environment)
    if surveyed is None or held.count:
        surveyed = read_survey(files, schema, upstream, left_out, facts.as_of, ranks)
    frequencies = find_frequencies(surveyed, upstream, schema, ranks, started=start is not None)
    seen = {owner: surveyed.seen(owner, ranks) for owner in own_ids(schema)} if surveyed else {}
    newest = surveyed.newest if surveyed and upstream.loss.contrastive_weight else UNTIMED
    if frequencies is None and upstream.loss.contrastive_weight and environment.is_main:
        print(f"{title or upstream.name}: no event is positive, nothing is contrasted", flush=True)
    resolve = partial(model.vocabulary.resolve, dropout=network.id_dropout, seed=training.seed)
    negatives, count = None, upstream.loss.uniform_negatives if frequencies is not None else 0
    if count:
        last = last_items(files, items, schema, skip, surveyed if not held.count else None, ranks, withdrawn)
        if len(last):
            negatives = UniformNegatives(last, schema, count, resolve, seed=training.seed, rank=environment.rank)
    objective = Objective(schema.labels, facts, upstream.loss.value_loss)
    model.raise_logits(objective.levels)  # a checkpoint that is begun with has levels of its own
    task = DermTask(model, upstream.loss, tasks, frequencies, negatives.items if negatives else 0, objective)
    if held.count:
        judge = _Judge(files, schema, held, model.vocabulary.resolve, environment, facts.as_of)
    result = fit(
        task,
        _stream(files, schema, training, environment, negatives or resolve, left_out, facts.as_of),
        training,
        environment,
        tasks=tasks,
        values=[label.name for label in schema.labels if label.is_value],
        identity=identity,
        out=out,
        start=start,
        title=title,
        before=Scored(files, schema, model.vocabulary.resolve, left_out, out, environment, as_of=facts.as_of),
        begun=partial(_admit, model, seen, newest, upstream, training.seed, first=start is None),
        after_epoch=judge,
    )
    return Trained(
        result=result,
        batch_size=training.batch_size,
        most=training.epochs,
        held_out=held.count,
        collisions=model.vocabulary.without_row(seen) if seen else {},
    )


def _identity(
    files: Sequence[Path],
    items: Sequence[Path],
    data: Path,
    schema: Schema,
    upstream: UpstreamConfig,
    training: TrainConfig,
    skip: Quarantine,
) -> dict[str, dict[str, str]]:
    """What a training is of: a checkpoint of something else is refused."""
    return {
        "files": identify_files([*files, *items], data),
        "config": _identify_config(schema, upstream, training),
        "quarantine": {path.relative_to(data).as_posix(): f"rows {x.tolist()}" for path, x in skip.rows.items()},
    }


def _tell_batches(title: str, training: TrainConfig, rows: int, held_out: int, environment: Environment) -> None:
    """Say which batches follow from so many rows that are trained on."""
    kept = f", {held_out:,} of them held out" if held_out else ""
    print(
        f"{title}: {rows + held_out:,} rows{kept}, so batches of {training.batch_size} a rank: "
        f"{training.steps(rows // environment.world_size)} a pass",
        flush=True,
    )


def _admit(
    model: DERM | IdTables,
    seen: Mapping[str, Ints],
    newest: int,
    upstream: UpstreamConfig,
    seed: int,
    *,
    first: bool,
) -> None:
    """Give the training's ids their rows; those that others owned before begin anew. Raises DataError where a first
    one's tables are too small for them."""
    vocabulary, most = model.vocabulary, upstream.contrastive.max_collisions
    freed = vocabulary.admit(seen, newest)
    if not isinstance(model, IdTables):
        return
    for owner, rows in freed.items():
        renew_rows(model.own_table(owner), rows, seed)
    if not first:
        return
    for owner, share in vocabulary.without_row(seen).items():
        if share > most:
            feature = vocabulary.features[owner]
            raise DataError(
                f"{share:.1%} of the {len(seen[owner]):,} {owner} ids of upstream {upstream.name!r} have no row of "
                f"their own, more than contrastive.max_collisions = {most:g}: feature {feature.name!r} has rows = "
                f"{feature.rows:,}; give it {2 * len(seen[owner]):,}, or leave `rows` out"
            )


class _Judge:
    """Scores a model by the events that are held out: their normalized entropy, of values deviance, mean over tasks. A
    collective."""

    def __init__(
        self,
        files: Sequence[Path],
        schema: Schema,
        held: HeldOut,
        resolve: Callable[[Batch], Batch],
        environment: Environment,
        as_of: int | None,
    ) -> None:
        self._judged, self._environment = held.judged, environment
        self._labels = schema.labels
        rank, world_size = environment.rank, environment.world_size
        self._batches = HeldOutBatches(
            files, schema, held, rank=rank, world_size=world_size, transform=resolve, as_of=as_of
        )

    def __call__(self, model: nn.Module) -> tuple[float]:
        logits, labels, mask, _ = (x.numpy() for x in predict(model, self._batches, self._environment))
        ranks = ranks_of(self._environment)
        scores = [
            shared_loss(
                labels[mask[:, x], x],
                logits[mask[:, x], x],
                Recalibration(),
                is_value=self._labels[x].is_value,
                ranks=ranks,
            )
            for x in self._judged
        ]
        return (float(np.mean(scores)),)


def _stream(
    files: Sequence[Path],
    schema: Schema,
    training: TrainConfig,
    environment: Environment,
    transform: Callable[[Batch], Batch],
    skip: Quarantine,
    as_of: int | None,
) -> EventStream:
    """This rank's batches of a training."""
    return EventStream(
        files,
        schema,
        batch_size=training.batch_size,
        rank=environment.rank,
        world_size=environment.world_size,
        shuffle_batches=training.shuffle_batches,
        seed=training.seed,
        epochs=training.epochs,
        transform=transform,
        skip=skip,
        as_of=as_of,
        workers=environment.input_threads,
        pin_memory=environment.device.type == "cuda",
    )


def _identify_config(schema: Schema, upstream: UpstreamConfig, training: TrainConfig) -> dict[str, str]:
    """Everything that a model depends on but its events and the number of ranks, as key -> value."""
    settings = {"loss": asdict(upstream.loss), "training": asdict(training), "held_out": upstream.held_out}
    config = flatten({"schema": asdict(schema), KINDS[upstream.kind]: asdict(upstream.network), **settings})
    kept = {key: value for key, value in config.items() if not key.endswith(_OF_BUNDLES)}
    return effective(kept, _WITHOUT_EFFECT)
