from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys.config import ConfigError, LossConfig
from recsys.data.negatives import with_negatives
from recsys.data.schema import Schema
from recsys.models.contrastive import Drawn, contrastive_loss
from recsys.models.derm import DERM, DermOutput
from recsys.models.losses import DermLoss, DermTask, ItemFrequencies
from recsys.models.objective import weighted_means
from recsys.models.ranker import RankerLoss
from recsys.train.tables import draw_tables
from tests.distributed import run_ranks
from tests.recsys.models.support import SMALL, TAU, contrasted_rows, drawn_items, full_schema, random_batch

LOSS = LossConfig(contrastive_label="buy", contrastive_weight=0.5, temperature=TAU)


def _loss_on_rank(positives: tuple[int, ...], valid: tuple[int, ...], size: int, drawn: int = 0) -> list[Tensor]:
    """Losses averaged over ranks, as logged, and the weights' gradients averaged as DDP does, of this rank's rows.

    `positives` and `valid` rows of the second task for each of the parts that the ranks share, and `drawn` items.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    parts = [contrasted_rows(size, count, seed) for seed, count in enumerate(positives)]
    share = len(parts) // world
    mine = slice(rank * share, (rank + 1) * share)
    user, item, user_ids, item_ids, positive, _ = (torch.cat(column) for column in zip(*parts[mine], strict=True))
    mask = torch.stack([torch.ones_like(positive), positive], dim=1)
    for part, count in enumerate(valid[mine]):
        mask[part * size : part * size + count, 1] = True
    batch = random_batch(full_schema(), 1)
    batch.user_ids, batch.item_ids, batch.label_mask = user_ids, item_ids, mask
    batch.labels = torch.stack([positive, positive], dim=1).float()
    batch.weights = (user_ids + item_ids) % 3 + 0.5
    if drawn:
        extra = [drawn_items(drawn, seed) for seed in range(len(parts))][mine]
        batch.negatives, item = torch.cat([x.ids for x in extra]), torch.cat((item, *(x.item for x in extra)))
    torch.manual_seed(0)
    weights = [torch.randn(3, width, dtype=torch.float64, requires_grad=True) for width in (3, 3, 2)]
    frequencies = ItemFrequencies.from_counts(torch.arange(-4, 4), torch.arange(1, 9))
    output = DermOutput(user @ weights[2], user @ weights[0], item @ weights[1])
    loss, logged = DermLoss(LOSS, ("click", "buy"), frequencies, items=10)(output, batch)
    ranker_loss, _ = RankerLoss()(output.logits, batch)
    (loss + ranker_loss).backward()
    results = [loss.detach(), ranker_loss.detach(), *logged.losses.values(), *(weight.grad for weight in weights)]
    for result in results:
        if world > 1:
            dist.all_reduce(result)
            result /= world
    return results


RANKED = [
    ((1, 3, 4, 0), (2, 7, 0, 0), 7),  # unequal, and a rank with neither
    ((0, 0, 0, 2), (0, 0, 0, 0), 3),
    ((0, 0, 0, 0), (0, 0, 0, 0), 3),
    ((0, 0, 0, 0), (0, 0, 0, 0), 0),
    ((1, 3, 4, 0), (2, 7, 0, 0), 7, 5),  # and with drawn items
    ((0, 0, 0, 2), (0, 0, 0, 0), 3, 1),
    ((0, 0, 0, 0), (0, 0, 0, 0), 3, 4),
    ((0, 0, 0, 0), (0, 0, 0, 0), 0, 2),
]


def _loss_on_ranks() -> list[list[Tensor]]:
    return [_loss_on_rank(*case) for case in RANKED]


def _parts_of_two_ranks() -> tuple[Tensor, bool]:
    """This rank's part of the contrastive loss and whether its users learn, where rank 0 alone has positives."""
    user, item, _, _, positive, log_q = contrasted_rows(5, 3 if dist.get_rank() == 0 else 0, seed=dist.get_rank())
    user.requires_grad_()
    loss = contrastive_loss(user, item, torch.arange(5), torch.arange(5), positive, log_q, temperature=TAU)
    loss.backward()
    return loss.detach(), bool(user.grad.any())


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_have_the_loss_and_gradient_of_one_with_the_whole_batch(ranks: int):
    """However unevenly positives and valid rows lie over the ranks, and where some have none."""
    expected = [_loss_on_rank(*case) for case in RANKED]
    for results in run_ranks(_loss_on_ranks, ranks):
        for got, wanted in zip(results, expected, strict=True):
            for value, want in zip(got, wanted, strict=True):
                torch.testing.assert_close(value, want, atol=1e-6, rtol=1e-5)


