"""The two-tower model alone: what its towers read, where they begin, and its loss in NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys.config import ModelConfig
from recsys.data.batch import Batch
from recsys.data.negatives import take, with_negatives
from recsys.data.schema import Schema
from recsys.models.losses import ItemFrequencies
from recsys.models.series import SeriesSpec
from recsys.models.two_tower import TwoTower, TwoTowerLoss, TwoTowerOutput
from recsys.train.tables import allocate
from tests.recsys.models.support import full_schema, random_batch

MODEL = ModelConfig(token_dim=4, layers=(("mlp",),), tokens=2, out_tokens=2, out_dim=3)
SERIES = (
    SeriesSpec(name="user_ctr", owner="user", space="ctr-1", dim=6),
    SeriesSpec(name="item_ctr", owner="item", space="ctr-1", dim=6),
    SeriesSpec(name="item_cvr", owner="item", space="cvr-1", dim=5),
)


def built(schema: Schema, series: tuple[SeriesSpec, ...] = SERIES) -> TwoTower:
    torch.manual_seed(0)
    model = allocate(TwoTower(schema, MODEL, series))
    for name, parameter in model.named_parameters():
        if "embedding" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def read(batch: Batch, seed: int = 0) -> Batch:
    """With vectors that all were found."""
    generator = torch.Generator().manual_seed(seed)
    size = len(batch)
    return replace(
        batch,
        vectors=torch.randn(size, 17, generator=generator),
        found=torch.ones(size, 3, dtype=torch.bool),
        feed=torch.rand(size, 3, 2, generator=generator),
    )


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b).mean().detach())


def test_towers_begin_as_the_vectors_of_one_space() -> None:
    """Of the dimension of their own; those that were not found say nothing, whatever lies in their place."""
    schema = full_schema()
    model, batch = built(schema), read(random_batch(schema, 50, 1))
    user, item = model(batch)
    assert cosine(user, batch.vectors[:, :6]) > 0.9
    assert cosine(item, batch.vectors[:, 6:12]) > 0.5  # another series adds to it
    torch.testing.assert_close(user.norm(dim=1), torch.ones(50))
    lost = replace(batch, found=torch.zeros_like(batch.found))
    other = replace(lost, vectors=torch.randn_like(batch.vectors), feed=torch.rand_like(batch.feed))
    for a, b in zip(model(lost), model(other), strict=True):
        assert torch.equal(a, b)
    assert abs(cosine(model(lost).user, batch.vectors[:, :6])) < 0.5


def test_a_tower_reads_its_own_side_alone() -> None:
    schema = full_schema()
    model, batch = built(schema), read(random_batch(schema, 20, 1))
    user, item = model(batch)
    changed = batch.vectors.clone()
    changed[:, 6:] += 1
    dense = batch.dense | {owner: x + 1 for owner, x in batch.dense.items() if owner != "user"}
    elsewhere = model(replace(batch, vectors=changed, dense=dense))
    assert torch.equal(elsewhere.user, user)
    assert not torch.allclose(elsewhere.item, item)
    assert torch.equal(model.user_vector(batch), user)
    assert torch.equal(model.item_vector(batch), item)


def test_drawn_items_are_read_with_their_vectors() -> None:
    schema = full_schema()
    model, events = built(schema), read(random_batch(schema, 6, 1))
    bank = random_batch(schema, 3, 2, owners=("item",))
    drawn = read(take(bank, np.array([2, 0, 0, 1])), seed=5)
    user, item = model(with_negatives(events, drawn))
    assert user.shape == (6, 6)
    assert item.shape == (10, 6)
    torch.testing.assert_close(user, model(events).user)
    torch.testing.assert_close(item[:6], model(events).item)
    torch.testing.assert_close(item[6:], model.item_vector(drawn))


def test_without_series_there_are_features_alone() -> None:
    schema = full_schema()
    user, item = built(schema, ())(random_batch(schema, 4, 1))
    assert user.shape == item.shape == (4, 6)
    with pytest.raises(ValueError, match=r"dimensions \[6, 6, 5\]"):
        built(schema)(random_batch(schema, 4, 1))


def test_loss_is_the_softmax_over_both_kinds_of_negatives() -> None:
    """log Q is of the mixture that the candidates are drawn from; what a user has chosen is no negative of theirs."""
    schema, tau = full_schema(), 0.3
    frequencies = ItemFrequencies.from_counts(torch.tensor([10, 11, 12]), torch.tensor([5, 3, 2]))
    events = replace(
        random_batch(schema, 4, 1),
        user_ids=torch.tensor([1, 2, 1, 3]),
        item_ids=torch.tensor([10, 11, 12, 10]),
        labels=torch.ones(4, 1),
        label_mask=torch.ones(4, 1, dtype=torch.bool),
        negatives=torch.tensor([12, 40]),
    )
    output = TwoTowerOutput(torch.randn(4, 6), torch.randn(6, 6))
    loss, told = TwoTowerLoss(tau, frequencies, 50)(output, events)
    ids, shares = [10, 11, 12, 10, 12, 40], {10: 0.5, 11: 0.3, 12: 0.2, 40: 0.0}
    log_q = np.log([4 / 6 * shares[item] + 2 / 6 / 50 for item in ids])
    scores = (output.user @ output.item.T).numpy() / tau - log_q
    chosen = {1: {10, 12}, 2: {11}, 3: {10}}
    losses = []
    for row, user in enumerate([1, 2, 1, 3]):
        kept = [at for at, item in enumerate(ids) if at == row or item not in chosen[user]]
        losses.append(np.log(np.exp(scores[row, kept]).sum()) - scores[row, row])
    assert float(loss) == pytest.approx(np.mean(losses), rel=1e-5)
    torch.testing.assert_close(told.logits[:, 0], (output.user * output.item[:4]).sum(1) / tau)
