"""Links of a graph in batches: in groups of one relation each, with entities that are drawn to be told from them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from recsys.data.anchors import Anchors, Drawn, nothing_drawn
from recsys.data.triples import Graph, Triples

Ints = NDArray[np.int64]


@dataclass
class LinkBatch(Pipelineable):
    """G groups of up to P links, N entities of each of T node types that were drawn, and K that have anchors.

    Every entity of the batch is looked up once. A place is a number among them, those of the first node type in front.
    """

    nodes: KeyedJaggedTensor
    """One key a node type, in the graph's order, each with one bag: the rows of its entities, each once."""
    relations: Tensor  # int64 [G]
    heads: Tensor  # int64 [G, P], places
    tails: Tensor  # int64 [G, P], places
    weights: Tensor  # float32 [G, P]; 0: no link, the group has fewer
    drawn: Tensor  # int64 [T, N], places
    entities: Tensor  # int64 [T], how many they were drawn from
    anchored: Tensor  # int64 [K], places
    anchors: Tensor  # float32 [K, A], their vectors in the other space
    degrees: Tensor  # float32 [K]

    def to(self, device: torch.device, non_blocking: bool = False) -> LinkBatch:
        """A copy on `device` (Pipelineable)."""
        return self._map(lambda x: x.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> LinkBatch:
        """A copy in page-locked host memory (Pipelineable)."""
        return self._map(lambda x: x.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory alive until `stream` is done with it (Pipelineable)."""
        self._map(lambda x: x.record_stream(stream) or x)

    def _map(self, function: Callable[[Any], Any]) -> LinkBatch:
        return replace(self, **{each.name: function(getattr(self, each.name)) for each in fields(self)})


class LinkStream:
    """A rank's batches of links: a `recsys.train.predict.Stream`.

    In each pass the links of every relation are shuffled and cut into groups, and the groups are shuffled. What a rank
    gets is a function of the seed, the pass and the step alone. Every link is in every pass, whatever the sizes.

    Args:
        triples: all links, the same on every rank; this one keeps its share of each relation.
        graph: what they are links of.
        batch_size: links a rank and step, rounded down to whole groups, but one group at least.
        group: links of a group, P.
        negatives: entities of each node type drawn for a step, N, the same on every rank.
        rank: this process.
        world_size: processes that share the links.
        epochs: of so many `passes` each.
        passes: over the links.
        seed: of the shuffling and the drawing.
        locate: gives ids their rows, where the links and the graph have ids: called when the first batch is asked for,
            so that a vocabulary that is loaded with the model knows them by then.
        anchors: of entities that another space knows; of each node type as many are drawn for a step as negatives.
    """

    def __init__(
        self,
        triples: Triples,
        graph: Graph,
        *,
        batch_size: int,
        group: int,
        negatives: int,
        rank: int = 0,
        world_size: int = 1,
        epochs: int = 1,
        passes: int = 1,
        seed: int = 0,
        locate: Callable[[Graph, Triples], tuple[Graph, Triples]] | None = None,
        anchors: Anchors | None = None,
    ) -> None:
        self._locate, self._anchors = locate, anchors
        self._graph, self._negatives, self._seed, self._rank = graph, negatives, seed, rank
        self._group, self._groups = group, max(1, batch_size // group)
        counts = np.bincount(triples.relations, minlength=len(graph.relations))
        sizes = [-(-_share(counts, each, world_size) // group) for each in range(world_size)]
        self._steps = -(-max(int(each.sum()) for each in sizes) // self._groups)
        self._links = triples.share(rank, world_size).by_relation()
        self._cut(_share(counts, rank, world_size))
        self.steps_per_epoch = self._steps * passes
        self.total_steps = self.steps_per_epoch * epochs
        self.shortfall = ""
        self.wait_seconds = 0.0
        self._next = 0

    def _cut(self, counts: Ints) -> None:
        """Each group's relation, where its links begin, and where those of the relation end."""
        per_relation = -(-counts // self._group)
        self._relation = np.repeat(np.arange(len(counts)), per_relation)
        number = np.arange(len(self._relation)) - np.repeat(np.cumsum(per_relation) - per_relation, per_relation)
        end = np.cumsum(counts)
        self._first = (end - counts)[self._relation] + number * self._group
        self._end = end[self._relation]

    def seek(self, position: int) -> None:
        """Continue with the batch of this number, counted over all passes."""
        self._next = position

    def __iter__(self) -> Iterator[LinkBatch]:
        if self._locate is not None:
            self._graph, self._links = self._locate(self._graph, self._links)
            self._locate = None
        order, groups, shuffled = np.empty(0, np.int64), np.empty(0, np.int64), -1
        while self._next < self.total_steps:
            started = time.perf_counter()
            turn, step = divmod(self._next, self._steps)
            if turn != shuffled:
                order, groups = self._shuffle(turn)
                shuffled = turn
            batch = self._batch(order, groups[step * self._groups : (step + 1) * self._groups], self._next)
            self._next += 1
            self.wait_seconds += time.perf_counter() - started
            yield batch

    def _shuffle(self, turn: int) -> tuple[Ints, Ints]:
        """An order of the links, shuffled within relations, and one of the groups."""
        random = np.random.default_rng((self._seed, 1, turn, self._rank))
        keys = random.random(len(self._links))
        return np.lexsort((keys, self._links.relations)), random.permutation(len(self._relation))

    def _batch(self, order: Ints, groups: Ints, position: int) -> LinkBatch:
        """These groups, and empty ones of the first relation where they are too few."""
        missing = self._groups - len(groups)
        at = self._first[groups][:, None] + np.arange(self._group)  # [groups, P]
        there = at < self._end[groups][:, None]
        heads, tails = np.zeros((2, self._groups, self._group), np.int64)
        weights = np.zeros((self._groups, self._group), np.float32)
        links = self._links.take(order[at[there]])
        for mine, each in ((heads, links.heads), (tails, links.tails), (weights, links.weights)):
            mine[: len(groups)][there] = each
        random = np.random.default_rng((self._seed, 2, position))  # of all ranks
        drawn = [rows[random.integers(len(rows), size=self._negatives)] for rows in self._graph.entities]
        relations = np.pad(self._relation[groups], (0, missing))
        anchored = self._anchors.draw(self._graph, random, self._negatives) if self._anchors else None
        return make_batch(self._graph, relations, heads, tails, weights, drawn, anchored)


def make_batch(
    graph: Graph,
    relations: Ints,  # [G]
    heads: Ints,  # [G, P], rows of the tables of the relations' heads
    tails: Ints,  # [G, P]
    weights: NDArray[np.float32],  # [G, P]
    drawn: list[Ints],  # [N] for each node type
    anchored: Drawn | None = None,
) -> LinkBatch:
    """Look up every entity of these links once."""
    anchored = anchored or nothing_drawn(graph)
    types = graph.ends[relations]  # [G, 2]
    ends = np.stack((heads, tails))  # [2, G, P]
    places, sets, before = np.empty_like(ends), [], 0
    places_of_drawn, places_of_anchored = [], []
    for number, (negatives, pulled) in enumerate(zip(drawn, anchored.rows, strict=True)):
        mine = number == types.T  # [2, G]
        parts = (ends[mine].ravel(), negatives, pulled)
        rows, inverse = np.unique(np.concatenate(parts), return_inverse=True)
        of_links, of_drawn, of_anchored = np.split(inverse + before, np.cumsum([len(x) for x in parts[:-1]]))
        places[mine] = of_links.reshape(-1, ends.shape[2])
        places_of_drawn.append(of_drawn)
        places_of_anchored.append(of_anchored)
        sets.append(rows)
        before += len(rows)
    return LinkBatch(
        nodes=KeyedJaggedTensor(
            keys=list(graph.types),
            values=torch.from_numpy(np.concatenate(sets)),
            lengths=torch.tensor([len(rows) for rows in sets], dtype=torch.int32),
        ),
        relations=torch.from_numpy(relations.astype(np.int64)),
        heads=torch.from_numpy(places[0]),
        tails=torch.from_numpy(places[1]),
        weights=torch.from_numpy(weights.astype(np.float32)),
        drawn=torch.from_numpy(np.stack(places_of_drawn)),
        entities=torch.tensor([len(rows) for rows in graph.entities]),
        anchored=torch.from_numpy(np.concatenate(places_of_anchored)),
        anchors=anchored.vectors,
        degrees=torch.from_numpy(anchored.degrees),
    )


def _share(counts: Ints, rank: int, world_size: int) -> Ints:
    """Links of each relation that are a rank's: every `world_size`-th, from number `rank` on."""
    return np.maximum(0, -(-(counts - rank) // world_size))
