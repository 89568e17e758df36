"""The contrastive loss, on one rank, against its definition."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys.models.contrastive import Drawn, contrastive_loss
from tests.distributed import run_ranks
from tests.host_reads import HostReads
from tests.recsys.models.support import TAU, contrasted_rows, drawn_items


def _loop(user: Tensor, item: Tensor, user_ids: Tensor, item_ids: Tensor, positive: Tensor, log_q: Tensor) -> Tensor:
    """The loss of one rank as its definition reads."""
    chosen = [row for row in range(len(user)) if positive[row]]
    losses = []
    for query in chosen:
        known = {int(item_ids[row]) for row in chosen if user_ids[row] == user_ids[query]}
        others = [row for row in chosen if row == query or int(item_ids[row]) not in known]
        scores = torch.stack([user[query] @ item[row] / TAU - log_q[row] for row in others])
        losses.append(-(scores[others.index(query)] - scores.logsumexp(0)))
    return torch.stack(losses).mean() if losses else (user + item).sum() * 0


@settings(max_examples=40, deadline=None)
@given(size=st.integers(0, 12), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_contrastive_loss_and_gradient_are_the_loops(size, share, seed):
    user, item, *rest = contrasted_rows(size, round(share * size), seed)
    gradients = []
    masked = partial(contrastive_loss, temperature=TAU, select=False)
    for function in (partial(contrastive_loss, temperature=TAU), masked, _loop):
        x = [user.clone().requires_grad_(), item.clone().requires_grad_()]
        loss = function(*x, *rest)
        loss.backward()
        gradients.append([tensor.float() for tensor in (loss.detach(), x[0].grad, x[1].grad)])
    for got, also, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(also, expected, atol=1e-5, rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(size=st.integers(0, 12), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_a_row_that_weighs_twice_is_as_if_its_loss_counted_twice(size, share, seed):
    user, item, *rest, positive, log_q = contrasted_rows(size, round(share * size), seed)
    weights = positive.double() * (1 + torch.arange(size) % 3)
    loss = contrastive_loss(user, item, *rest, weights, log_q, temperature=TAU)
    each = []
    for row in positive.nonzero().squeeze(1):
        gradient = torch.zeros(size, dtype=torch.float64)
        gradient[row] = 1
        only = torch.where(gradient > 0, 1.0, 1e-12) * positive  # all stay candidates, one counts
        each.append(contrastive_loss(user, item, *rest, only, log_q, temperature=TAU) * weights[row])
    expected = torch.stack(each).sum() / weights.sum() if each else torch.tensor(0.0)
    torch.testing.assert_close(loss.float(), expected.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("drawn", [False, True])
def test_without_the_correction_how_often_an_item_was_seen_does_not_matter(drawn: bool):
    user, item, *rest, log_q = contrasted_rows(12, 8)
    extra = Drawn(torch.randn(3, 3), torch.tensor([50, 51, 52]), torch.full((3,), -torch.inf), 100) if drawn else None
    options = {"temperature": TAU, "drawn": extra}
    losses = [contrastive_loss(user, item, *rest, x, corrected=False, **options) for x in (log_q, log_q * 3)]
    assert losses[0] == losses[1]
    if not drawn:
        torch.testing.assert_close(losses[0], _loop(user, item, *rest, torch.zeros(12)).float())
    assert contrastive_loss(user, item, *rest, log_q, **options) != losses[0]


def test_contrastive_loss_knows_its_pairs():
    vectors, ids, log_q = torch.eye(4), torch.arange(4), torch.full((4,), math.log(0.25))
    facts = (ids, ids, torch.ones(4).bool(), log_q)
    aligned = contrastive_loss(vectors, vectors, *facts, temperature=0.05)
    crossed = contrastive_loss(vectors, vectors.roll(1, 0), *facts, temperature=0.05)
    assert aligned < 1e-6
    assert crossed > 10


def test_what_a_user_chose_elsewhere_in_the_batch_is_no_negative():
    """Rows: user 1 chose items 1 and 2, user 2 chose item 2 too, user 3 chose item 3: a negative of all others."""
    vectors = torch.eye(4).requires_grad_()
    users, items = torch.tensor([1, 1, 2, 3]), torch.tensor([1, 2, 2, 3])
    log_q, positive = torch.zeros(4), torch.ones(4).bool()
    query = torch.tensor([True, False, False, False])
    loss = contrastive_loss(torch.eye(4), vectors, users, items, positive, log_q, temperature=1.0)
    loss.backward()
    assert not vectors.grad[1:3, 0].any(), "of the first row, neither another item of the user nor the same by another"
    assert vectors.grad[3, 0] > 0
    alone = contrastive_loss(torch.eye(4), torch.eye(4), users, items, query, log_q, temperature=1.0)
    assert alone == 0, "rows that are not positive are nobody's negatives"


def _mixed_loop(
    user: Tensor,
    item: Tensor,
    user_ids: Tensor,
    item_ids: Tensor,
    positive: Tensor,
    log_q: Tensor,
    drawn: Drawn,
) -> Tensor:
    """The loss of one rank with mixed negatives as its definition reads."""
    chosen = [row for row in range(len(user)) if positive[row]]
    mixed = [(item[row], int(item_ids[row]), log_q[row].exp()) for row in chosen]
    mixed += [(drawn.item[row], int(drawn.ids[row]), drawn.log_q[row].exp()) for row in range(len(drawn.ids))]
    losses = []
    for query, row in enumerate(chosen):
        known = {int(item_ids[other]) for other in chosen if user_ids[other] == user_ids[row]}
        scores, own = [], 0
        for place, (vector, item_id, q) in enumerate(mixed):
            if place == query or item_id not in known:
                both = (len(chosen) * q + len(drawn.ids) / drawn.items) / len(mixed)
                scores.append(user[row] @ vector / TAU - both.log())
                own = len(scores) - 1 if place == query else own
        losses.append(torch.stack(scores).logsumexp(0) - scores[own])
    nothing = (user.sum() + item.sum() + drawn.item.sum()) * 0
    return torch.stack(losses).mean() + nothing if losses else nothing


@settings(max_examples=40, deadline=None)
@given(size=st.integers(0, 8), share=st.floats(0, 1), count=st.integers(0, 8), seed=st.integers(0, 99))
def test_mixed_negatives_are_the_loops(size, share, count, seed):
    user, item, *rest = contrasted_rows(size, round(share * size), seed)
    gradients = []
    for select in (True, False, None):
        x = [tensor.clone().requires_grad_() for tensor in (user, item, drawn_items(count, seed).item)]
        drawn = drawn_items(count, seed)._replace(item=x[2])
        if select is not None:
            loss = contrastive_loss(x[0], x[1], *rest, temperature=TAU, drawn=drawn, select=select)
        else:
            loss = _mixed_loop(x[0], x[1], *rest, drawn)
        loss.backward()
        gradients.append([tensor.float() for tensor in (loss.detach(), *(each.grad for each in x))])
    for got, also, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(also, expected, atol=1e-5, rtol=1e-5)


def test_mixed_negatives_by_hand():
    """One user who chose item 0, of probability 1/2; drawn from four: item 1 that was never chosen, and item 0."""
    user, item = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    drawn = Drawn(
        torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 0]), torch.tensor([-math.inf, math.log(0.5)]), 4
    )
    ids, positive, log_q = torch.tensor([0]), torch.tensor([True]), torch.tensor([math.log(0.5)])
    loss = contrastive_loss(user, item, ids, ids, positive, log_q, temperature=1.0, drawn=drawn)
    chosen = math.e / ((1 / 2 + 2 / 4) / 3)  # one in-batch candidate and two drawn ones
    other = 1 / ((0 + 2 / 4) / 3)
    assert loss.item() == pytest.approx(-math.log(chosen / (chosen + other)), rel=1e-5)


def test_a_gpu_waits_for_nothing():
    user, item, *rest = contrasted_rows(12, 5)
    counts = []
    for select in (True, False):
        x = [tensor.clone().requires_grad_() for tensor in (user, item)]
        with HostReads() as reads:
            contrastive_loss(*x, *rest, temperature=TAU, drawn=drawn_items(4, 0), select=select).backward()
        counts.append(len(reads.found))
    assert counts[0] >= 2, "what selects is found"
    assert counts[1] == 0


def _forms() -> list[tuple[Tensor, ...]]:
    """Loss and gradients of this rank's rows, selected and masked."""
    rank = dist.get_rank()
    user, item, *rest = contrasted_rows(7, 4 if rank else 0, rank)
    found = []
    for select in (True, False):
        x = [tensor.clone().requires_grad_() for tensor in (user, item)]
        loss = contrastive_loss(*x, *rest, temperature=TAU, drawn=drawn_items(3, rank), select=select)
        loss.backward()
        found.append((loss.detach(), *(each.grad for each in x)))
    return found


def test_ranks_may_mask_what_is_not_positive():
    for selected, masked in run_ranks(_forms, 2):
        for got, wanted in zip(masked, selected, strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-5)
