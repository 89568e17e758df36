"""Links of a graph in batches: in groups of one relation each, with entities that are drawn to be told from them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from recsys.data.anchors import Anchors, Drawn, nothing_drawn
from recsys.data.rest import Leg, Numbers, Place
from recsys.data.triples import Graph, Triples

Ints = NDArray[np.int64]


@dataclass
class LinkBatch(Pipelineable):
    """G groups of up to P links, N entities of each of T node types that were drawn, and K that have anchors.

    Every entity of the batch is looked up once. A place is a number among them, those of the first node type in front.
    """

    nodes: KeyedJaggedTensor
    """One key a node type, in the graph's order: the rows of its entities, each once and in a bag of its own, of which
    FBGEMM gives each to a warp of its own; then empty bags up to what any type may have."""
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
        self._group, self._groups, self._all = group, max(1, batch_size // group), triples
        counts = np.bincount(triples.relations, minlength=len(graph.relations))
        self._steps = _steps(counts, group, (world_size, self._groups))
        self._mine = _Part(triples.share(rank, world_size), counts.size, group)
        self._numbers, self._rest = Numbers(self._steps, (world_size, self._groups)), self._mine
        self.steps_per_epoch = self._steps * passes
        self.total_steps = self.steps_per_epoch * epochs
        self.shortfall = ""
        self.wait_seconds = 0.0
        self._next = 0

    def seek(self, position: int) -> None:
        """Continue with the batch of this number, counted over all passes."""
        self._next = position

    def place(self, position: int) -> Place:
        """Where a training stands before the batch of this number, for any number of ranks."""
        return self._numbers.place(position)

    def resume(self, place: Place) -> int:
        """As `recsys.data.stream.EventStream.resume`; before the first batch is asked for."""
        whole = self._numbers._replace(turn=-1, earlier=(), left=0)
        earlier, steps = place.continued(*whole.leg)
        self._numbers, self._rest = whole, self._mine
        if not earlier:
            self.seek(place.turn * self._steps + steps)
            return self._next
        left = self._left(place.turn, earlier)
        counts = np.bincount(left.relations, minlength=self._mine.relations)
        self._rest = _Part(left.share(self._rank, whole.leg[0]), counts.size, self._group)
        most = min(self._steps, _steps(counts, self._group, whole.leg))
        self._numbers = whole._replace(turn=place.turn, earlier=earlier, left=most)
        self.seek(self._numbers.first + steps)
        return self._next

    def _left(self, turn: int, legs: Sequence[Leg]) -> Triples:
        """The links of a pass that these legs have left."""
        left = self._all
        for number, leg in enumerate(legs):
            parts = [_Part(left.share(r, leg.world_size), self._mine.relations, self._group) for r in range(leg[0])]
            orders = [part.shuffle((self._seed, 1, turn, r, *_word(number))) for r, part in enumerate(parts)]
            done = leg.steps * leg.batch_size
            left = Triples.join([x.of(order, groups[done:]) for x, (order, groups) in zip(parts, orders, strict=True)])
        return left

    def __iter__(self) -> Iterator[LinkBatch]:
        self._all = self._all.take(np.zeros(0, np.int64))  # nothing is resumed any more
        if self._locate is not None:
            graph, rest = self._graph, self._rest
            self._graph, self._mine.links = self._locate(graph, self._mine.links)
            if rest is not self._mine:
                _, rest.links = self._locate(graph, rest.links)
            self._locate = None
        order, groups, shuffled = np.empty(0, np.int64), np.empty(0, np.int64), -1
        while self._next < self.total_steps:
            started = time.perf_counter()
            turn, step = divmod(self._next, self._steps)
            again = turn == self._numbers.turn
            part, leg = (self._rest, len(self._numbers.earlier)) if again else (self._mine, 0)
            if turn != shuffled:
                order, groups = part.shuffle((self._seed, 1, turn, self._rank, *_word(leg)))
                shuffled = turn
            step -= self._steps - self._numbers.left if again else 0
            batch = self._batch(part, order, groups[step * self._groups : (step + 1) * self._groups], self._next)
            self._next += 1
            self.wait_seconds += time.perf_counter() - started
            yield batch

    def _batch(self, part: _Part, order: Ints, groups: Ints, position: int) -> LinkBatch:
        """These groups, and empty ones of the first relation where they are too few."""
        missing = self._groups - len(groups)
        at, there = part.places(groups)
        heads, tails = np.zeros((2, self._groups, self._group), np.int64)
        weights = np.zeros((self._groups, self._group), np.float32)
        links = part.links.take(order[at[there]])
        for mine, each in ((heads, links.heads), (tails, links.tails), (weights, links.weights)):
            mine[: len(groups)][there] = each
        random = np.random.default_rng((self._seed, 2, position))  # of all ranks
        drawn = [rows[random.integers(len(rows), size=self._negatives)] for rows in self._graph.entities]
        relations = np.pad(part.relation[groups], (0, missing))
        anchored = self._anchors.draw(self._graph, random, self._negatives) if self._anchors else None
        return make_batch(self._graph, relations, heads, tails, weights, drawn, anchored)


class _Part:
    """A rank's links in groups of one relation: each group's relation, its first link and where those of it end."""

    def __init__(self, links: Triples, relations: int, group: int) -> None:
        self.links, self.relations, self._group = links.by_relation(), relations, group
        counts = np.bincount(links.relations, minlength=relations)
        per_relation = -(-counts // group)
        self.relation = np.repeat(np.arange(relations), per_relation)
        number = np.arange(len(self.relation)) - np.repeat(np.cumsum(per_relation) - per_relation, per_relation)
        end = np.cumsum(counts)
        self._first = (end - counts)[self.relation] + number * group
        self._end = end[self.relation]

    def shuffle(self, words: tuple[int, ...]) -> tuple[Ints, Ints]:
        """An order of the links, shuffled within relations, and one of the groups."""
        random = np.random.default_rng(words)
        keys = random.random(len(self.links))
        return np.lexsort((keys, self.links.relations)), random.permutation(len(self.relation))

    def places(self, groups: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """Numbers [G, P] of these groups' links in their order, and whether the group has so many."""
        at = self._first[groups][:, None] + np.arange(self._group)
        return at, at < self._end[groups][:, None]

    def of(self, order: Ints, groups: Ints) -> Triples:
        """The links of these groups."""
        at, there = self.places(groups)
        return self.links.take(order[at[there]])


