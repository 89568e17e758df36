from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from recsys.config import ConfigError, ContrastiveConfig, LossConfig, TableConfig
from recsys.data.schema import Schema
from recsys.models.id_tables import IdTables
from recsys.models.losses import DermTask, ItemFrequencies
from recsys.train.distributed import current_environment
from recsys.train.optimizer import build_optimizer
from recsys.train.sharding import shard
from recsys.train.tables import draw_tables
from tests.distributed import run_ranks
from tests.recsys.models.test_hashed_ids import ENDS, SCHEMA, batch

OWN = ContrastiveConfig(dim=8)
HASHED = ContrastiveConfig(dim=12, ids="hashed", sub_tables=3)
MANAGED = ContrastiveConfig(dim=8, ids="managed")
SUMMED = ContrastiveConfig(dim=8, ids="hashed", sub_tables=3, join="summed")


def model(config: ContrastiveConfig, schema: Schema = SCHEMA) -> IdTables:
    torch.manual_seed(0)
    made = draw_tables(IdTables(schema, config, ["click", "buy"]), 0)
    made.vocabulary.admit({"user": np.array(ENDS), "item": np.array(ENDS)})
    return made


@pytest.mark.parametrize("config", [OWN, HASHED, SUMMED, MANAGED])
def test_vectors_are_those_of_the_tables(config: ContrastiveConfig) -> None:
    made, rows = model(config), batch(ENDS, ENDS[::-1])
    rows = made.vocabulary.resolve(rows)
    output = made(rows)
    state = made.state_dict()
    own = state["item.own.embeddings.item_item_id.weight"][rows.sparse["item_id"].values()]
    own = own.view(5, -1, config.row_dim)
    own = own.flatten(1) if config.parts > 1 else own.sum(1)
    tags = state["item.others.embedding_bags.item_tags.weight"][rows.sparse["tags"].values()].view(5, 2, -1).mean(1)
    torch.testing.assert_close(output.item, F.normalize(own + tags, dim=1))
    assert torch.equal(made.item_vector(rows), output.item)
    assert torch.equal(made.user_vector(rows), output.user)
    assert output.logits.shape == (5, 2)
    expected = (output.user * output.item).sum(1, keepdim=True).expand(-1, 2)
    torch.testing.assert_close(output.logits, expected)
    made.raise_logits(torch.tensor([1.0, -2.0]))
    torch.testing.assert_close(made(rows).logits, expected + torch.tensor([1.0, -2.0]))


def test_logits_get_no_gradient_to_the_tables() -> None:
    made = model(OWN)
    output = made(made.vocabulary.resolve(batch(ENDS, ENDS)))
    output.logits.sum().backward()
    assert {name for name, x in made.named_parameters() if x.grad is not None} == {"readout.scale", "readout.bias"}
    output = made(made.vocabulary.resolve(batch(ENDS, ENDS)))
    (output.user[:, 0] * output.item[:, 0]).sum().backward()
    assert all(x.grad is not None for x in made.parameters())


def test_an_id_that_was_not_seen_is_unknown_or_has_hashed_rows() -> None:
    new = [2**40, 2**41]
    own, hashed = (x.user_vector(x.vocabulary.resolve(batch(new, new))) for x in (model(OWN), model(HASHED)))
    assert torch.equal(own[0], own[1])
    assert not torch.equal(hashed[0], hashed[1])


def test_a_user_table_takes_no_items_and_the_other_way_round() -> None:
    made = model(OWN)
    first = made(made.vocabulary.resolve(batch(ENDS, ENDS)))
    second = made(made.vocabulary.resolve(batch(ENDS, ENDS[::-1])))
    assert torch.equal(first.user, second.user)
    assert not torch.equal(first.item, second.item)


def losses_of(steps: int) -> list[float]:
    """Of some steps on global batches that are the same on any number of ranks, whose shares lie behind one another."""
    torch.manual_seed(0)
    environment = current_environment()
    frequencies = ItemFrequencies.from_counts(torch.arange(5), torch.arange(1, 6))
    loss = LossConfig(positives={"click": 1.0, "buy": 3.0}, contrastive_weight=1.0)
    task = DermTask(IdTables(SCHEMA, HASHED, ["click", "buy"]), loss, ["click", "buy"], frequencies)
    plan = {"user_user_id": TableConfig(sharding="row_wise")} if environment.world_size > 1 else {}
    sharded = draw_tables(shard(task, environment, sparse_lr=0.1, tables=plan), 0)
    optimizer, rng, found = build_optimizer(sharded, dense_lr=0.1, sparse_lr=0.1), np.random.default_rng(0), []
    for _ in range(steps):
        users, items, labels = rng.integers(0, 9, 16), rng.integers(0, 5, 16), rng.integers(0, 2, (16, 2))
        mine = slice(
            environment.rank * 16 // environment.world_size, (environment.rank + 1) * 16 // environment.world_size
        )
        rows = batch(users[mine].tolist(), items[mine].tolist())
        rows = replace(rows, labels=torch.from_numpy(labels[mine]).float(), label_mask=torch.ones(len(rows), 2).bool())
        optimizer.zero_grad()
        value, _ = sharded(task.model.vocabulary.resolve(rows))
        value.backward()
        optimizer.step()
        found.append(value.item())
    return found


def test_two_ranks_learn_what_one_does() -> None:
    (one,), two = run_ranks(losses_of, 1, 4), run_ranks(losses_of, 2, 4)
    assert [sum(pair) / 2 for pair in zip(*two, strict=True)] == pytest.approx(one, rel=1e-4)


def test_an_id_that_is_no_feature_is_refused() -> None:
    with pytest.raises(ValueError, match="no feature that is the user's own id: list it"):
        model(OWN, SCHEMA.select(features=("item_id", "tags")))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"dim": 6}, "dim is 6; tables need a multiple of 4"),
        ({"dim": 24, "ids": "hashed"}, "dim is 24, of 8 sub-tables: .* use a multiple of 32, fewer sub_tables"),
        ({"ids": "hash"}, "ids is 'hash'; use one of own, hashed, managed"),
        ({"join": "mean"}, "join is 'mean'; use one of concatenated, summed"),
        ({"sub_tables": 0}, "sub_tables is 0; use 1 or more"),
        ({"id_dropout": 1.0}, "id_dropout is 1.0"),
        ({"max_collisions": 2.0}, "max_collisions is 2.0; use a share from 0 to 1"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        ContrastiveConfig(**settings)  # type: ignore[arg-type]
