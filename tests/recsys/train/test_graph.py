"""Graphs through the one loop: what it learns, two ranks against one, and a run that goes on."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recsys.config import TrainConfig
from recsys.config.graph import EndConfig, GraphConfig, RelationConfig
from recsys.data.links import LinkStream, make_batch
from recsys.data.relations import declared, read_links
from recsys.data.triples import Triples
from recsys.models.graph import GraphModel, GraphTask, WholeGraph
from recsys.train import checkpoint, planning
from recsys.train.distributed import Environment, current_environment
from recsys.train.link_ranks import KnownLinks, rank_links
from recsys.train.run import TrainResult
from recsys.train.trainer import fit
from tests.distributed import run_ranks
from tests.recsys.models.graphs import planted_graph, planted_links
from tests.recsys.models.test_nodes import events
from tests.recsys.train.test_ranks import records
from tests.recsys.train.toy import ListStream, whole_state

GRAPH = planted_graph()
TRAINING = TrainConfig(batch_size=64, log_every=1, checkpoint_every=3, sparse_lr=0.1, dense_lr=0.01)
STEPS = 5


def run(config: GraphConfig, stream: Any, environment: Environment, **options: Any) -> TrainResult:
    torch.manual_seed(3)
    task, training = GraphTask(GraphModel(GRAPH, config), config), options.pop("training", TRAINING)
    return fit(task, stream, training, environment, tasks=(), title=None, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"score": "transr"},
        {"score": "transe", "reciprocal": False, "in_batch": True},
        {"score": "distmult", "n3": 0.001},
        {"score": "complex", "reciprocal": False},
        {"score": "rotate", "loss": "logistic", "margin": 2.0, "adversarial": 1.0},
        {"score": "transr", "relation_dim": 8, "loss": "margin", "margin": 1.0},
    ],
    ids=lambda x: " ".join(map(str, x.values())),
)
def test_planted_links_are_found(options: dict[str, Any], environment: Environment):
    """Of each relation, those that were held out; a model that knows nothing has 0.1 of items and 0.35 of authors."""
    train, held_out = planted_links(0.7, round_and_round=options["score"] != "transe")
    config = GraphConfig(dim=16, negatives=32, group=16, **options)
    stream = LinkStream(train, GRAPH, batch_size=128, group=16, negatives=32, epochs=20)
    result = run(config, stream, environment, training=replace(TRAINING, log_every=100))
    model = result.model.module.model
    ranks = rank_links(
        WholeGraph(model, GRAPH, environment.device),
        held_out,
        KnownLinks(Triples.join((train, held_out)), GRAPH),
        GRAPH,
    )
    for number, name in enumerate(GRAPH.relations):
        here = held_out.relations == number
        assert (1 / ranks.tails[here]).mean() > 0.7, (name, "tails")
        assert (1 / ranks.heads[here]).mean() > 0.7, (name, "heads")


def arrays(step: int, rank: int) -> tuple[np.ndarray, ...]:
    """Half of a global batch: its groups. What is drawn is the same on both ranks."""
    random = np.random.default_rng((step, rank))
    heads, tails = random.integers(3, 11, size=(2, 2, 3))
    weights = random.choice([0, 1, 3], size=(2, 3)).astype(np.float32)
    shared = np.random.default_rng(step)
    return random.integers(3, size=2), heads, tails, weights, [shared.integers(3, 11, size=5) for _ in GRAPH.types]


def half_or_whole(ranks: list[int]) -> ListStream:
    batches = []
    for step in range(STEPS):
        *parts, drawn = zip(*(arrays(step, rank) for rank in ranks), strict=True)
        batches.append(make_batch(GRAPH, *(np.concatenate(part) for part in parts), drawn[0]))
    return ListStream(batches)


CONFIGS = {
    "transr": GraphConfig(dim=8, relation_dim=4, in_batch=True),
    "complex": GraphConfig(dim=8, score="complex", n3=0.1, reciprocal=False),
    "rotate": GraphConfig(dim=8, score="rotate", loss="logistic", margin=2.0, adversarial=1.0),
}


def on_two_ranks(folder: Path) -> dict[str, Any]:
    environment = current_environment()
    for name, config in CONFIGS.items():
        with patch.object(planning, "SPREAD_BYTES", 2**30 if name == "transr" else 0):  # the others are row-wise
            result = run(config, half_or_whole([environment.rank]), environment, out=folder / name)
    assert {x.sharding_type for plan in result.model.plan.plan.values() for x in plan.values()} == {"row_wise"}
    train, held_out = planted_links(0.7)
    known, model = KnownLinks(Triples.join((train, held_out)), GRAPH), result.model.module.model
    found = {"ranks": rank_links(WholeGraph(model, GRAPH, environment.device), held_out, known, GRAPH)}
    model.vocabulary.admit(dict(zip(GRAPH.types, GRAPH.entities, strict=True)))
    with torch.no_grad():
        users = torch.tensor([[4, 9, 7], [11]][environment.rank])  # more of one rank than of the other
        batch = model.vocabulary.resolve(events(users.tolist(), users.tolist()))
        found["vectors"], found["rows"] = model.user_vector(batch), model.entity_vectors("user", users)
        found["items"] = model.item_vector(batch).shape
    return found


def test_two_ranks_train_as_one(environment: Environment, tmp_path: Path):
    first, second = run_ranks(on_two_ranks, 2, tmp_path / "two")
    for name, config in CONFIGS.items():
        result = run(config, half_or_whole([0, 1]), environment, out=tmp_path / "one" / name)
        for mine, theirs in zip(records(tmp_path / "one" / name), records(tmp_path / "two" / name), strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4)
    train, held_out = planted_links(0.7)
    known = KnownLinks(Triples.join((train, held_out)), GRAPH)
    alone = rank_links(WholeGraph(result.model.module.model, GRAPH, environment.device), held_out, known, GRAPH)
    for rank in (first, second):
        assert torch.equal(rank["vectors"], rank["rows"])
        assert rank["items"] == rank["vectors"].shape
    assert first["ranks"].mrr == second["ranks"].mrr == pytest.approx(alone.mrr, rel=1e-3)


def test_a_run_goes_on_as_if_it_never_stopped(environment: Environment, tmp_path: Path):
    train, _ = planted_links(0.3)

    def stream(epochs: int) -> LinkStream:
        return LinkStream(train, GRAPH, batch_size=64, group=8, negatives=16, epochs=epochs, seed=1)

    config = GraphConfig(dim=8, dropout=0.2)
    whole = run(config, stream(3), environment, out=tmp_path / "whole")
    run(config, stream(2), environment, out=tmp_path / "parts")
    parts = run(config, stream(3), environment, out=tmp_path / "parts")
    assert records(tmp_path / "parts")[-1]["loss"] == records(tmp_path / "whole")[-1]["loss"]
    for name, value in whole_state(whole.model).items():
        assert torch.equal(whole_state(parts.model)[name], value), name


def day(folder: Path, users: range, name: str) -> tuple[Any, Any]:
    """A log of users and the items of their cluster, ids anywhere in int64, and what links it has."""
    pairs = [(scatter(user), scatter(100 + item)) for user in users for item in range(24) if user % 4 == item % 4]
    columns = zip(*pairs, strict=True)
    pq.write_table(pa.table(dict(zip(("user_id", "item_id"), columns, strict=True))), folder / name)
    ends = [EndConfig(type=kind, column=f"{kind}_id") for kind in ("user", "item")]
    clicked = RelationConfig(name="clicked", head=ends[0], tail=ends[1])
    return clicked, read_links([clicked], folder, [name], {"user": 64, "item": 64})


def scatter(number: int) -> int:
    return int(np.int64(np.uint64(number * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF).view(np.int64)))


def test_from_a_log_to_vectors_and_on_with_the_next_day(environment: Environment, tmp_path: Path):
    """Users of a cluster are nearer to its items than to others, those that came on the second day too; rows that were
    owned stay."""
    config, training = GraphConfig(score="distmult", dim=8, negatives=16, group=8), replace(TRAINING, sparse_lr=0.2)
    rows = {}
    for number, users in enumerate((range(12), range(8, 20))):
        clicked, (graph, links) = day(tmp_path, users, f"{number}.parquet")
        start = checkpoint.latest(tmp_path / "0" / "checkpoints") if number else None
        torch.manual_seed(0)
        model = GraphModel(declared([clicked], graph.sizes), config)
        seen = dict(zip(graph.types, graph.entities, strict=True))
        stream = LinkStream(
            links, graph, batch_size=32, group=8, negatives=16, epochs=15, locate=model.vocabulary.locate
        )
        options = {"tasks": (), "title": None, "out": tmp_path / str(number), "start": start}
        task = GraphTask(model, config)
        fit(task, stream, training, environment, begun=partial(model.vocabulary.admit, seen), **options)
        ids = np.array([scatter(user) for user in range(8, 12)])
        rows[number] = model.vocabulary.find("user", ids)
    assert (rows[0] == rows[1]).all()
    everyone, items = [scatter(x) for x in range(20)], [scatter(100 + x) for x in range(20)]
    batch = model.vocabulary.resolve(events(everyone, items))
    with torch.no_grad():
        space = model.links.space(torch.tensor([0]), backwards=False)
        asked = model.links.query(model.user_vector(batch).unsqueeze(0), space, backwards=False)
        scores = model.links.score.match(asked, model.item_vector(batch).unsqueeze(0))[0]  # [20, 20]
    same = torch.arange(20).unsqueeze(1) % 4 == torch.arange(20) % 4
    found = scores.argsort(1, descending=True)[:, :5]
    assert same.gather(1, found).float().mean() > 0.9