def _steps(counts: Ints, group: int, leg: Sequence[int]) -> int:
    """Steps over links of which each relation has so many, for a world size and so many groups a rank and step."""
    world_size, groups = leg
    sizes = [int((-(-_share(counts, rank, world_size) // group)).sum()) for rank in range(world_size)]
    return -(-max(sizes) // groups)


def _word(leg: int) -> tuple[int, ...]:
    """What sets the random streams of a leg apart, where it is not the pass's first."""
    return (leg,) if leg else ()


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
    most = ends.size + max(map(len, drawn)) + max(map(len, anchored.rows))  # the same on all ranks
    return LinkBatch(
        nodes=one_each(graph.types, torch.from_numpy(np.concatenate(sets)), [len(rows) for rows in sets], most),
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


def one_each(
    types: Sequence[str],
    rows: Tensor,  # int64 [n]
    counts: Sequence[int],
    most: int,
) -> KeyedJaggedTensor:
    """Rows of tables, `counts` of each node type, in bags of one row; `most` bags a type, the last ones empty."""
    filled = torch.arange(most) < torch.tensor(counts).unsqueeze(1)  # [types, most]
    return KeyedJaggedTensor(keys=list(types), values=rows, lengths=filled.flatten().int().to(rows.device))


def _share(counts: Ints, rank: int, world_size: int) -> Ints:
    """Links of each relation that are a rank's: every `world_size`-th, from number `rank` on."""
    return np.maximum(0, -(-(counts - rank) // world_size))
