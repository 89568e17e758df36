"""Train an upstream of kind `graph`: what `train_on` does where links are learned, not events.

A first training learns the links of all relations. A day goes on with those of its events: of relations that name no
files of their own. What these others join is known since the first training, or the next cold one.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn

from recsys.anchors import load_anchors, newest_anchors, pin_anchors
from recsys.config import KINDS, GraphConfig, TrainConfig, UpstreamConfig
from recsys.data.anchors import Anchors
from recsys.data.errors import DataError
from recsys.data.files import find_files
from recsys.data.links import LinkStream
from recsys.data.relations import declared, read_links
from recsys.data.seen import Ints
from recsys.data.sizes import Tables, room_for
from recsys.data.triples import Graph, Triples
from recsys.identity import effective, flatten, identify_files
from recsys.models.graph import GraphModel, GraphTask, WholeGraph
from recsys.models.nodes import NodeVocabulary
from recsys.train.distributed import Environment
from recsys.train.heartbeat import computing
from recsys.train.link_ranks import KnownLinks, rank_links
from recsys.train.planning import rank_memory
from recsys.train.trainer import fit
from recsys.train.watch import Pulse
from recsys.trained import Trained
from recsys.training_set import TrainingSet

JUDGED = 4_000
"""Links that are held out at most: more would cost time and say the same."""
_WHOLE = 0.1
"""Of a rank's memory, that the vectors of all entities may fill for links to be ranked among them."""


def count_nodes(config: GraphConfig, data: Path, files: Sequence[Path], store: str | Path) -> Tables:
    """Rows of the tables of all node types: those that the config gives, and as many as their ids need, linked or
    anchored.

    Args:
        config: the relations.
        data: folder that their files lie below.
        files: of relations that name none.
        store: the run's, a path or URL, which has the anchors.

    Raises:
        DataError: what `read_links`, `newest_anchors` and `load_anchors` raise.
    """
    graph, links = read_links(config.relations, data, _named(files, data), config.rows)
    unlinked = load_anchors(newest_anchors(config, store), graph, links).unlinked()
    together = {name: np.union1d(_entities(graph)[name], ids) for name, ids in unlinked.items()}
    return graph.sizes | {name: room_for(ids) for name, ids in together.items() if name not in config.rows}


