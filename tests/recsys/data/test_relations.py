"""Relations over Parquet columns: what they come to, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding_store import hash_keys
from recsys.config import ConfigError
from recsys.config.graph import EndConfig, GraphConfig, RelationConfig
from recsys.data import relations
from recsys.data.errors import DataError
from recsys.data.relations import read_links
from recsys.data.triples import Graph, Triples

LARGEST, SMALLEST = 2**63 - 1, -(2**63)


def relation(name: str, head: str, tail: str, **options: Any) -> RelationConfig:
    """Ends are `type:column`."""
    ends = [EndConfig(type=kind, column=column) for kind, column in (end.split(":") for end in (head, tail))]
    return RelationConfig(name=name, head=ends[0], tail=ends[1], **options)


def write(folder: Path, name: str = "events", **columns: Any) -> Path:
    pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return folder


def read(folder: Path, *each: RelationConfig) -> tuple[Graph, Triples]:
    return read_links(each, folder, ["events*.parquet"])


def rows(links: Triples) -> list[tuple[int, int, int, float]]:
    return list(zip(*(x.tolist() for x in (links.heads, links.relations, links.tails, links.weights)), strict=True))


def hashed(*texts: str) -> list[int]:
    return hash_keys(list(texts)).tolist()


CLICKED = relation("clicked", "user:u", "item:i", where="click", weight=2.0)


@pytest.mark.parametrize("chunk", [1, 2, 65_536])
def test_links_of_several_types(tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch):
    """Ids of the whole int64 range, strings, lists, nulls, a label; and each link once, weighted."""
    monkeypatch.setattr(relations, "_ROWS", chunk)
    write(
        tmp_path,
        u=pa.array([LARGEST, SMALLEST, LARGEST, None, LARGEST]),
        i=pa.array([1, 2, 1, 3, 5]),
        click=pa.array([1, 1, 1, 1, 0], pa.int8()),
        brand=pa.array(["a", None, "b", "a", "a"]).dictionary_encode(),
        tags=pa.array([["x", "y"], [], None, ["x", None], ["x", "x"]]),
    )
    graph, links = read(
        tmp_path, CLICKED, relation("brand", "item:i", "brand:brand"), relation("tagged", "tag:tags", "item:i")
    )
    a, b, x, y = hashed("a", "b", "x", "y")
    assert rows(links) == [
        (SMALLEST, 0, 2, 2.0),
        (LARGEST, 0, 1, 4.0),
        *sorted([(1, 1, a, 1.0), (1, 1, b, 1.0), (3, 1, a, 1.0), (5, 1, a, 1.0)]),
        *sorted([(x, 2, 1, 1.0), (x, 2, 3, 1.0), (x, 2, 5, 2.0), (y, 2, 1, 1.0)]),
    ]
    assert graph.types == ("user", "item", "brand", "tag")
    assert graph.relations == ("clicked", "brand", "tagged")
    assert graph.ends.tolist() == [[0, 1], [1, 2], [3, 1]]
    assert [ids.tolist() for ids in graph.entities] == [
        [SMALLEST, LARGEST],
        [1, 2, 3, 5],
        sorted([a, b]),
        sorted([x, y]),
    ]
    assert graph.rows == (4, 8, 4, 4)  # twice the ids


def test_tables_that_have_been_counted(tmp_path: Path):
    """A later day's graph has the sizes of the first one's, and so does one that is only declared."""
    write(tmp_path, u=[1, 2], i=[3, 4], click=[1, 1])
    first, _ = read(tmp_path, CLICKED)
    assert first.sizes == {"user": 4, "item": 5}  # twice the ids, or one for each from 0 on
    write(tmp_path, u=list(range(50)), i=list(range(50)), click=[1] * 50)
    later, _ = read_links([CLICKED], tmp_path, ["events.parquet"], {"user": 4})
    assert later.sizes == {"user": 4, "item": 100}
    bare = relations.declared([CLICKED], first.sizes)
    assert (bare.types, bare.rows, bare.relations) == (first.types, first.rows, first.relations)
    assert (bare.ends == first.ends).all()
    assert [len(ids) for ids in bare.entities] == [0, 0]


def test_files_of_its_own(tmp_path: Path):
    """Another relation's, an ids' type that narrower integers have, and a file whose column holds nothing."""
    write(tmp_path, u=[1, 2], i=[3, 4], click=[True, False])
    write(tmp_path, "catalogue-0", item=pa.array([3, 4], pa.int32()), maker=["m", "n"])
    write(tmp_path, "catalogue-1", item=pa.array([9], pa.uint8()), maker=pa.nulls(1))
    graph, links = read(tmp_path, CLICKED, relation("made", "item:item", "maker:maker", events=("catalogue*.parquet",)))
    assert [row[:2] for row in rows(links)] == [(1, 0), (3, 1), (4, 1)]
    assert graph.entities[1].tolist() == [3, 4]


@pytest.mark.parametrize(
    ("each", "message"),
    [
        (
            relation("r", "user:u", "item:itm"),
            r"column 'itm' is missing; relation 'r' reads it as its tail. The .*: u, i,",
        ),
        (relation("r", "user:u", "item:i", where="clik"), r"'clik' is missing \(did you mean 'click'\?\); .* `where`"),
        (relation("r", "user:score", "item:i"), "'score' has type double; .* must be an integer or a string"),
        (relation("r", "tag:tags", "item:more"), "has lists at both ends, 'tags' and 'more'"),
        (relation("r", "user:u", "item:i", where="never"), "relation 'r' has no link in 1 files: .* 'never' is 1"),
        (relation("r", "user:u", "item:empty"), "relation 'r' has no link in 1 files"),
        (relation("r", "user:u", "item:i", where="score"), "column 'score' has the value 0.5; it is `where`"),
        (
            relation("r", "user:u", "user:title"),
            "'user' has integers in column 'u' of .* and strings in column 'title'",
        ),
        (relation("r", "user:u", "item:i", events=("other*",)), "pattern 'other\\*' matches nothing"),
    ],
)
def test_relations_with_mistakes(tmp_path: Path, each: RelationConfig, message: str):
    write(
        tmp_path,
        u=[1, 2],
        i=[1, 2],
        title=["a", "b"],
        click=[0, 1],
        never=[0, 0],
        score=[0.5, 1.0],
        empty=pa.nulls(2),
        tags=[["x"], ["y"]],
        more=[["x"], ["y"]],
    )
    with pytest.raises(DataError, match=message):
        read(tmp_path, relation("clicked", "user:u", "item:i"), each)


def test_one_column_of_two_kinds(tmp_path: Path):
    """Integers in one file, strings in another."""
    write(tmp_path, "events-0", u=[1], i=[1])
    write(tmp_path, "events-1", u=["a"], i=[1])
    with pytest.raises(DataError, match=r"'user' has integers .*events-0.* and strings .*events-1"):
        read(tmp_path, relation("r", "user:u", "item:i"))


def test_mistakes_are_told_together(tmp_path: Path):
    write(tmp_path, u=[1], i=[1])
    with pytest.raises(DataError, match=r"2 mistakes\n.*'a' is missing.*\n.*'b' is missing"):
        read(tmp_path, relation("r", "user:a", "item:i"), relation("s", "user:u", "item:b"))
    with pytest.raises(DataError, match="relations is empty"):
        read(tmp_path)
    (tmp_path / "events-9.parquet").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"events-9.parquet: not a readable Parquet file"):
        read(tmp_path, relation("r", "user:u", "item:i"))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            lambda: GraphConfig(score="transq"),
            r"score is 'transq' \(did you mean 'transr'\?\); use one of transr, transe",
        ),
        (lambda: GraphConfig(loss="mse"), "loss is 'mse'; use one of softmax"),
        (lambda: GraphConfig(dim=10), "dim is 10; tables need a multiple of 4"),
        (lambda: GraphConfig(score="transe", relation_dim=8), "relation_dim is 8; only transr"),
        (lambda: GraphConfig(n3=0.1), "n3 is 0.1; only distmult and complex take it"),
        (lambda: GraphConfig(adversarial=1.0), "adversarial is 1.0; it is for the losses logistic and margin"),
        (lambda: GraphConfig(negatives=0), "negatives is 0; use more than 0"),
        (lambda: GraphConfig(dropout=1.0), "dropout is 1.0"),
        (lambda: GraphConfig(relations=(CLICKED, CLICKED)), "relations names clicked twice"),
        (lambda: relation("r", "user:u", "item:i", weight=0.0), "weight of relation 'r' is 0.0"),
        (lambda: relation("r", "user:u", "item:u"), "relation 'r' has column 'u' at both ends"),
        (lambda: relation("a b", "user:u", "item:i"), "name is 'a b'"),
        (lambda: EndConfig(type="a-b", column="x"), "type is 'a-b'"),
        (lambda: EndConfig(type="a", column=""), "column is empty"),
    ],
)
def test_configs_with_mistakes(made: Any, message: str):
    with pytest.raises(ConfigError, match=message):
        made()


def test_node_types_come_in_the_order_they_are_named():
    config = GraphConfig(relations=(CLICKED, relation("made", "item:i", "maker:m")))
    assert config.node_types == ("user", "item", "maker")
    assert np.isclose(config.relation_width, config.dim)
