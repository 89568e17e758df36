"""Triples as arrays, and triple files with every mistake that they may have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.data.errors import DataError
from recsys.data.triples import Triples, read_openke

SHARED = Path(__file__).parents[3] / "../shared/data/fb15k-237"


def triples(each: list[tuple[int, int, int]]) -> Triples:
    columns = np.array(each, np.int64).reshape(-1, 3).T
    return Triples(columns[0], columns[1], columns[2], np.arange(1, len(each) + 1).astype(np.float32))


def rows(links: Triples) -> list[tuple[int, int, int, float]]:
    return list(zip(*(x.tolist() for x in (links.heads, links.relations, links.tails, links.weights)), strict=True))


LINKS = st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 2), st.integers(0, 1)), max_size=30)


@given(LINKS)
def test_distinct_adds_up_weights(each: list):
    wanted: dict[tuple[int, int, int], float] = {}
    for *link, weight in rows(triples(each)):
        wanted[tuple(link)] = wanted.get(tuple(link), 0) + weight
    found = rows(triples(each).distinct())
    assert {(h, r, t): weight for h, r, t, weight in found} == wanted
    assert [(r, h, t) for h, r, t, _ in found] == sorted((r, h, t) for h, r, t in wanted)


@given(LINKS, st.integers(1, 4))
def test_shares_are_all_links_and_even_in_every_relation(each: list, world_size: int):
    links = triples(each)
    shares = [links.share(rank, world_size) for rank in range(world_size)]
    assert sorted(row for share in shares for row in rows(share)) == sorted(rows(links))
    for relation in range(3):
        counts = [int((share.relations == relation).sum()) for share in shares]
        assert max(counts) - min(counts) <= 1


def test_links_that_are_held_out():
    random = np.random.default_rng(0)
    links = Triples(*random.integers(-(2**63), 2**63 - 1, (3, 4000)), np.ones(4000, np.float32))
    train, held = links.hold_out(0.1)
    assert len(train) + len(held) == 4000
    assert 300 < len(held) < 500
    order = random.permutation(4000)
    again = links.take(order).hold_out(0.1)[1]
    assert sorted(rows(again)) == sorted(rows(held))
    assert len(links.hold_out(0.0)[1]) == 0


def write(folder: Path, **parts: str) -> Path:
    for name in ("train", "valid", "test"):
        (folder / f"{name}2id.txt").write_text(parts.get(name, "1\n0\t0\t1\n"))
    return folder


def test_files_of_openke(tmp_path: Path):
    graph, (train, valid, test) = read_openke(write(tmp_path, train="2\n0\t1\t3\n2 0 1\n", test="0\n"))
    assert rows(train) == [(0, 1, 3, 1.0), (2, 0, 1, 1.0)]
    assert (len(valid), len(test)) == (1, 0)
    assert (graph.rows, graph.relations) == ((4,), ("relation_0", "relation_1"))
    assert graph.entities[0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3\n0\t0\t1\n", "the first line is '3', but 1 lines follow"),
        ("", "the first line is '', but 0 lines follow"),
        ("one\n0\t0\t1\n", "the first line is 'one'"),
        ("2\n0\t0\t1\n0\t-1\t1\n", "line 3 has relation -1; .* none is negative"),
        ("1\n-4\t0\t1\n", "line 2 has head -4"),
        ("1\n0\t0\t-1\n", "line 2 has tail -1"),
        ("2\n0\t0\t1\n0\t1\n", "line 3 is '0\\\\t1'; give three integers"),
        ("1\n0\tlikes\t1\n", "line 2 is '0\\\\tlikes\\\\t1'; give three integers"),
        ("1\n0\t0\t99999999999999999999\n", "line 2 is '0.*'; give three integers"),
    ],
)
def test_files_with_mistakes(tmp_path: Path, text: str, message: str):
    with pytest.raises(DataError, match=f"valid2id.txt: {message}"):
        read_openke(write(tmp_path, valid=text))


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(DataError, match=r"train2id.txt: No such file or directory; give the folder"):
        read_openke(tmp_path)


def test_fb15k():
    if not SHARED.is_dir():
        pytest.skip("../shared/data/fb15k-237 is not here")
    graph, parts = read_openke(SHARED)
    assert [len(part) for part in parts] == [272_115, 17_535, 20_466]
    assert (graph.rows, len(graph.relations)) == ((14_541,), 237)
    assert len(Triples.join(parts).distinct()) == 310_116