def train_on_links(
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
) -> Trained:
    """Train a graph, from its own start or from a checkpoint of another run: see `recsys.upstream.train_on`. A
    collective.

    Where it begins from its own and may make several passes, links that are held out choose the best one, by the mean
    reciprocal rank of their ends among all entities that could be it. There it is that anchors pull, too.

    Raises:
        DataError, PlanError, LossError, CheckpointError: as their rooms say.
    """
    config = upstream.graph
    with Pulse("a survey of links", environment):
        links = _Links.read(given.files, upstream, given.data, first=start is None)
        pins = pin_anchors(config, store, out, environment, given.as_of)
    identity = {
        "files": identify_files(_files(upstream, given.files, given.data), given.data),
        "config": _identify(upstream, training),
        "anchors": {name: f"version {x.version}" for name, x in pins.items()},
    }
    torch.manual_seed(training.seed)
    model = GraphModel(links.whole, config)
    if training.epochs > 1 and upstream.held_out and start is None and _is_small(config, environment):
        links = links.hold_out(upstream.held_out)
    anchors = load_anchors({} if start else pins, links.graph, links.taught)
    locate = partial(_locate, model.vocabulary, anchors)
    seen = {name: np.union1d(ids, anchors.ids().get(name, ids)) for name, ids in _entities(links.graph).items()}
    training = training.sized(len(links.taught) // environment.world_size, steps)
    if title and environment.is_main:
        links.tell(title, training)
    result = fit(
        GraphTask(model, config, max((x.dim for x in pins.values()), default=0)),
        _stream(links, config, training, environment, locate, anchors),
        training,
        environment,
        tasks=(),
        identity=identity,
        out=out,
        start=start,
        title=title,
        begun=partial(_admit, model.vocabulary, seen, upstream, first=start is None),
        after_epoch=_Judge(locate, links, environment) if len(links.held) else None,
        score="1 - mrr",
    )
    return Trained(
        result=result,
        batch_size=training.batch_size,
        most=training.epochs,
        held_out=len(links.held),
        collisions=model.vocabulary.without_row(seen),
        score="mrr",
    )


@dataclass(frozen=True)
class _Links:
    """What a training learns from."""

    whole: Graph
    """All relations of the config."""
    graph: Graph
    """Those that are learned, and the ids that they join."""
    taught: Triples
    held: Triples

    @staticmethod
    def read(files: Sequence[Path], upstream: UpstreamConfig, data: Path, *, first: bool) -> _Links:
        """All links of a first training, otherwise those of these files' relations."""
        config = upstream.graph
        whole = declared(config.relations, config.rows)
        read = [relation for relation in config.relations if first or not relation.events]
        graph, links = read_links(read, data, _named(files, data))
        numbers = np.array([whole.relations.index(x) for x in graph.relations])
        taught = replace(links, relations=numbers[links.relations])
        return _Links(whole, graph, taught, taught.take(np.zeros(0, np.int64)))

    def hold_out(self, share: float) -> _Links:
        """Some of them judge."""
        taught, held = self.taught.hold_out(min(share, JUDGED / len(self.taught)))
        return replace(self, taught=taught, held=held)

    def tell(self, title: str, training: TrainConfig) -> None:
        """Say what there is."""
        nodes = ", ".join(f"{name} {len(ids):,}" for name, ids in _entities(self.graph).items())
        kept = f", {len(self.held):,} of them held out" if len(self.held) else ""
        print(
            f"{title}: {len(self.taught) + len(self.held):,} links of {len(self.graph.relations)} relations{kept}, "
            f"batches of {training.batch_size} a rank; entities: {nodes}",
            flush=True,
        )


Locate = Callable[[Graph, Triples], tuple[Graph, Triples]]


def _stream(
    links: _Links,
    config: GraphConfig,
    training: TrainConfig,
    environment: Environment,
    locate: Locate,
    anchors: Anchors,
) -> LinkStream:
    """This rank's batches of a training."""
    return LinkStream(
        links.taught,
        links.whole,
        batch_size=training.batch_size,
        group=config.group,
        negatives=config.negatives,
        rank=environment.rank,
        world_size=environment.world_size,
        epochs=training.epochs,
        seed=training.seed,
        locate=locate,
        anchors=anchors,
    )


class _Judge:
    """Scores a model by the links that are held out: 1 - their mean reciprocal rank. A collective."""

    def __init__(self, locate: Locate, links: _Links, environment: Environment) -> None:
        self._locate, self._links, self._environment = locate, links, environment

    def __call__(self, model: nn.Module) -> tuple[float]:
        taught, held = self._links.taught, self._links.held
        graph, known = self._locate(self._links.whole, Triples.join((taught, held)))
        whole = WholeGraph(cast(GraphTask, model.module).model, graph, self._environment.device)
        own, judged = known.owned(graph), np.arange(len(known)) >= len(taught)
        known, held = known.take(own), known.take(own & judged)
        return (1 - rank_links(whole, held, KnownLinks(known, graph), graph).mrr,)


def _locate(vocabulary: NodeVocabulary, anchors: Anchors, graph: Graph, links: Triples) -> tuple[Graph, Triples]:
    """A graph and its links with rows where they have ids. Anchors find theirs too; entities that have nothing else are
    none of the graph, which are negatives and what links are ranked among."""
    graph, links = vocabulary.locate(graph, links)
    return anchors.locate(graph, vocabulary.find), links


def _entities(graph: Graph) -> dict[str, Ints]:
    return dict(zip(graph.types, graph.entities, strict=True))


def _admit(vocabulary: NodeVocabulary, seen: Mapping[str, Ints], upstream: UpstreamConfig, *, first: bool) -> None:
    """Give ids their rows. Raises DataError where a first training's tables are too small for them."""
    with computing():
        vocabulary.admit(seen)
    most = upstream.graph.max_collisions
    for name, share in vocabulary.without_row(seen).items() if first else ():
        if share > most:
            raise DataError(
                f"{share:.1%} of the {len(seen[name]):,} ids of node type {name!r} of upstream {upstream.name!r} have "
                f"no row of their own, more than graph.max_collisions = {most:g}: graph.rows.{name} is "
                f"{upstream.graph.rows[name]:,}; give it {2 * len(seen[name]):,}, or leave it out"
            )


def _is_small(config: GraphConfig, environment: Environment) -> bool:
    """Whether every rank can hold the vectors of all entities for a while."""
    return sum(config.rows.values()) * config.dim * 4 <= _WHOLE * rank_memory(environment)


def _identify(upstream: UpstreamConfig, training: TrainConfig) -> dict[str, str]:
    settings = {KINDS[upstream.kind]: asdict(upstream.graph), "training": asdict(training)}
    return effective(flatten({**settings, "held_out": upstream.held_out}))


def _files(upstream: UpstreamConfig, files: Sequence[Path], data: Path) -> list[Path]:
    """All that may be read, each once."""
    own = [path for relation in upstream.graph.relations for path in find_files(data, relation.events)]
    return list(dict.fromkeys([*files, *own]))


def _named(files: Sequence[Path], data: Path) -> list[str]:
    """Patterns that match these files and no others."""
    return [glob.escape(path.relative_to(data).as_posix()) for path in files]
