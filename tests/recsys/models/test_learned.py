"""Tables that a ranker learns in place of a series, or on top of one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recsys.config import NetworkConfig
from recsys.data.batch import Batch
from recsys.models.learned import LearnedTables, learned_tables
from recsys.models.rankers import build_ranker
from recsys.models.series import SeriesSpec
from recsys.models.vocabulary import Vocabulary
from recsys.train.distributed import current_environment
from recsys.train.optimizer import build_optimizer
from recsys.train.sharding import shard
from recsys.train.tables import draw_tables
from tests.distributed import run_ranks
from tests.recsys.models.test_hashed_ids import SCHEMA, batch

CONFIG = NetworkConfig(table_rate=0.25, embedding_dim=4, projection_dim=4, hidden=(8,))
USER = SeriesSpec(name="user_mf", owner="user", space="mf-1", dim=4, table="fine_tuned")
ITEM = SeriesSpec(name="item_mf", owner="item", space="mf-1", dim=4)
OTHER = SeriesSpec(name="item.own", owner="item", space="own-1", dim=8, table="scratch")
SERIES = (USER, ITEM, OTHER)
USERS, ITEMS = [5, -7, 2**62, 99], [3, 3, -(2**63), 4]
KNOWN = {"user": np.array(USERS[:3]), "item": np.array(ITEMS[:3])}


def joined(seed: int = 0) -> Batch:
    """Four events; the snapshot lacks the second one's user and the third one's item."""
    found = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 0], [1, 1, 1]]).bool()
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(4, 16, generator=generator)
    held = torch.cat([found[:, :1].expand(-1, 4), found[:, 1:2].expand(-1, 4), found[:, 2:].expand(-1, 8)], 1)
    rows = replace(batch(USERS, ITEMS), vectors=vectors * held, found=found, feed=torch.zeros(4, 3, 2))
    vocabulary = Vocabulary(SCHEMA)
    vocabulary.admit(KNOWN)
    return vocabulary.resolve(rows)


def learned(config: NetworkConfig = CONFIG) -> LearnedTables:
    made = learned_tables(SCHEMA, SERIES, config)
    assert made is not None
    return draw_tables(made, 0)


def test_vectors_are_the_stores_and_rows() -> None:
    made, rows = learned(), joined()
    vectors, found = made(rows.sparse, rows.vectors, rows.found)
    user, own = (x.embedding_bags for x in made.bags)
    mine = user["learned_user_mf"].weight[rows.sparse["user_id"].values()]
    expected = [rows.vectors[x, :4] + 0.25 * mine[x] if x != 1 else mine[x] for x in range(4)]
    assert torch.equal(vectors[:, :4], torch.stack(expected))
    assert torch.equal(vectors[:, 4:8], rows.vectors[:, 4:8]), "what is not learned stays"
    assert torch.equal(vectors[:, 8:], own["learned_item-own"].weight[rows.sparse["item_id"].values()])
    assert found.tolist() == [[True, True, True], [True, True, True], [True, False, True], [True, True, True]]
    assert rows.sparse["user_id"].values()[3] == 50, "a new user reads the unknown row"


def test_without_a_table_there_is_nothing_to_learn() -> None:
    assert learned_tables(SCHEMA, (ITEM,), CONFIG) is None
    narrow = SCHEMA.select(features=("item_id", "tags"))
    with pytest.raises(ValueError, match="'user_mf' is to be learned: list the user's own id as a feature"):
        learned_tables(narrow, (USER,), CONFIG)


@pytest.mark.parametrize("kind", ["dlrm", "dcnv2", "dhen"])
def test_every_ranker_has_them_and_starts_as_without(kind: str) -> None:
    config, rows = replace(CONFIG, kind=kind, hidden=(8, 4), tokens=2), joined()
    outputs = []
    for series in ((), tuple(replace(x, table="") for x in SERIES), SERIES):
        torch.manual_seed(0)
        ranker = draw_tables(build_ranker(SCHEMA, config, series), 0).eval()
        outputs.append(ranker(rows))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    nn.init.ones_(next(x for x in ranker.modules() if type(x).__name__ == "VectorFeatures").first.weight)
    ranker(rows).sum().backward()
    assert ranker.learned is not None
    assert all(bool(x.grad.abs().sum() > 0) for x in ranker.learned.parameters())


def test_candidates_attend_to_what_relations_make_of_vectors() -> None:
    torch.manual_seed(0)
    attended = [replace(x, table="attention", relations=2) for x in (USER, ITEM)]
    made = learned_tables(SCHEMA, attended, CONFIG)
    assert made is not None
    draw_tables(made, 0)
    rows = joined()
    rows = replace(rows, vectors=rows.vectors[:, :8], found=rows.found[:, :2])
    plain, _ = replace_tables(made, "fine_tuned")(rows.sparse, rows.vectors, rows.found)
    views = made.join.views_of("user_mf")
    matrices, offsets = torch.randn(2, 4, 4), torch.randn(2, 4)
    views.set(matrices, offsets)
    got, _ = made(rows.sparse, rows.vectors, rows.found)
    for row in range(4):
        user, item = plain[row, :4], plain[row, 4:]
        seen = [user @ matrices[x] + offsets[x] for x in range(2)]
        share = torch.stack([each @ views.ask(item) / 2 for each in seen]).softmax(0)
        torch.testing.assert_close(got[row, :4], user + share[0] * seen[0] + share[1] * seen[1])
    got.sum().backward()
    assert views.matrix_steps.grad is not None
    assert views.matrix_steps.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="read the items' of the same graph too"):
        learned_tables(SCHEMA, attended[:1], CONFIG)


def replace_tables(made: LearnedTables, table: str) -> LearnedTables:
    """The same rows, otherwise made use of."""
    series = tuple(replace(x, table=table, relations=0) for x in made.join.series)
    other = LearnedTables(SCHEMA, series, CONFIG)
    other.bags = made.bags
    return other


class _Task(nn.Module):
    """Pulls the learned vectors towards targets."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.tables = LearnedTables(SCHEMA, (USER,), config)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, rows: Batch, target: Tensor) -> Tensor:
        vectors, _ = self.tables(rows.sparse, rows.vectors, rows.found)
        return ((vectors - target) ** 2).sum() + 0 * self.scale