def test_a_rank_without_positives_does_not_wait():
    (first, learns), (second, idle) = run_ranks(_parts_of_two_ranks, 2)
    assert first > 0
    assert learns
    assert (second, idle) == (0.0, False)


def supervised_loss(logits: Tensor, labels: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
    return weighted_means(each, mask, weights)


@settings(max_examples=30, deadline=None)
@given(size=st.integers(0, 6), tasks=st.integers(1, 3), seed=st.integers(0, 99))
def test_supervised_loss_is_the_mean_over_valid_rows(size, tasks, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, tasks, generator=generator).requires_grad_()
    labels = torch.randint(0, 2, (size, tasks), generator=generator).float()
    mask = torch.rand(size, tasks, generator=generator) < 0.5
    got = supervised_loss(logits, labels, mask)
    for task in range(tasks):
        rows = [row for row in range(size) if mask[row, task]]
        p = torch.sigmoid(logits.detach())
        each = [-math.log(p[row, task] if labels[row, task] else 1 - p[row, task]) for row in rows]
        assert got[task].item() == pytest.approx(sum(each) / max(len(each), 1), abs=1e-5)
    got.sum().backward()
    assert not logits.grad[~mask].any()


def test_a_tempered_task_weighs_as_the_root_of_its_rows():
    generator = torch.Generator().manual_seed(0)
    each, weights = torch.rand(50, 3, generator=generator), 5 * torch.rand(50, generator=generator)
    mask = torch.rand(50, 3, generator=generator) < torch.tensor([0.9, 0.1, 0.0])
    totals = (mask * weights.unsqueeze(1)).sum(0)
    wanted = weighted_means(each, mask, weights) * (totals / totals[0]).sqrt()
    torch.testing.assert_close(weighted_means(each, mask, weights, tempered=True), wanted)
    assert wanted[2] == 0 < wanted[1]
    alone = weighted_means(each[:, 1:2], mask[:, 1:2], weights)
    torch.testing.assert_close(weighted_means(each[:, 1:2], mask[:, 1:2], weights, tempered=True), alone)


@settings(max_examples=30, deadline=None)
@given(size=st.integers(0, 6), factor=st.floats(0.01, 100), seed=st.integers(0, 99))
def test_a_weight_is_how_often_a_row_is_there(size, factor, seed):
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(size, 2, generator=generator), torch.randint(0, 2, (size, 2), generator=generator)
    mask, counts = torch.rand(size, 2, generator=generator) < 0.6, torch.randint(0, 4, (size,), generator=generator)
    repeated = [x.repeat_interleave(counts, dim=0) for x in (logits, labels, mask)]
    torch.testing.assert_close(
        supervised_loss(logits, labels, mask, weights=counts * factor), supervised_loss(*repeated)
    )
    constant = torch.full((size,), factor)
    torch.testing.assert_close(
        supervised_loss(logits, labels, mask, weights=constant), supervised_loss(logits, labels, mask)
    )


def test_weights_reach_the_losses_of_upstreams_and_rankers_and_no_metric():
    schema = full_schema()
    batch = random_batch(schema, 32)
    weighted = replace(batch, weights=torch.arange(32) % 4)
    task = DermTask(_task(LossConfig(), schema).model, LossConfig(), ("click", "buy"), _frequencies())
    (_, plain), (_, output) = task(batch), task(weighted)
    wanted = supervised_loss(output.logits, batch.labels, batch.label_mask, weights=weighted.weights)
    torch.testing.assert_close(torch.stack([output.losses["click"], output.losses["buy"]]), wanted)
    torch.testing.assert_close(output.losses["contrastive"], plain.losses["contrastive"])
    ranker_loss, ranked = RankerLoss()(output.logits, weighted)
    torch.testing.assert_close(ranker_loss, wanted.sum())
    for said in (output, ranked):
        assert torch.equal(said.mask, batch.label_mask)
        assert torch.equal(said.logits, plain.logits)


def test_rows_without_a_label_cannot_spoil_the_loss():
    logits = torch.tensor([[0.0], [float("nan")]], requires_grad=True)
    loss = supervised_loss(logits, torch.zeros(2, 1), torch.tensor([[True], [False]])).sum()
    assert loss.item() == pytest.approx(math.log(2))


def test_item_frequencies():
    frequencies = ItemFrequencies.from_counts(torch.tensor([7, -(2**63), 2**62]), torch.tensor([1, 2, 5]))
    got = frequencies(torch.tensor([-(2**63), 7, 2**62, 8, 2**63 - 1, 7]))
    torch.testing.assert_close(got.exp(), torch.tensor([2, 1, 5, 1, 1, 1]) / 8)
    assert frequencies(torch.zeros(0, dtype=torch.int64)).shape == (0,)
    assert frequencies(torch.tensor([8, 7]), unseen=-math.inf).tolist() == [-math.inf, pytest.approx(math.log(1 / 8))]
    assert frequencies.state_dict() == {}


@pytest.mark.parametrize(
    ("ids", "counts", "message"),
    [
        ([], [], "N of 1 or more"),
        ([1, 2], [1], r"are \[2\] and \[1\]"),
        ([3, 1, 3], [1, 1, 1], "ids repeat"),
        ([1, 2], [1, 0], "smallest count is 0"),
    ],
)
def test_item_frequencies_refuse(ids, counts, message):
    with pytest.raises(ValueError, match=message):
        ItemFrequencies.from_counts(torch.tensor(ids, dtype=torch.int64), torch.tensor(counts, dtype=torch.int64))


def _frequencies() -> ItemFrequencies:
    return ItemFrequencies.from_counts(torch.arange(30), torch.arange(1, 31))


def _task(config: LossConfig, schema: Schema, tasks: tuple[str, ...] = ("click", "buy")) -> DermTask:
    torch.manual_seed(0)
    return draw_tables(DermTask(DERM(schema, SMALL, tasks), config, tasks, _frequencies()), 0)


def test_task_adds_up_its_losses():
    schema = full_schema()
    batch = random_batch(schema, 32)
    task = _task(LossConfig(contrastive_weight=0.5, contrastive_label="buy"), schema)
    loss, output = task(batch)
    assert list(output.losses) == ["click", "buy", "contrastive"]
    parts = output.losses
    torch.testing.assert_close(loss, parts["click"] + parts["buy"] + 0.5 * parts["contrastive"])
    vectors = task.model(batch)
    positive = (batch.labels[:, 1] == 1) & batch.label_mask[:, 1]
    log_q = _frequencies()(batch.item_ids)
    expected = contrastive_loss(
        vectors.user, vectors.item, batch.user_ids, batch.item_ids, positive, log_q, temperature=0.1
    )
    torch.testing.assert_close(parts["contrastive"], expected)
    assert not any(x.requires_grad for x in (output.logits, *parts.values()))
    assert torch.equal(output.labels, batch.labels)
    assert torch.equal(output.mask, batch.label_mask)


def test_drawn_items_are_candidates_and_nothing_else():
    schema = full_schema()
    batch, items = random_batch(schema, 16), random_batch(schema, 5, seed=1, owners=("item",))
    items.item_ids += 20  # ten of these are nobody's positive
    task = DermTask(_task(LossConfig(), schema).model, LossConfig(), ("click", "buy"), _frequencies(), items=50)
    _, alone = task(batch)
    vectors = task.model(batch)
    batch = with_negatives(batch, items)
    loss, output = task(batch)
    assert output.logits.shape == output.labels.shape == (16, 2)
    for task_name in ("click", "buy"):
        torch.testing.assert_close(output.losses[task_name], alone.losses[task_name])
    both = task.model(batch)
    torch.testing.assert_close(both.user, vectors.user)
    torch.testing.assert_close(both.logits, vectors.logits)
    torch.testing.assert_close(both.item, torch.cat((vectors.item, task.model.item_vector(items))))
    expected = contrastive_loss(
        vectors.user,
        vectors.item,
        batch.user_ids,
        batch.item_ids,
        (batch.labels[:, 0] == 1) & batch.label_mask[:, 0],
        _frequencies()(batch.item_ids),
        temperature=0.1,
        drawn=Drawn(both.item[16:], items.item_ids, _frequencies()(items.item_ids, unseen=-math.inf), 50),
    )
    torch.testing.assert_close(output.losses["contrastive"], expected)
    assert output.losses["contrastive"] != alone.losses["contrastive"]
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.parameters())


