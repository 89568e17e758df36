from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys.config import ConfigError, LossConfig
from recsys.data.schema import Schema
from recsys.models.derm import DERM, DermOutput
from recsys.models.losses import DermLoss, DermTask, ItemFrequencies, contrastive_loss, supervised_loss
from tests.distributed import run_ranks
from tests.recsys.models.support import SMALL, full_schema, random_batch

TAU = 0.2


def _rows(size: int, positives: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """user [B, 3], item [B, 3], item ids [B] (few, so that they collide), positive [B], log_q [B] (one an item)."""
    generator = torch.Generator().manual_seed(seed)
    user, item = torch.randn(2, size, 3, generator=generator, dtype=torch.float64)
    item_ids = torch.randint(-4, 4, (size,), generator=generator)
    positive = torch.zeros(size, dtype=torch.bool)
    positive[torch.randperm(size, generator=generator)[:positives]] = True
    return user, item, item_ids, positive, -1 - (item_ids.double() + 4) / 3


def _loop(user: Tensor, item: Tensor, item_ids: Tensor, positive: Tensor, log_q: Tensor) -> Tensor:
    """The loss of one rank as its definition reads."""
    chosen = [row for row in range(len(user)) if positive[row]]
    losses = []
    for query in chosen:
        others = [row for row in chosen if row == query or item_ids[row] != item_ids[query]]
        scores = torch.stack([user[query] @ item[row] / TAU - log_q[row] for row in others])
        losses.append(-(scores[others.index(query)] - scores.logsumexp(0)))
    return torch.stack(losses).mean() if losses else (user + item).sum() * 0


@settings(max_examples=40, deadline=None)
@given(size=st.integers(0, 12), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_contrastive_loss_and_gradient_are_the_loops(size, share, seed):
    user, item, *rest = _rows(size, round(share * size), seed)
    gradients = []
    for function in (lambda *x: contrastive_loss(*x, temperature=TAU), _loop):
        x = [user.clone().requires_grad_(), item.clone().requires_grad_()]
        loss = function(*x, *rest)
        loss.backward()
        gradients.append([tensor.float() for tensor in (loss.detach(), x[0].grad, x[1].grad)])
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_contrastive_loss_knows_its_pairs():
    vectors = torch.eye(4)
    ids, log_q = torch.arange(4), torch.full((4,), math.log(0.25))
    aligned = contrastive_loss(vectors, vectors, ids, torch.ones(4).bool(), log_q, temperature=0.05)
    crossed = contrastive_loss(vectors, vectors.roll(1, 0), ids, torch.ones(4).bool(), log_q, temperature=0.05)
    assert aligned < 1e-6
    assert crossed > 10


def _contrastive_on_rank(positives: tuple[int, ...], size: int) -> tuple[Tensor, list[Tensor]]:
    """Loss averaged over ranks, and the weights' gradients averaged as DDP does, of this rank's share of the rows."""
    parts = [_rows(size, count, seed) for seed, count in enumerate(positives)]
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    share = len(parts) // world
    user, item, *rest = (torch.cat(column) for column in zip(*parts[rank * share : (rank + 1) * share], strict=True))
    torch.manual_seed(0)
    weights = [torch.randn(3, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    loss = contrastive_loss(user @ weights[0], item @ weights[1], *rest, temperature=TAU)
    loss.backward()
    results = [loss.detach(), *(weight.grad for weight in weights)]
    for result in results:
        if world > 1:
            dist.all_reduce(result)
            result /= world
    return results[0], results[1:]


def _on_ranks(cases: list[tuple[tuple[int, ...], int]]) -> tuple[list[tuple[Tensor, list[Tensor]]], float, bool]:
    """`cases` as above; then loss and "has a gradient" where rank 0 alone has positives."""
    results = [_contrastive_on_rank(*case) for case in cases]
    user, item, *rest = _rows(5, 3 if dist.get_rank() == 0 else 0, seed=dist.get_rank())
    user.requires_grad_()
    loss = contrastive_loss(user, item, *rest, temperature=TAU)
    loss.backward()
    return results, loss.item(), bool(user.grad.any())


def test_two_ranks_have_the_gradient_of_one_with_the_whole_batch():
    cases = [((4, 4), 7), ((1, 1), 3), ((0, 0), 3), ((0, 0), 0)]
    ranks = run_ranks(_on_ranks, 2, cases, timeout=600)
    for results, _, _ in ranks:
        for (loss, gradients), case in zip(results, cases, strict=True):
            expected, expected_gradients = _contrastive_on_rank(*case)
            torch.testing.assert_close(loss, expected)
            for got, want in zip(gradients, expected_gradients, strict=True):
                torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)
    (_, first, learns), (_, second, idle) = ranks
    assert first > 0
    assert learns
    assert (second, idle) == (0.0, False)  # a rank without positives contributes nothing, and does not wait


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


def test_rows_without_a_label_cannot_spoil_the_loss():
    logits = torch.tensor([[0.0], [float("nan")]], requires_grad=True)
    loss = supervised_loss(logits, torch.zeros(2, 1), torch.tensor([[True], [False]])).sum()
    assert loss.item() == pytest.approx(math.log(2))


def test_item_frequencies():
    frequencies = ItemFrequencies.from_counts(torch.tensor([7, -(2**63), 2**62]), torch.tensor([1, 2, 5]))
    got = frequencies(torch.tensor([-(2**63), 7, 2**62, 8, 2**63 - 1, 7]))
    torch.testing.assert_close(got.exp(), torch.tensor([2, 1, 5, 1, 1, 1]) / 8)
    assert frequencies(torch.zeros(0, dtype=torch.int64)).shape == (0,)
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
    return DermTask(DERM(schema, SMALL, tasks), config, tasks, _frequencies())


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
    expected = contrastive_loss(
        vectors.user, vectors.item, batch.item_ids, positive, _frequencies()(batch.item_ids), temperature=0.1
    )
    torch.testing.assert_close(parts["contrastive"], expected)
    assert not any(x.requires_grad for x in (output.logits, *parts.values()))
    assert torch.equal(output.labels, batch.labels)
    assert torch.equal(output.mask, batch.label_mask)


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


def test_losses_are_float32_under_autocast():
    schema = full_schema()
    batch = random_batch(schema, 32)
    task = _task(LossConfig(), schema)
    with torch.autocast("cpu", torch.bfloat16):
        loss, output = task(batch)
    assert {x.dtype for x in (loss, output.logits, *output.losses.values())} == {torch.float32}
    torch.testing.assert_close(loss, task(batch)[0], atol=0.05, rtol=0.05)


def test_loss_is_defined_for_an_empty_batch():
    empty = torch.zeros(0, 2, requires_grad=True)
    vectors = torch.zeros(0, 4, requires_grad=True)
    batch = random_batch(full_schema(), 1)
    batch.labels, batch.label_mask, batch.item_ids = torch.zeros(0, 2), torch.zeros(0, 2).bool(), torch.zeros(0).long()
    loss, _ = DermLoss(LossConfig(), ("a", "b"), _frequencies())(DermOutput(empty, vectors, vectors), batch)
    assert loss.item() == 0
    loss.backward()


def test_config_and_batch_must_fit_the_tasks():
    schema = full_schema()
    with pytest.raises(ConfigError, match="contrastive_label is 'like'; use one of the tasks: click, buy"):
        _task(LossConfig(contrastive_label="like"), schema)
    with pytest.raises(ValueError, match=r"batch.labels is \[4, 2\].*schema.select\(labels=tasks\)"):
        _task(LossConfig(), schema, tasks=("buy",))(random_batch(schema, 4))
