"""Train one upstream model: the job that `launchers/upstream.py` starts on every rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from torch import nn

from recsys.atomic import write_json
from recsys.config import TrainConfig, UpstreamConfig
from recsys.data.entities import entity_parts, withdrawn_after
from recsys.data.files import find_files
from recsys.data.quarantine import Quarantine
from recsys.data.scan import Findings, Part
from recsys.data.schema import Schema
from recsys.data.sizes import Tables, described, key_of, unsized
from recsys.data.tables import count_tables
from recsys.event_upstream import train_on_events
from recsys.folders import store_of, upstream_folder
from recsys.graph_upstream import count_nodes, train_on_links
from recsys.screening import screen
from recsys.source import TABLES, sized_upstream, upstream_schema
from recsys.stages import exclusive, stage
from recsys.train.distributed import Environment, barrier, broadcast, process_group
from recsys.train.exchange import ranks_of
from recsys.train.passes import Scores
from recsys.train.watch import Pulse
from recsys.trained import Trained
from recsys.training_set import TrainingSet


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
        title = f"upstream {name}"
        skip = screen_source(upstream, schema, data, out, environment).quarantine
        if upstream.kind == "graph":
            nodes = partial(_count_nodes, upstream, schema, data, files, out) if environment.is_main else dict[str, int]
            note_tables(nodes, folder / TABLES, title, environment)
        size_tables(files, schema, skip, folder / TABLES, title, environment)
        schema, upstream = upstream_schema(upstream, data, out), sized_upstream(upstream, out)
        items = drawn_files(upstream, data)
        given = TrainingSet(
            files=files,
            schema=schema,
            data=data,
            items=items,
            withdrawn=withdrawn_after({}, items, schema, "item", skip),
            skip=skip,
        )
        trained = train_on(
            given, upstream, upstream.training, environment, out=folder, store=store_of(out), title=title
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
    with Pulse("the count of tables", environment):
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
    given: TrainingSet,
    upstream: UpstreamConfig,
    training: TrainConfig,
    environment: Environment,
    *,
    out: Path,
    store: str | Path,
    title: str | None,
    start: Path | None = None,
    steps: int = 0,
    judge: Callable[[nn.Module], Scores] | None = None,
) -> Trained:
    """Train an upstream's model on these rows, from its own start or from a checkpoint of another run.

    Where it begins from its own and may make several passes, events that are held out choose the best one, or `judge`.

    A collective. Where `out` has a checkpoint, continue from that.

    Args:
        given: the rows.
        upstream: network and loss.
        training: the run; `upstream.training`, or other passes over the events.
        environment: this rank.
        out: folder of the run's checkpoints and figures.
        store: the store, a path or URL, which a graph's anchors are in.
        title: name of the run in the terminal; None: quiet.
        start: the checkpoint to begin with: model and optimizer.
        steps: that a pass is to have, where no batch size is given; 0: as many as `TrainConfig` says.
        judge: scores the task's model after each pass, less is better, see `fit`; nothing is held out then. A graph has
            one of its own.

    Raises:
        DataError, PlanError, LossError, CheckpointError: as their rooms say.
    """
    if upstream.kind == "graph":
        return train_on_links(
            given, upstream, training, environment, out=out, store=store, title=title, start=start, steps=steps
        )
    return train_on_events(
        given, upstream, training, environment, out=out, title=title, start=start, steps=steps, judge=judge
    )
