"""A step of every kind of upstream reads nothing off the data: a GPU's host would wait for it."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from recsys.config import ContrastiveConfig, LossConfig
from recsys.config.graph import GraphConfig
from recsys.data.links import LinkStream
from recsys.data.negatives import with_negatives
from recsys.models import losses
from recsys.models.contrastive import contrastive_loss
from recsys.models.derm import DERM
from recsys.models.graph import GraphModel, GraphTask
from recsys.models.id_tables import IdTables
from recsys.models.losses import DermTask, ItemFrequencies
from recsys.train.tables import draw_tables
from tests.host_reads import HostReads
from tests.recsys.models.graphs import links, planted_graph
from tests.recsys.models.support import SMALL, full_schema, random_batch
from tests.recsys.models.test_id_tables import SCHEMA, batch

CPU = torch.device("cpu")
LOSS = LossConfig(contrastive_weight=0.5)
FREQUENCIES = ItemFrequencies.from_counts(torch.arange(30), torch.arange(1, 31))


def derm() -> tuple[nn.Module, object]:
    """Sequences with and without a longest, of events and of drawn items."""
    schema = full_schema()
    events = with_negatives(random_batch(schema, 16), random_batch(schema, 5, seed=1, owners=("item",)))
    return DermTask(DERM(schema, SMALL, ("click", "buy")), LOSS, ("click", "buy"), FREQUENCIES, 30), events


def contrastive() -> tuple[nn.Module, object]:
    model = IdTables(SCHEMA, ContrastiveConfig(dim=8), ["click", "buy"])
    events = model.vocabulary.resolve(batch([1, 2, 3, 1], [0, 1, 2, 2]))
    events.labels, events.label_mask = torch.ones(4, 2), torch.ones(4, 2).bool()
    return DermTask(model, LOSS, ["click", "buy"], FREQUENCIES), events


def graph() -> tuple[nn.Module, object]:
    random, planted = np.random.default_rng(0), planted_graph()
    ends = [random.integers(4, size=40) for _ in range(2)]
    some = links(ends[0], np.sort(random.integers(len(planted.relations), size=40)), ends[1])
    config = GraphConfig(score="transr", dim=8)
    stream = LinkStream(some, planted, batch_size=16, group=4, negatives=5)
    return GraphTask(GraphModel(planted, config), config), next(iter(stream))


@pytest.mark.parametrize("kind", [derm, contrastive, graph])
def test_a_step_reads_nothing(kind, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    task, read = kind()
    draw_tables(task, 0)
    expected, _ = task(read)
    expected.backward()
    gradients = [parameter.grad.clone() for parameter in task.parameters()]
    task.zero_grad()
    monkeypatch.setattr(losses, "contrastive_loss", partial(contrastive_loss, select=False))  # as on a GPU
    moved = read.to(CPU)
    with HostReads() as reads:
        loss, _ = task(moved)
        loss.backward()
    assert not reads.found
    torch.testing.assert_close(loss, expected)
    for parameter, wanted in zip(task.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, wanted, atol=1e-6, rtol=1e-5)
