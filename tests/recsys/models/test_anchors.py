"""The pull of anchors, by hand."""

from __future__ import annotations

from dataclasses import replace

import torch

from recsys.config.graph import GraphConfig
from recsys.data.links import make_batch
from recsys.models.graph import GraphModel, GraphTask, Pull
from recsys.train.tables import draw_tables
from tests.recsys.models.graphs import planted_graph
from tests.recsys.models.test_graph import arrays


def test_few_links_move_the_entity_and_many_the_map() -> None:
    pull = Pull(2, 3)
    batch = make_batch(planted_graph(), *arrays(graph=planted_graph()))
    anchors, degrees = torch.tensor([[1.0, 2.0], [0.5, -1.0]]), torch.tensor([0.0, 3.0])
    batch = replace(batch, anchored=torch.tensor([0, 1]), anchors=anchors, degrees=degrees)
    vectors = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]], requires_grad=True)
    away = vectors.detach() - (anchors @ pull.map.weight.detach().T + pull.map.bias.detach())
    loss = pull(vectors, batch)
    torch.testing.assert_close(loss, away.square().sum() / 2)
    loss.backward()
    torch.testing.assert_close(vectors.grad, torch.tensor([[1.0], [0.25]]) * away)
    torch.testing.assert_close(pull.map.weight.grad, -(torch.tensor([[0.0], [0.75]]) * away).T @ anchors)


def test_a_batch_without_anchors_has_no_pull() -> None:
    graph, config = planted_graph(), GraphConfig(dim=8)
    batch = make_batch(graph, *arrays(graph=graph))
    losses = []
    for anchor_dim in (0, 4):
        torch.manual_seed(0)
        task = draw_tables(GraphTask(GraphModel(graph, config), config, anchor_dim), 0)
        loss, _ = task(batch)
        loss.backward()
        losses.append(loss.detach())
    assert torch.equal(*losses)
    assert torch.equal(task.loss.pull.map.weight.grad, torch.zeros(8, 4)), "so that ranks can average it"
