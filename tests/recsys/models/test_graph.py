"""The loss of a graph against loops over single links, in plain modules; training is in tests/recsys/train."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys.config.graph import GraphConfig
from recsys.data.links import LinkBatch, make_batch
from recsys.data.triples import Graph
from recsys.models.graph import GraphModel, GraphTask, WholeGraph
from recsys.models.graph_scores import SCORES, cubes
from recsys.train.tables import draw_tables
from tests.recsys.models.graphs import planted_graph

GRAPH = planted_graph()
GROUPS = 5
LINKS = 4
DRAWN = 6


def made_task(graph: Graph = GRAPH, **options: object) -> GraphTask:
    config = GraphConfig(dim=8, init=0.8, **options)
    torch.manual_seed(0)
    task = draw_tables(GraphTask(GraphModel(graph, config), config), 0)
    for parameter in task.model.links.parameters():
        torch.nn.init.uniform_(parameter, -0.8, 0.8)
    return task


def arrays(seed: int = 0, graph: Graph = GRAPH, groups: int = GROUPS) -> tuple[np.ndarray, ...]:
    """Relations [G], heads and tails [G, P] of few rows, so that some are twice, weights [G, P], some 0, and drawn."""
    random = np.random.default_rng(seed)
    relations = random.integers(len(graph.relations), size=groups)
    heads, tails = random.integers(3, 7, size=(2, groups, LINKS))
    weights = random.choice([0.0, 1.0, 2.5], size=(groups, LINKS), p=[0.2, 0.6, 0.2]).astype(np.float32)
    return relations, heads, tails, weights, [random.integers(3, 9, size=DRAWN) for _ in graph.types]


def naive_loss(task: GraphTask, relations, heads, tails, weights, drawn) -> Tensor:
    """Link by link, candidate by candidate."""
    config, model = task.loss.config, task.model
    score, count = model.links.score, len(GRAPH.relations)
    tables = [table.weight for table in model.tables.embeddings.values()]
    total, mass = torch.zeros(()), 0.0

    def of(head: Tensor, tail: Tensor, relation: int, side: int) -> Tensor:
        if side and config.reciprocal:
            head, tail, relation = tail, head, relation + count
        return score(head.view(1, 1, -1), tail.view(1, 1, -1), torch.tensor([relation])).squeeze()

    for group, relation in enumerate(relations.tolist()):
        kinds = GRAPH.ends[relation]
        real = [link for link in range(LINKS) if weights[group, link] > 0]
        pairs = {(int(heads[group, link]), int(tails[group, link])) for link in real}
        for link in real:
            head, tail = int(heads[group, link]), int(tails[group, link])
            for side in (0, 1):
                end = (tail, head)[side]
                table, kind = tables[kinds[1 - side]], kinds[1 - side]
                ends = [tables[kinds[0]][head], tables[kinds[1]][tail]]

                def changed(row: int, ends=ends, side=side, table=table, relation=relation) -> Tensor:
                    mine = list(ends)
                    mine[1 - side] = table[row]
                    return of(*mine, relation, side)

                uniform = [changed(row) for row in drawn[kind].tolist() if row != end]
                others = []
                for other in real if config.in_batch else []:
                    row = int((tails, heads)[side][group, other])
                    if ((head, row), (row, tail))[side] not in pairs:
                        others.append(changed(row))
                each = contrast(config, changed(end), uniform, others, len(GRAPH.entities[kind]) / DRAWN)
                if config.n3:
                    vector = score.vectors[relation + (count if side and config.reciprocal else 0)]
                    each = each + config.n3 * cubes(torch.stack([*ends, vector]), of_complex=score.COMPLEX).sum()
                total = total + weights[group, link] * each / 2
        mass += weights[group, real].sum()
    return total / mass


def contrast(config: GraphConfig, link: Tensor, uniform: list[Tensor], others: list[Tensor], share: float) -> Tensor:
    if config.loss == "softmax":
        rest = sum((score.exp() * share for score in uniform), torch.zeros(())) + sum(score.exp() for score in others)
        return -(link.exp() / (link.exp() + rest)).log()
    negatives = torch.stack(uniform + others)
    shares = (config.adversarial * negatives.detach()).softmax(0)
    if config.loss == "margin":
        return (shares * (config.margin + negatives - link).relu()).sum()
    return -torch.sigmoid(config.margin + link).log() - (shares * torch.sigmoid(-config.margin - negatives).log()).sum()


@pytest.mark.parametrize("reciprocal", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        *({"score": score} for score in SCORES),
        {"score": "transr", "relation_dim": 4, "in_batch": True},
        {"score": "complex", "in_batch": True, "n3": 0.3},
        {"score": "distmult", "n3": 0.3},
        {"score": "rotate", "loss": "logistic", "margin": 1.5, "adversarial": 0.7, "in_batch": True},
        {"score": "transe", "loss": "logistic", "margin": 1.5},
        {"score": "transr", "loss": "margin", "margin": 0.5, "adversarial": 2.0},
    ],
    ids=lambda x: " ".join(map(str, x.values())) if isinstance(x, dict) else str(x),
)
def test_loss_is_that_of_single_links(options: dict, reciprocal: bool):
    task, parts = made_task(**options, reciprocal=reciprocal), arrays()
    loss, output = task(make_batch(GRAPH, *parts))
    expected = naive_loss(task, *parts)
    torch.testing.assert_close(loss, expected)
    parameters = list(task.parameters())
    gradients = [torch.autograd.grad(x, parameters, materialize_grads=True) for x in (loss, expected)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    assert set(output.losses) == {"tail", "head", *(["n3"] if options.get("n3") else [])}
    assert output.logits.shape == (GROUPS * LINKS, 0)


def test_a_batch_without_a_link():
    """Of a rank whose share has ended: a loss of 0, and gradients of 0."""
    for options in ({}, {"loss": "logistic"}, {"score": "complex", "n3": 0.1, "in_batch": True}):
        task, (relations, heads, tails, weights, drawn) = made_task(**options), arrays()
        loss, _ = task(make_batch(GRAPH, relations, heads, tails, 0 * weights, drawn))
        assert loss.item() == 0
        loss.backward()
        assert all(not parameter.grad.any() for parameter in task.parameters())


def test_negatives_that_are_all_the_end_itself():
    task, (relations, heads, _, weights, drawn) = made_task(), arrays()
    same = np.full_like(heads, 4)
    for loss in ("softmax", "margin"):
        task.loss.config = GraphConfig(dim=8, loss=loss)
        drawn = [np.full_like(rows, 4) for rows in drawn]
        value, _ = task(make_batch(GRAPH, relations, same, same, weights, drawn))
        value.backward()
        assert value.item() == 0
        assert all(parameter.grad.isfinite().all() for parameter in task.parameters())


def test_drawn_ones_stand_for_all():
    """With every entity drawn once, the softmax is over all entities of the type."""
    task = made_task(score="distmult")
    relations, heads, tails, weights, _ = arrays()
    graph = Graph(GRAPH.types, GRAPH.rows, tuple(np.arange(3, 11) for _ in GRAPH.types), GRAPH.relations, GRAPH.ends)
    loss, _ = task(make_batch(graph, relations, heads, tails, weights, list(graph.entities)))
    scores = WholeGraph(task.model, graph, torch.device("cpu"))
    total = 0.0
    for group, link in zip(*np.nonzero(weights), strict=True):
        for backwards, (known, end) in enumerate(((heads, tails), (tails, heads))):
            row = torch.from_numpy(known[group, link : link + 1])
            found = scores(int(relations[group]), row, backwards=bool(backwards))[0]
            total += weights[group, link] * float(found.logsumexp(0) - found[end[group, link] - 3]) / 2
    assert loss.item() == pytest.approx(total / weights.sum(), rel=1e-5)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("reciprocal", [True, False])
def test_whole_graph_scores_as_the_task_does(score: str, reciprocal: bool):
    """What is evaluated is what was trained: of every candidate that was drawn for a link, either side."""
    task, (relations, heads, tails, weights, drawn) = made_task(score=score, reciprocal=reciprocal), arrays()
    output = task.model(make_batch(GRAPH, relations, heads, tails, weights, drawn))
    whole = WholeGraph(task.model, GRAPH, torch.device("cpu"))
    for group, relation in enumerate(relations.tolist()):
        for side, known in enumerate((heads, tails)):
            found = whole(relation, torch.from_numpy(known[group]), backwards=side == 1)
            columns = drawn[GRAPH.ends[relation, 1 - side]] - 3
            mine = output.drawn[side][group]
            shown = mine > -math.inf
            torch.testing.assert_close(mine[shown], found[:, columns][shown])


def test_batches_move_as_a_whole():
    batch = make_batch(GRAPH, *arrays())
    moved = batch.to(torch.device("cpu"))
    assert isinstance(moved, LinkBatch)
    assert moved.nodes.keys() == list(GRAPH.types)
    assert all(len(bag.values().unique()) == len(bag.values()) for bag in moved.nodes.to_dict().values())
