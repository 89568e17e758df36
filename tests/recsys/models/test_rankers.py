"""What holds for every kind of ranker, and the heads and the loss that some have."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.config import ConfigError, NetworkConfig
from recsys.config.ranker import RANKERS
from recsys.data.batch import Batch
from recsys.data.schema import Schema
from recsys.models.dcnv2_ranker import ExpertHead
from recsys.models.interactions import Crosses
from recsys.models.ranker import Ranker, RankerLoss, RankerTask, TowerHead, joint_logit
from recsys.models.rankers import build_ranker
from recsys.models.series import SeriesSpec
from recsys.train.tables import draw_tables
from tests.recsys.models.support import full_schema, random_batch

SMALL = NetworkConfig(
    embedding_dim=4, projection_dim=6, hidden=(8, 5), dropout=0.0, vector_dropout=0.0, tokens=3, experts=3
)
SERIES = (
    SeriesSpec(name="user_ctr", owner="user", space="ctr-1", dim=3),
    SeriesSpec(name="item_ctr", owner="item", space="ctr-1", dim=3),
)
DOUBLES = {"dtype": torch.float64}


def ranker_of(kind: str, series=(), seed: int = 0, tasks: int = 2, config: NetworkConfig = SMALL) -> Ranker:
    torch.manual_seed(seed)
    return draw_tables(build_ranker(full_schema(), replace(config, kind=kind), series, tasks), seed)


def batch_of(size: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return replace(
        random_batch(full_schema(), size, seed),
        vectors=torch.randn(size, 6, generator=generator),
        found=torch.rand(size, 2, generator=generator) < 0.7,
        feed=30 * torch.rand(size, 2, 2, generator=generator),
    )


@pytest.mark.parametrize("kind", RANKERS)
@settings(max_examples=10, deadline=None)
@given(size=st.integers(1, 5), count=st.sampled_from([0, 2]), tasks=st.integers(1, 3))
def test_logits_and_gradients(kind: str, size: int, count: int, tasks: int) -> None:
    model, batch = ranker_of(kind, SERIES[:count], tasks=tasks), batch_of(size)
    logits = model(batch)
    assert logits.shape == (size, tasks)
    assert logits.dtype == torch.float32
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("kind", RANKERS)
def test_it_starts_as_the_same_function_with_and_without_vectors(kind: str) -> None:
    for seed in range(3):
        plain, rich, batch = ranker_of(kind, seed=seed), ranker_of(kind, SERIES, seed), batch_of(6, seed)
        mine, others = plain.state_dict(), rich.state_dict()
        assert mine.keys() < others.keys()
        assert all(torch.equal(mine[name], others[name]) for name in mine)
        assert torch.equal(rich.eval()(batch), plain.eval()(batch))


@pytest.mark.parametrize("kind", RANKERS)
def test_vectors_that_were_found_reach_the_logits_and_no_others(kind: str) -> None:
    model, batch = ranker_of(kind, SERIES).eval(), batch_of(5)
    (first,) = (x for name, x in model.named_parameters() if name.endswith("vectors.first.weight"))
    torch.nn.init.normal_(first)
    batch.found[:, 0], batch.found[:, 1] = True, False
    before = model(batch)
    assert not torch.equal(before, model(replace(batch, vectors=batch.vectors + torch.tensor([1.0] * 3 + [0.0] * 3))))
    assert torch.equal(before, model(replace(batch, vectors=batch.vectors + torch.tensor([0.0] * 3 + [1.0] * 3))))


@pytest.mark.parametrize("kind", ["dcnv2", "dhen"])
def test_the_order_of_a_sequence_matters_to_its_transformer(kind: str) -> None:
    """A DLRM takes the mean."""
    batch = batch_of(8)
    turned = random_batch(full_schema(), 8)
    key = turned.sparse.keys().index("history")
    bounds, offsets = turned.sparse.offset_per_key(), turned.sparse.offsets().view(-1)
    values = turned.sparse.values()
    for row in range(8):
        first, last = offsets[key * 8 + row], offsets[key * 8 + row + 1]
        values[first:last] = values[first:last].flip(0)
    assert bounds[key] < bounds[key + 1]
    for each, same in ((kind, False), ("dlrm", True)):
        model = ranker_of(each).eval()
        assert torch.allclose(model(batch), model(replace(turned, vectors=None)), atol=1e-6) is same


def test_crosses_are_their_definition() -> None:
    torch.manual_seed(0)
    crosses, x = Crosses(6, 3), torch.randn(4, 6)
    expected = x
    for down, up in crosses:
        expected = x * (expected @ down.weight.T @ up.weight.T + up.bias) + expected
    torch.testing.assert_close(crosses(x), expected)


def test_no_hidden_layer_is_shared_by_two_towers() -> None:
    torch.manual_seed(0)
    head, hidden = TowerHead(SMALL, 3), torch.randn(4, 24, requires_grad=True)
    logits = head(hidden)
    for task, tower in enumerate(head.towers):
        share = hidden[:, 8 * task : 8 * (task + 1)]
        torch.testing.assert_close(logits[:, task : task + 1], tower[5](tower[2](share.relu()).relu()))
    logits[:, 1].sum().backward()
    assert hidden.grad is not None
    assert hidden.grad[:, 8:16].any()
    assert not hidden.grad[:, :8].any()
    assert not hidden.grad[:, 16:].any()
    reached = {name.split(".")[1] for name, p in head.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {"1"}
    assert TowerHead(replace(SMALL, hidden=()), 3)(hidden[:, :3]).equal(hidden[:, :3])


def test_experts_are_weighted_by_each_tasks_gate() -> None:
    torch.manual_seed(0)
    head, hidden = ExpertHead(replace(SMALL, kind="dcnv2"), 2), torch.randn(4, 8)
    x = hidden.relu()
    for task in range(2):
        gate, tower = head.gates[task], head.towers[task]
        weights = (x @ gate.weight.T + gate.bias).softmax(1)
        mixed = sum(weights[:, [e]] * F.relu(expert[0](x)) for e, expert in enumerate(head.experts))
        torch.testing.assert_close(head(hidden)[:, task], tower(mixed).squeeze(1))
    assert len(head.experts) == 3


@settings(max_examples=30, deadline=None)
@given(a=st.floats(-60, 60), b=st.floats(-60, 60))
def test_a_joint_logit_is_that_of_the_product(a: float, b: float) -> None:
    first, second = torch.tensor([a], **DOUBLES), torch.tensor([b], **DOUBLES)
    p, rest = first.sigmoid() * second.sigmoid(), (-first).sigmoid() + first.sigmoid() * (-second).sigmoid()
    torch.testing.assert_close(joint_logit(first, second), (p.log() - rest.log()).float(), atol=1e-4, rtol=1e-5)


def test_over_the_entire_space_a_task_is_learned_from_all_rows_of_the_other() -> None:
    """`buy` exists where `click` is 1: what is learned is click and buy, of every row."""
    batch = batch_of(40)
    logits = torch.randn(40, 2, requires_grad=True)
    mask = torch.stack([torch.ones(40, dtype=torch.bool), batch.labels[:, 0] == 1], dim=1)
    batch = replace(batch, label_mask=mask, labels=batch.labels * mask)
    loss, output = RankerLoss({1: 0})(logits, batch)
    joint = logits[:, 0].sigmoid() * logits[:, 1].sigmoid()
    expected = F.binary_cross_entropy_with_logits(logits[:, 0], batch.labels[:, 0])
    expected = expected + F.binary_cross_entropy(joint, batch.labels[:, 1])
    torch.testing.assert_close(loss, expected)
    assert torch.equal(output.mask, mask)
    assert torch.equal(output.logits, logits.detach())  # of buy, given a click
    loss.backward()
    assert (logits.grad[~mask[:, 1], 1] != 0).all()


def test_a_task_knows_the_ones_it_is_given_by() -> None:
    batch = random_batch(full_schema(), 30)
    plain, whole = RankerTask(ranker_of("dlrm")), RankerTask(ranker_of("dlrm"), {1: 0})
    assert plain(batch)[0] != whole(batch)[0]


def test_bad_kinds_and_sizes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"kind is 'dcn' \(did you mean 'dcnv2'\?\); use one of dlrm, dcnv2, dhen"):
        NetworkConfig(kind="dcn")
    with pytest.raises(ConfigError, match=r"hidden is \(8,\); a dcnv2 needs two widths or more"):
        NetworkConfig(kind="dcnv2", hidden=(8,))
    with pytest.raises(ConfigError, match="heads is 3; it must divide embedding_dim = 16"):
        NetworkConfig(heads=3)
    with pytest.raises(ConfigError, match="layers names 'gcn'"):
        NetworkConfig(layers=(("gcn",),))
    with pytest.raises(ValueError, match="the ranker has no features"):
        build_ranker(Schema(), SMALL)
