"""The benchmark of graphs on a planted one, and on a sample of FB15k-237 where that is at hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.fb15k import RECIPES, Options, main
from recsys.config.graph import SCORES
from recsys.data.triples import Graph, Triples, read_openke
from recsys.train.link_ranks import KnownLinks, rank_links

SHARED = Path(__file__).parents[2] / "../shared/data/fb15k-237"
PARTS = ("train", "valid", "test")
CLUSTERS, MEMBERS = 6, 12


def write(folder: Path, parts: list[np.ndarray]) -> Path:
    """Triples [N, 3], head, relation, tail, as files."""
    folder.mkdir()
    for name, rows in zip(PARTS, parts, strict=True):
        lines = ["\t".join(map(str, row)) for row in rows.tolist()]
        (folder / f"{name}2id.txt").write_text("\n".join([str(len(rows)), *lines, ""]))
    return folder


def planted(seed: int = 0) -> list[np.ndarray]:
    """Entities in clusters: relation 0 joins those of one, relation 1 leads from a cluster to the next."""
    cluster = np.arange(CLUSTERS * MEMBERS) // MEMBERS
    ahead = cluster[None, :] - cluster[:, None]
    links = [np.argwhere(ahead == step) for step in (0, 1)]
    rows = np.concatenate([np.insert(pairs, 1, number, axis=1) for number, pairs in enumerate(links)])
    np.random.default_rng(seed).shuffle(rows)
    return np.split(rows, [int(0.8 * len(rows)), int(0.9 * len(rows))])


def sample(entities: int, relations: int) -> list[np.ndarray]:
    """The triples of the relations and among the entities that have most, numbered anew."""
    if not SHARED.is_dir():
        pytest.skip("../shared/data/fb15k-237 is not here")
    graph, parts = read_openke(SHARED)
    entity = _most(np.concatenate((parts[0].heads, parts[0].tails)), graph.rows[0], entities)
    relation = _most(parts[0].relations, len(graph.relations), relations)
    found = []
    for part in parts:
        rows = np.stack((entity[part.heads], relation[part.relations], entity[part.tails]), axis=1)
        found.append(rows[(rows >= 0).all(1)])
    return found


def _most(values: np.ndarray, count: int, most: int) -> np.ndarray:
    """New numbers of the values that are there most often; -1 of others."""
    number = np.full(count, -1)
    number[np.argsort(-np.bincount(values, minlength=count), kind="stable")[:most]] = np.arange(most)
    return number


def trained(options: Options, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, float]]:
    main(options)
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def small(score: str, data: Path, out: Path, **training: object) -> Options:
    """The recipe with narrower vectors."""
    recipe = RECIPES[score]
    graph = replace(recipe.graph, dim=32, negatives=64, group=16, dropout=0.0)
    small = replace(recipe.training, batch_size=256, log_every=1000, **training)
    return replace(recipe, graph=graph, training=small, first=min(recipe.first, 3), passes=4, data=data, out=out)


@pytest.mark.parametrize("score", SCORES)
def test_planted_graph(score: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """One that knows nothing has a mean reciprocal rank of 0.07. DistMult cannot tell ahead from behind."""
    options = small(score, write(tmp_path / "data", planted()), tmp_path / "out", epochs=3, dense_lr=0.01)
    figures = trained(options, capsys)
    assert figures["test"]["mrr"] > (0.6 if score in ("transr", "distmult") else 0.8)
    assert figures["validation"]["hits@10"] > 0.7
    assert trained(options, capsys)["test"] == figures["test"]  # it is done, and nothing is trained again


class Popular:
    """Scores an entity by how often it is the answer in this relation."""

    def __init__(self, graph: Graph, train: Triples) -> None:
        self.counts = np.zeros((2, len(graph.relations), graph.rows[0]), np.float32)
        np.add.at(self.counts, (0, train.relations, train.tails), 1)
        np.add.at(self.counts, (1, train.relations, train.heads), 1)

    def __call__(self, relation: int, known: torch.Tensor, *, backwards: bool) -> torch.Tensor:
        return torch.from_numpy(self.counts[int(backwards), relation]).repeat(len(known), 1)


def test_sample_of_fb15k(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """More is found than the relation alone says, and than a model that knows nothing finds: 0.01."""
    data = write(tmp_path / "data", sample(entities=800, relations=12))
    graph, (train, valid, test) = read_openke(data)
    popular, raw = (
        rank_links(Popular(graph, train), test, KnownLinks(Triples.join(parts), graph), graph).hits(10)
        for parts in ((train, valid, test), (test,))
    )
    assert popular == pytest.approx(0.6218, abs=1e-4)
    assert raw == pytest.approx(0.2638, abs=1e-4)
    for score, least in (("complex", popular + 0.03), ("transr", 0.25)):
        options = replace(small(score, data, tmp_path / score, epochs=2, sparse_lr=0.2), first_lr=0.2, passes=2)
        figures = trained(options, capsys)
        assert figures["test"]["hits@10"] > least, score
