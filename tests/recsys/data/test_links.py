"""Batches of links: every link in every pass, whatever the sizes; the same negatives on every rank."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys.data.links import LinkBatch, LinkStream
from recsys.data.triples import Graph, Triples

GRAPH = Graph(
    types=("a", "b"),
    rows=(10, 20),
    entities=(np.arange(10), np.arange(5, 20)),
    relations=("x", "y", "z"),
    ends=np.array([[0, 1], [1, 0], [0, 0]]),
)


def some_links(counts: list[int]) -> Triples:
    relations = np.repeat(np.arange(len(counts)), counts)
    random = np.random.default_rng(0)
    heads, tails = (random.integers(5, 10, len(relations)) for _ in range(2))
    return Triples(heads, relations, tails, np.arange(1, len(relations) + 1).astype(np.float32))


def rows_of(batch: LinkBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Number of the node type, and row, of each place."""
    bags = [batch.nodes[name].values() for name in GRAPH.types]
    return torch.cat([torch.full_like(bag, number) for number, bag in enumerate(bags)]), torch.cat(bags)


def links_of(batch: LinkBatch) -> list[tuple[int, int, int, float]]:
    types, rows = rows_of(batch)
    found = []
    for group, relation in enumerate(batch.relations.tolist()):
        for head, tail, weight in zip(batch.heads[group], batch.tails[group], batch.weights[group], strict=True):
            if weight > 0:
                assert [int(types[head]), int(types[tail])] == GRAPH.ends[relation].tolist()
                found.append((int(rows[head]), relation, int(rows[tail]), float(weight)))
    return found


@given(
    counts=st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any),
    batch_size=st.integers(1, 12),
    group=st.integers(1, 4),
    world_size=st.integers(1, 3),
)
def test_every_link_is_in_every_pass(counts: list[int], batch_size: int, group: int, world_size: int):
    links = some_links(counts)
    ranks = [
        LinkStream(
            links,
            GRAPH,
            batch_size=batch_size,
            group=group,
            negatives=3,
            rank=rank,
            world_size=world_size,
            epochs=2,
            passes=2,
        )
        for rank in range(world_size)
    ]
    steps = {(stream.steps_per_epoch, stream.total_steps) for stream in ranks}
    assert len(steps) == 1
    batches = [list(stream) for stream in ranks]
    per_pass = ranks[0].total_steps // 4
    assert {len(each) for each in batches} == {4 * per_pass}
    wanted = Counter(
        zip(*(x.tolist() for x in (links.heads, links.relations, links.tails, links.weights)), strict=True)
    )
    for turn in range(4):
        here = [batch for each in batches for batch in each[turn * per_pass : (turn + 1) * per_pass]]
        assert Counter(link for batch in here for link in links_of(batch)) == wanted
    for together in zip(*batches, strict=True):
        drawn = [rows_of(batch)[1][batch.drawn] for batch in together]
        assert all(torch.equal(drawn[0], each) for each in drawn)
        for number, entities in enumerate(GRAPH.entities):
            assert (rows_of(together[0])[0][together[0].drawn[number]] == number).all()
            assert set(drawn[0][number].tolist()) <= set(entities.tolist())
        assert all(batch.heads.shape == (max(1, batch_size // group), group) for batch in together)


def test_a_stream_goes_on_where_it_was():
    def stream(seed: int = 0) -> LinkStream:
        return LinkStream(some_links([20, 9, 3]), GRAPH, batch_size=8, group=4, negatives=2, epochs=3, seed=seed)

    whole, late = list(stream()), stream()
    late.seek(7)
    for mine, theirs in zip(late, whole[7:], strict=True):
        assert links_of(mine) == links_of(theirs)
        assert torch.equal(mine.nodes.values(), theirs.nodes.values())
    assert links_of(whole[0]) != links_of(next(iter(stream(seed=1))))
    assert [links_of(x) for x in whole[:5]] != [links_of(x) for x in whole[5:10]]


def test_ids_get_their_rows_when_the_first_batch_is_asked_for():
    moved = []

    def locate(graph: Graph, links: Triples) -> tuple[Graph, Triples]:
        moved.append(len(links))
        shifted = tuple(rows + 1 for rows in graph.entities)
        return (
            Graph(graph.types, graph.rows, shifted, graph.relations, graph.ends),
            Triples(links.heads + 1, links.relations, links.tails + 1, links.weights),
        )

    links = some_links([4, 4, 4])
    stream = LinkStream(links, GRAPH, batch_size=12, group=4, negatives=2, locate=locate, epochs=2)
    assert not moved
    batches = list(stream)
    assert moved == [12]
    assert sorted(row[3] for row in links_of(batches[1])) == links.weights.tolist()
    assert min(link[0] for link in links_of(batches[0])) == links.heads.min() + 1
    assert stream.wait_seconds > 0


def test_graphs_without_links():
    """Zero steps: the trainer refuses it by name."""
    assert LinkStream(some_links([0, 0, 0]), GRAPH, batch_size=4, group=2, negatives=1).total_steps == 0
    assert list(LinkStream(some_links([0, 0, 0]), GRAPH, batch_size=4, group=2, negatives=1)) == []
    with pytest.raises(StopIteration):
        next(iter(LinkStream(some_links([0, 0, 0]), GRAPH, batch_size=4, group=2, negatives=1)))


@pytest.mark.parametrize("world_size", [1, 2])
def test_entities_are_looked_up_side_by_side(world_size: int) -> None:
    """Each in a bag of its own, which a warp of a GPU goes through row by row; as many bags on all ranks."""
    links, strides = some_links([9, 1, 5]), set()
    for rank in range(world_size):
        stream = LinkStream(
            links, GRAPH, batch_size=4, group=2, negatives=30, rank=rank, world_size=world_size, epochs=2
        )
        for batch in stream:
            filled = batch.nodes.lengths().view(len(GRAPH.types), -1)
            assert filled.max() == 1
            assert filled.sum(1).tolist() == [len(batch.nodes[name].values()) for name in GRAPH.types]
            strides.add(batch.nodes.stride())
    assert len(strides) == 1
