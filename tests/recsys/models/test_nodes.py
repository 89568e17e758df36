"""Rows of ids of several node types, and what a refresh asks of a graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.config.graph import EndConfig, GraphConfig, RelationConfig
from recsys.data.batch import Batch
from recsys.data.relations import read_links
from recsys.data.triples import Graph, Triples
from recsys.models.graph import GraphModel
from recsys.models.nodes import NodeVocabulary
from recsys.train.tables import draw_tables

ENDS = (-(2**63), 2**63 - 1)


def read(folder: Path) -> tuple[Graph, Triples]:
    """Users with ids at both ends of int64 like items, which are of brands."""
    pq.write_table(pa.table({"u": [*ENDS, 7], "i": [10, -3, 10], "brand": ["x", "y", "x"]}), folder / "e.parquet")
    user, item, brand = (EndConfig(type=t, column=c) for t, c in (("user", "u"), ("item", "i"), ("brand", "brand")))
    relations = [
        RelationConfig(name="likes", head=user, tail=item),
        RelationConfig(name="of", head=item, tail=brand),
    ]
    return read_links(relations, folder, ["e.parquet"])


def admitted(graph: Graph) -> NodeVocabulary:
    vocabulary = NodeVocabulary(graph)
    vocabulary.admit(dict(zip(graph.types, graph.entities, strict=True)))
    return vocabulary


def events(users: list[int], items: list[int]) -> Batch:
    count = len(users)
    return Batch(
        dense={},
        sparse=KeyedJaggedTensor(keys=["age"], values=torch.zeros(0).long(), lengths=torch.zeros(count).int()),
        labels=torch.zeros(count, 0),
        label_mask=torch.zeros(count, 0, dtype=torch.bool),
        user_ids=torch.tensor(users),
        item_ids=torch.tensor(items),
        timestamps=torch.zeros(count).long(),
    )


def test_every_id_has_a_row_of_its_own(tmp_path: Path):
    graph, links = read(tmp_path)
    vocabulary = admitted(graph)
    placed, located = vocabulary.locate(graph, links)
    assert [len(rows) for rows in placed.entities] == [len(ids) for ids in graph.entities] == [3, 2, 2]
    for number, (ids, rows) in enumerate(zip(graph.entities, placed.entities, strict=True)):
        assert (np.sort(vocabulary.find(graph.types[number], ids)) == rows).all()
        assert rows.max() < graph.rows[number]
    for link in range(len(links)):
        head, tail = graph.ends[links.relations[link]]
        for kind, before, after in ((head, links.heads, located.heads), (tail, links.tails, located.tails)):
            assert vocabulary.find(graph.types[kind], before[link : link + 1])[0] == after[link]
    assert (located.weights == links.weights).all()


def test_strangers_read_the_unknown_row_until_they_are_admitted(tmp_path: Path):
    graph, _ = read(tmp_path)
    vocabulary, new = admitted(graph), np.array([99])
    before = vocabulary.find("user", graph.entities[0])
    assert vocabulary.find("user", new) == [graph.rows[0]]
    vocabulary.admit({"user": new})
    assert vocabulary.find("user", new)[0] < graph.rows[0]
    assert (vocabulary.find("user", graph.entities[0]) == before).all()
    other = NodeVocabulary(graph)
    other.restore(vocabulary.state())
    assert (other.find("user", new) == vocabulary.find("user", new)).all()


def test_vectors_of_users_and_items(tmp_path: Path):
    """As a refresh asks: of events, and of users' and items' own rows."""
    graph, _ = read(tmp_path)
    model = draw_tables(GraphModel(graph, GraphConfig(dim=8)), 0)
    model.vocabulary.admit(dict(zip(graph.types, graph.entities, strict=True)))
    users, items = [ENDS[1], 12345, ENDS[0]], [-3, 10, 10]
    batch = model.vocabulary.resolve(events(users, items))
    assert batch.sparse.keys() == list(graph.types)
    tables = [table.weight for table in model.tables.embeddings.values()]
    for ids, name, number, found in (
        (users, "user", 0, model.user_vector(batch)),
        (items, "item", 1, model.item_vector(batch)),
    ):
        rows = torch.from_numpy(model.vocabulary.find(name, np.array(ids)))
        assert torch.equal(found, tables[number][rows])
    assert torch.equal(model.user_vector(batch)[1], tables[0][-1])


def test_a_graph_without_users():
    graph = Graph(("film", "actor"), (4, 4), (np.arange(4), np.arange(4)), ("plays",), np.array([[1, 0]]))
    model = draw_tables(GraphModel(graph, GraphConfig(dim=8)), 0)
    batch = model.vocabulary.resolve(events([1], [2]))
    assert len(batch.sparse.values()) == 0
    with pytest.raises(ValueError, match="no node type 'user', but film, actor; name the type of its users so"):
        model.user_vector(batch)
