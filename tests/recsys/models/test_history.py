from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys.config.ranker import JOINS, RANKERS
from recsys.data.batch import Batch
from recsys.dates import DAY_MS
from recsys.downstream.features import mean_of, places_of, with_vectors
from recsys.models.history import HistoryAttention
from recsys.models.ranker import Ranker
from recsys.models.series import SeriesSpec
from tests.recsys.models.support import full_schema, random_batch
from tests.recsys.models.test_rankers import SMALL, ranker_of

DIM, K = 3, 4
NEWEST = tuple(SeriesSpec(name=f"{owner}_ctr", owner=owner, space="ctr-1", dim=DIM) for owner in ("user", "item"))
MEANS, ATTENDED = (
    (*NEWEST, *(replace(x, name=f"{x.name} last", space="last", versions=versions) for x in NEWEST))
    for versions in (1, K)
)


def histories(rows: int, k: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors, mask and ages in ms, as the store gives them; of the first row nothing is known."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, k, generator=generator) < 0.6
    mask[:1] = False
    vectors = torch.randn(rows, k, DIM, generator=generator) * mask.unsqueeze(2)
    ages = torch.randint(0, 90 * DAY_MS, (rows, k), generator=generator) * mask
    return vectors, mask, ages


def attention(asking: int, seed: int = 0) -> HistoryAttention:
    """One that does not weigh all versions alike."""
    torch.manual_seed(seed)
    module = HistoryAttention(DIM, asking, 5)
    torch.nn.init.normal_(module.query.weight)
    torch.nn.init.normal_(module.query.bias)
    return module


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(0, 6), k=st.integers(1, 5), asking=st.integers(1, 4), seed=st.integers(0, 1000))
def test_attention_is_its_definition(rows: int, k: int, asking: int, seed: int) -> None:
    module, asked = attention(asking, seed), torch.randn(rows, asking)
    vectors, found, feed = places_of(*histories(rows, k, seed))
    pooled, some, facts = module(asked, vectors, found, feed)
    assert (pooled.shape, some.shape, facts.shape) == ((rows, DIM), (rows, 1), (rows, 1, 2))
    for row in range(rows):
        held = [place for place in range(k) if found[row, place]]
        assert some[row].item() == bool(held)
        if not held:
            assert not pooled[row].any()
            assert not facts[row].any()
            continue
        query, scores = module.query(asked[row]), []
        for place in held:
            key = module.key.weight @ vectors[row, place]
            key = (key - key.mean()) / (key.var(unbiased=False) + 1e-5).sqrt()
            key = key + module.age.weight[:, 0] * math.log1p(feed[row, place, 0].item())
            scores.append(query @ key / math.sqrt(5))
        weights = torch.stack(scores).softmax(0)
        torch.testing.assert_close(pooled[row], weights @ vectors[row, held], atol=1e-5, rtol=1e-4)
        assert facts[row, 0].tolist() == pytest.approx([feed[row, held, 0].mean().item(), len(held)], rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(0, 6), k=st.integers(1, 5), seed=st.integers(0, 1000))
def test_attention_starts_as_the_mean(rows: int, k: int, seed: int) -> None:
    history = histories(rows, k, seed)
    pooled, some, facts = HistoryAttention(DIM, 2, 5)(torch.randn(rows, 2), *places_of(*history))
    mean, found, feed = mean_of(*history)
    torch.testing.assert_close(pooled, mean)
    assert torch.equal(some.squeeze(1), found)
    torch.testing.assert_close(facts.squeeze(1), feed)


def test_every_parameter_learns_and_no_gradient_is_lost_where_nothing_is_known() -> None:
    module, asked = attention(2), torch.randn(6, 2, requires_grad=True)
    vectors, found, feed = places_of(*histories(6, K, 3))
    vectors.requires_grad_()
    module(asked, vectors, found, feed)[0].square().sum().backward()
    for tensor in (*module.parameters(), asked, vectors):
        assert tensor.grad.isfinite().all()
        assert tensor.grad.any()
    assert not asked.grad[0].any()
    assert not vectors.grad[~found].any()