def test_a_batch_without_positives_or_valid_rows_still_trains():
    schema = full_schema()
    batch = random_batch(schema, 4)
    batch.labels.zero_()
    batch.label_mask[:, 1] = False
    task = _task(LossConfig(), schema)
    loss, output = task(batch)
    assert output.losses["buy"] == output.losses["contrastive"] == 0
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.parameters())


def test_contrastive_loss_can_be_turned_off():
    schema = full_schema()
    _, output = _task(LossConfig(contrastive_weight=0), schema)(random_batch(schema, 4))
    assert list(output.losses) == ["click", "buy"]


def test_the_correction_can_be_turned_off():
    schema = full_schema()
    batch = random_batch(schema, 32)
    batch.labels[:, 0] = 1
    losses = {}
    for log_q in (True, False):
        torch.manual_seed(0)
        _, output = _task(LossConfig(log_q=log_q), schema)(batch)
        losses[log_q] = output.losses
    assert losses[True]["click"] == losses[False]["click"]
    assert losses[True]["contrastive"] != losses[False]["contrastive"]


def test_losses_are_float32_under_autocast():
    schema = full_schema()
    batch = random_batch(schema, 32)
    task = _task(LossConfig(), schema)
    with torch.autocast("cpu", torch.bfloat16):
        loss, output = task(batch)
    assert {x.dtype for x in (loss, output.logits, *output.losses.values())} == {torch.float32}
    torch.testing.assert_close(loss, task(batch)[0], atol=0.05, rtol=0.05)


