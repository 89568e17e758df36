"""Anchors: whose they are, how many links each has, which are drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from embedding_store import EmbeddingStore, Table
from recsys.data.anchors import Anchors
from recsys.data.triples import Graph, Triples
from tests.recsys.data.test_links import GRAPH

LOW, HIGH = -(2**63), 2**63 - 1


def table(folder: Path, ids: list[int]) -> Table:
    """Vectors that say whose they are by their place among the ids."""
    series = EmbeddingStore(folder).create("other", dim=4, dtype="float32", exist_ok=True)
    with series.write(as_of=1_600_000_000_000, space="other") as writer:
        writer.append(torch.tensor(ids), torch.arange(len(ids)).float().unsqueeze(1).expand(-1, 4).contiguous())
    return writer.snapshot.load()


def links(*found: tuple[int, int, int]) -> Triples:
    heads, relations, tails = np.array(found, np.int64).reshape(-1, 3).T
    return Triples(heads, relations, tails, np.ones(len(found), np.float32))


def test_links_are_counted_at_both_ends_within_the_node_type(tmp_path: Path) -> None:
    ids = [LOW, 3, 7, HIGH]
    graph = Graph(GRAPH.types, (10, 20), (np.array([LOW, 3, 9]), np.array([3, 7])), GRAPH.relations, GRAPH.ends)
    # x: a to b, y: b to a, z: a to a
    anchors = Anchors({"a": table(tmp_path, ids)}, graph, links((LOW, 0, 7), (7, 1, LOW), (LOW, 2, 9), (9, 2, 9)))
    assert anchors.ids()["a"].tolist() == ids
    assert anchors.unlinked()["a"].tolist() == [7, HIGH], "3 is linked, though by nothing that is trained on"
    rows = {LOW: 4, 3: 5, 7: 10, HIGH: 2, 9: 6}
    located = Graph(GRAPH.types, (10, 20), (np.array([2, 4, 5, 6]), np.array([1])), GRAPH.relations, GRAPH.ends)
    for _ in range(2):  # by the stream, and by what judges
        found = anchors.locate(located, lambda _, ids: np.array([rows[x] for x in ids.tolist()]))
        assert found.entities[0].tolist() == [4, 5, 6], "what no link has is no negative"
    drawn = anchors.draw(located, np.random.default_rng(0), 200)
    assert [len(x) for x in drawn.rows] == [200, 0]
    expected = {4: (0.0, 3.0), 5: (1.0, 0.0), 2: (3.0, 0.0)}
    assert set(drawn.rows[0].tolist()) == set(expected), "7 has no row"
    for row, vector, degree in zip(drawn.rows[0].tolist(), drawn.vectors[:, 0], drawn.degrees, strict=True):
        assert expected[row] == (vector.item(), degree.item())


@given(ids=st.sets(st.integers(0, 20), max_size=8), count=st.integers(0, 5))
def test_any_number_of_them(tmp_path_factory, ids: set[int], count: int) -> None:
    anchors = Anchors({"b": table(tmp_path_factory.mktemp("store"), sorted(ids))} if ids else {}, GRAPH, links())
    graph = anchors.locate(GRAPH, lambda _, ids: ids)
    drawn = anchors.draw(graph, np.random.default_rng(1), count)
    assert len(drawn.rows[1]) == len(drawn.vectors) == len(drawn.degrees) == (count if ids - {20} else 0)
    assert not set(graph.entities[1].tolist()) & (ids - set(range(5, 20)))