def test_attention_learns_which_version_a_row_is_about() -> None:
    """Each row's target is a figure of the version that lies where it asks: the mean has a quarter of it."""
    torch.manual_seed(0)
    module, scale = HistoryAttention(DIM, 2, 8), torch.nn.Linear(1, 1)
    vectors = torch.randn(512, K, DIM)
    vectors[:, :, :2] = torch.nn.functional.normalize(vectors[:, :, :2], dim=2)
    asked = vectors[:, 0, :2]
    found, feed = torch.ones(512, K).bool(), torch.zeros(512, K, 2)
    target, optimizer = vectors[:, 0, 2:], torch.optim.Adam([*module.parameters(), *scale.parameters()], lr=0.02)
    losses = []
    for _ in range(150):
        loss = (scale(module(asked, vectors, found, feed)[0][:, 2:]) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    mean = vectors[:, :, 2].mean(1)
    best = (target[:, 0].var() * (1 - torch.corrcoef(torch.stack([mean, target[:, 0]]))[0, 1] ** 2)).item()
    assert losses[-1] < 0.75 * best


def batch_of(size: int, seed: int, pool: object) -> Batch:
    """Of the newest vectors of both, and their histories as `pool` has them."""
    history = [histories(size, K, seed + owner) for owner in (0, 1)]
    newest = [(vectors[:, 0], mask[:, 0], torch.rand(size, 2) * mask[:, :1]) for vectors, mask, _ in history]
    return with_vectors(random_batch(full_schema(), size, seed), [*newest, *(pool(*each) for each in history)])


def started(kind: str, series: tuple[SeriesSpec, ...], join: str = "each", seed: int = 0) -> Ranker:
    """One whose share of the vectors is not zero."""
    model = ranker_of(kind, series, seed, config=replace(SMALL, join=join, join_dim=5))
    weights = [x for name, x in model.named_parameters() if name.endswith("vectors.first.weight")]
    torch.manual_seed(seed)
    torch.nn.init.normal_(weights[0])
    return model.eval()


@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize("kind", RANKERS)
def test_a_ranker_that_attends_starts_as_the_one_that_reads_the_mean(kind: str, join: str) -> None:
    """And as the one without vectors, bit by bit, where the share of all vectors is zero; then it learns to attend."""
    means, attends = started(kind, MEANS, join), started(kind, ATTENDED, join)
    assert means.state_dict().keys() < attends.state_dict().keys()
    assert all(torch.equal(x, attends.state_dict()[name]) for name, x in means.state_dict().items())
    torch.manual_seed(0)
    batch = batch_of(5, 0, places_of)
    torch.manual_seed(0)
    torch.testing.assert_close(attends(batch), means(batch_of(5, 0, mean_of)))
    attends(batch).sum().backward()
    grads = {name: x.grad for name, x in attends.named_parameters() if "pools" in name}
    assert len(grads) == 8
    assert all(grads[name].any() for name in grads if "query" in name)
    config = replace(SMALL, join=join, join_dim=5)
    plain, rich = (ranker_of(kind, series, config=config).eval() for series in ((), ATTENDED))
    assert torch.equal(plain(batch), rich(batch))


@pytest.mark.parametrize("kind", RANKERS)
def test_a_version_that_was_not_found_cannot_reach_the_logits(kind: str) -> None:
    model, batch = started(kind, ATTENDED), batch_of(6, 1, places_of)
    for name, parameter in model.named_parameters():
        if "pools" in name:
            torch.nn.init.normal_(parameter)
    columns = torch.tensor([DIM, DIM, *([DIM] * 2 * K)])
    lost = ~batch.found.repeat_interleave(columns, dim=1)
    other = replace(batch, vectors=batch.vectors + 9 * lost, feed=batch.feed + 9 * ~batch.found.unsqueeze(2))
    assert torch.equal(model(batch), model(other))
    later = replace(batch, vectors=batch.vectors + ~lost)
    assert not torch.equal(model(batch), model(later))
    older = replace(batch, feed=batch.feed + 30 * batch.found.unsqueeze(2) * torch.tensor([1.0, 0.0]))
    assert not torch.equal(model(batch), model(older))


def test_entity_dropout_takes_all_versions_of_a_series() -> None:
    model = ranker_of("dlrm", ATTENDED, config=replace(SMALL, entity_dropout=0.8))
    batch = batch_of(2000, 0, places_of)
    found = torch.ones_like(batch.found)
    vectors = model.network.body.vectors
    parts, kept, _ = vectors._split(batch.vectors, found, batch.feed)
    assert [list(x.shape[1:]) for x in parts] == [[DIM], [DIM], [K, DIM], [K, DIM]]
    lost = torch.stack([(~x).all(1) for x in kept.split([1, 1, K, K], dim=1)], dim=1)
    assert torch.equal((~kept).sum(1), (lost * torch.tensor([1, 1, K, K])).sum(1))
    assert lost.sum(1).max() == 1
    assert lost.float().mean(0).tolist() == pytest.approx([0.2] * 4, abs=0.05)


def test_a_batch_of_other_places_is_refused() -> None:
    with pytest.raises(ValueError, match=r"4 series of dimensions \[3, 3, 3, 3\] in \[1, 1, 4, 4\] places: join"):
        ranker_of("dlrm", ATTENDED)(batch_of(3, 0, mean_of))
    with pytest.raises(ValueError, match="series 'user_ctr': versions is 0; use 1 or more"):
        replace(NEWEST[0], versions=0)
