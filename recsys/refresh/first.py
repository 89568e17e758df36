"""The first snapshots of an upstream: every entity of its source, by the model as it was trained on that source."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from torch import nn

from recsys.config import RefreshConfig, UpstreamConfig
from recsys.data.files import find_files
from recsys.data.schema import Schema
from recsys.data.survey import survey
from recsys.dates import number_of
from recsys.folders import upstream_folder
from recsys.models.derm import DERM
from recsys.models.kinds import UpstreamModel, build_upstream
from recsys.refresh.arms import ENTITIES
from recsys.refresh.catalogue import NOBODY_WITHDRAWN, Told, Withdrawn, as_tensors, withdrawn_by, write_withdrawn
from recsys.refresh.content import Content, Timer
from recsys.refresh.counting import read_prior
from recsys.refresh.cross import CrossEvents
from recsys.refresh.embed import Towers, own_files
from recsys.refresh.facts import last_of
from recsys.refresh.publish import Publisher, space_name
from recsys.refresh.records import PUBLISHED, WITHDRAWN
from recsys.train import checkpoint
from recsys.train.checkpoint import CheckpointError, Loaded, load_model
from recsys.train.distributed import Environment
from recsys.train.exchange import ranks_of
from recsys.train.sharding import shard
from recsys.train.watch import Pulse
from recsys.upstream import screen_source

T = TypeVar("T", bound=Towers)


@dataclass(frozen=True)
class Source:
    """What an upstream knows before the first day."""

    content: Content
    as_of: int
    """Time of the newest event or entity row of the source, ms; 0 of a log without event times."""
    checkpoint: Loaded
    """What the model was loaded from."""
    withdrawn: Withdrawn
    """Who is withdrawn by the entity rows of the source."""


def read_source(config: RefreshConfig, schema: Schema, data: Path, out: Path, environment: Environment) -> Source:
    """The newest checkpoint of an upstream's training, all users and items of its source, and the items' prior there. A
    collective.

    Raises:
        CheckpointError: the upstream has not been trained, or by another config.
        DataError: more rows cannot be read than the schema allows, naming the first.
    """
    upstream = config.upstream
    model, loaded = load_towers(upstream_folder(out, upstream.name) / "checkpoints", upstream, schema, environment)
    source = source_of(model, loaded, config, schema, data, out, environment)
    if not config.cross:
        return source
    skip = screen_source(upstream, schema, data, out, environment).quarantine
    assert isinstance(model, DERM)  # by the config
    cross = CrossEvents(model, find_files(data, upstream.source.events), skip, fresh=True)
    return replace(source, content=replace(source.content, cross=cross))


def source_of(
    model: Towers,
    loaded: Loaded,
    config: RefreshConfig,
    schema: Schema,
    data: Path,
    out: Path,
    environment: Environment,
) -> Source:
    """`read_source` by a model that has been loaded."""
    upstream = config.upstream
    utc_offset_hours = config.days.utc_offset_hours if config.days else 0.0
    skip = screen_source(upstream, schema, data, out, environment).quarantine
    rows = {"user": upstream.source.users, "item": upstream.source.items}
    told = Told(files={owner: find_files(data, given) for owner, given in rows.items() if given}, skip=skip)
    withdrawn = withdrawn_by(NOBODY_WITHDRAWN, told, schema)
    ranks, events = ranks_of(environment), {}
    with Pulse("a survey of entities", environment):
        surveyed = survey(find_files(data, upstream.source.events), schema, (), skip, ranks=ranks)
        for owner in ENTITIES:
            own = own_files(data, upstream.source, owner)
            parts, since = (surveyed, own), dict.fromkeys(own, 0)
            events[owner] = last_of(parts, schema, owner, skip, since, ranks, withdrawn[owner])
    as_of = max(selected.as_of for selected in events.values())
    content = Content(
        model=model,
        schema=schema,
        events=events,
        day=number_of(as_of - 1, utc_offset_hours),
        utc_offset_hours=utc_offset_hours,
        fresh=True,
        withdrawn=as_tensors(withdrawn),
        prior=read_prior(config, schema, data, out, as_of, environment),
    )
    return Source(content, as_of, loaded, withdrawn)


def publish_source(publisher: Publisher, source: Source, out: Path, upstream: str, space: str = "") -> bool:
    """Publish the vectors of all users and items, as of the source's newest row, and move the tag. A collective.

    A second call with the same checkpoint and source does nothing. `space`: theirs; empty: of a first training.

    Returns:
        whether anything was to do.

    Raises:
        StoreError: the store refuses a snapshot.
    """
    path = upstream_folder(out, upstream) / PUBLISHED
    if publisher.is_main:
        write_withdrawn(path.with_name(WITHDRAWN), source.withdrawn, source.content.schema)
    publication = publisher.decide(path, source.checkpoint._asdict(), source.as_of, space or space_name(upstream))
    if not publisher.publish(publication, source.content, Timer()) and publication.done:
        return False
    publisher.move_tags(publication, path)
    publisher.note_done(publication, path)
    return True


def load_towers(
    folder: Path, upstream: UpstreamConfig, schema: Schema, environment: Environment
) -> tuple[UpstreamModel, Loaded]:
    """The model of the newest checkpoint in `folder`, to embed with, and which one that is. A collective.

    A model that was trained in this process does not do: TorchRec's input distribution, built by its first batch,
    expects every feature in every later one, where a tower's batch holds its owner's alone.

    Raises:
        CheckpointError: there is none, or it is of another schema or config.
    """
    return load_into(build_upstream(upstream, schema), folder, upstream, environment)


def load_into(model: T, folder: Path, upstream: UpstreamConfig, environment: Environment) -> tuple[T, Loaded]:
    """A model that has not been sharded -> the same as the newest checkpoint has it; see `load_towers`."""
    # The name under which tasks hold the model, so that the checkpoint's keys are the same.
    training = upstream.training
    sharded = shard(nn.ModuleDict({"model": model}), environment, sparse_lr=training.sparse_lr, tables=training.tables)
    loaded = load_model(folder, sharded, parts=("model.",))
    return sharded.module["model"], loaded


def trained(out: Path, upstream: str) -> Path:
    """The checkpoint that the days begin with. Raises CheckpointError if there is none."""
    folder = upstream_folder(out, upstream) / "checkpoints"
    found = checkpoint.latest(folder)
    if found is None:
        raise CheckpointError(f"{folder}: no checkpoint there; train the upstream on its source first")
    return found