def _steps(frequency_adaptive: bool) -> tuple[Tensor, Tensor]:
    """The users' vectors after some steps, and what plain row-wise Adagrad makes of tables that begin as they do."""
    whole = joined()
    rows = replace(whole, vectors=whole.vectors[:, :4], found=whole.found[:, :1])
    task = _Task(replace(CONFIG, frequency_adaptive=frequency_adaptive))
    model = draw_tables(shard(task, current_environment(), sparse_lr=0.1), 0)
    counts = torch.zeros(51)
    counts[rows.sparse["user_id"].values()] = torch.tensor([3.0, 1.0, 7.0, 0.0])
    if frequency_adaptive:
        task.tables.join.set_frequencies({"user": counts})
        task.tables.join.set_frequencies({"user": counts * 5})  # those that have a rate keep it
    optimizer = build_optimizer(model, dense_lr=0.1, sparse_lr=0.1)
    shares = torch.log1p(counts) / torch.log(torch.tensor(8.0)) if frequency_adaptive else torch.ones(51)
    share = shares[rows.sparse["user_id"].values()]
    rates = 0.1 * torch.tensor([0.25, 1.0, 0.25, 0.25]) * share
    with torch.no_grad():
        plain = task.tables(rows.sparse, rows.vectors, rows.found)[0].clone()
    sums = torch.zeros(4)
    for step in range(5):
        target = torch.randn(4, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(rows, target).backward()
        optimizer.step()
        gradient = 2 * (plain - target)
        sums += (gradient**2).mean(1)
        plain -= (rates / sums.sqrt()).unsqueeze(1) * gradient
    with torch.no_grad():
        return task.tables(rows.sparse, rows.vectors, rows.found)[0], plain


@pytest.mark.parametrize("frequency_adaptive", [False, True])
def test_they_learn_as_a_table_that_begins_as_the_snapshot(frequency_adaptive: bool) -> None:
    ((got, expected),) = run_ranks(_steps, 1, frequency_adaptive)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