def test_autocast_rounds_no_weight_of_a_positive():
    batch = random_batch(full_schema(), 32)
    items = batch.item_ids.unique()
    frequencies = ItemFrequencies.from_counts(items, torch.ones_like(items))
    output = DermOutput(torch.randn(32, 2), torch.randn(32, 8), torch.randn(32, 8))
    loss = DermLoss(LossConfig(positives={"click": 0.3, "buy": 0.7}), ("click", "buy"), frequencies, items=10)
    wanted, _ = loss(output, batch)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = loss(output, batch)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)


def test_loss_is_defined_for_an_empty_batch():
    empty = torch.zeros(0, 2, requires_grad=True)
    vectors = torch.zeros(0, 4, requires_grad=True)
    batch = random_batch(full_schema(), 1)
    batch.labels, batch.label_mask = torch.zeros(0, 2), torch.zeros(0, 2).bool()
    batch.user_ids = batch.item_ids = torch.zeros(0, dtype=torch.int64)
    loss, _ = DermLoss(LossConfig(), ("a", "b"), _frequencies())(DermOutput(empty, vectors, vectors), batch)
    assert loss.item() == 0
    loss.backward()


def test_config_and_batch_must_fit_the_tasks():
    schema = full_schema()
    with pytest.raises(ConfigError, match="contrastive_label is 'like'; use one of the tasks: click, buy"):
        _task(LossConfig(contrastive_label="like"), schema)
    with pytest.raises(ValueError, match=r"batch.labels is \[4, 2\].*schema.select\(labels=tasks\)"):
        _task(LossConfig(), schema, tasks=("buy",))(random_batch(schema, 4))
