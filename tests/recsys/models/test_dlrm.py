from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrec.sparse.jagged_tensor import KeyedTensor

from recsys.config import NetworkConfig
from recsys.config.ranker import JOINS
from recsys.data.batch import Batch
from recsys.data.schema import Schema
from recsys.models.dlrm import DLRM
from recsys.models.ranker import RankerTask
from recsys.models.series import SeriesSpec, upper_pairs
from recsys.train.tables import draw_tables
from tests.recsys.models.support import full_schema, random_batch

SMALL = NetworkConfig(embedding_dim=4, projection_dim=6, hidden=(8, 5), dropout=0.0, vector_dropout=0.0)
SERIES = (
    SeriesSpec(name="user_ctr", owner="user", space="ctr-1", dim=3),
    SeriesSpec(name="item_ctr", owner="item", space="ctr-1", dim=3),
    SeriesSpec(name="user_cvr", owner="user", space="cvr-1", dim=2),
)


def _ranker(series=(), config=SMALL, seed=0, *, started=False, tasks=1) -> DLRM:
    """`started`: the vectors' share, which is zero at first, is not."""
    torch.manual_seed(seed)
    model = draw_tables(DLRM(full_schema(), config, series, tasks), seed)
    if started and series:
        torch.nn.init.normal_(model.network.body.vectors.first.weight)
    return model


def _batch(size: int, seed: int = 0, share: float = 0.7) -> Batch:
    batch = random_batch(full_schema(), size, seed)
    generator = torch.Generator().manual_seed(seed)
    found = torch.rand(size, len(SERIES), generator=generator) < share
    parts = [torch.randn(size, x.dim, generator=generator) for x in SERIES]
    vectors = torch.cat([part * f.unsqueeze(1) for part, f in zip(parts, found.unbind(1), strict=True)], dim=1)
    feed = 30 * torch.rand(size, len(SERIES), 2, generator=generator) * found.unsqueeze(2)
    return replace(batch, vectors=vectors, found=found, feed=feed)


@settings(max_examples=20, deadline=None)
@given(
    size=st.integers(1, 5),
    count=st.integers(0, 3),
    hidden=st.sampled_from([(), (4,), (8, 5)]),
    projection_dim=st.sampled_from([4, 6]),
    join=st.sampled_from(JOINS),
    tasks=st.integers(1, 3),
)
def test_logits_and_gradients(size, count, hidden, projection_dim, join, tasks):
    config = replace(SMALL, hidden=hidden, projection_dim=projection_dim, join=join, join_dim=7)
    model = _ranker(SERIES[:count], config, tasks=tasks)
    batch = _batch(size)
    dims = sum(x.dim for x in SERIES[:count])
    batch = replace(batch, vectors=batch.vectors[:, :dims], found=batch.found[:, :count], feed=batch.feed[:, :count])
    logits = model(batch)
    assert logits.shape == (size, tasks)
    assert logits.dtype == torch.float32
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_ranker_starts_the_same_with_and_without_vectors():
    for seed in range(3):
        plain, rich = _ranker(seed=seed).state_dict(), _ranker(SERIES, seed=seed).state_dict()
        assert plain.keys() < rich.keys()
        assert all(torch.equal(plain[name], rich[name]) for name in plain)
    assert {name.split(".")[2] for name in rich.keys() - plain.keys()} == {"vectors"}


def test_the_ranker_starts_as_the_same_function_with_and_without_vectors():
    """Bit by bit, in training too; and from its first step on the vectors' part learns."""
    config = replace(SMALL, hidden=(32, 16), dropout=0.1)
    for seed in range(3):
        plain, rich, batch = _ranker(config=config, seed=seed), _ranker(SERIES, config, seed), _batch(6, seed)
        torch.manual_seed(seed)
        expected = plain(batch)
        torch.manual_seed(seed)
        assert torch.equal(rich(batch), expected)
        assert torch.equal(rich.eval()(batch), plain.eval()(batch))
        rich(batch).sum().backward()
        assert rich.network.body.vectors.first.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("join", JOINS)
def test_the_network_is_its_definition(join):
    config = replace(SMALL, join=join, join_dim=7)
    model, batch = _ranker(SERIES, config, started=True).eval(), _batch(4, seed=5)
    network = model.network
    got = model(batch)
    bags = model.bags(batch.sparse)
    order = ("user", "item", "context", "interaction")
    for row in range(4):
        dense = torch.asinh(torch.cat([batch.dense[owner][row] for owner in order]))
        fields = [bags[name][row] for name in network.sparse] + [network.bottom(dense)]
        dots = [fields[i] @ fields[j] for i in range(len(fields)) for j in range(i + 1, len(fields))]
        hidden = network.body.trunk.first(torch.cat([*fields, torch.stack(dots)]))

        vectors = batch.vectors[row].split([3, 3, 2])
        projected = [layer(x) for layer, x in zip(network.body.vectors.project, vectors, strict=True)]
        wide = [network.body.vectors.widen(field) for field in fields]
        features = [*{"each": projected, "raw": vectors}.get(join, ())]
        if join == "together":
            features.append(network.body.vectors.together(batch.vectors[row]))
        features += [torch.stack([projected[i] @ projected[j] for i, j in ((0, 1), (0, 2), (1, 2))])]
        features += [torch.stack([p @ w for p in projected for w in wide]), batch.found[row].float()]
        features += [torch.log1p(batch.feed[row]).flatten()]
        features += [vectors[0] * vectors[1], (vectors[0] @ vectors[1]).unsqueeze(0)]
        hidden = hidden + network.body.vectors.first(torch.cat(features))
        torch.testing.assert_close(got[row], network.body.head(hidden.unsqueeze(0)).squeeze(0))


def test_vectors_their_feed_and_found_flags_reach_the_logits():
    model, batch = _ranker(SERIES, started=True).eval(), _batch(5, share=1.0)
    base = model(batch)
    assert not torch.equal(base, model(replace(batch, vectors=batch.vectors + 1)))
    assert not torch.equal(base, model(replace(batch, found=~batch.found)))
    assert not torch.equal(base, model(replace(batch, feed=batch.feed + 1)))


def test_what_was_not_found_cannot_reach_the_logits():
    model, batch = _ranker(SERIES, started=True).eval(), _batch(5)
    batch.found[:, 1] = False
    changed, fed = batch.vectors.clone(), batch.feed.clone()
    changed[:, 3:6] = fed[:, 1] = 9.0
    assert torch.equal(model(batch), model(replace(batch, vectors=changed, feed=fed)))


def test_entity_dropout_takes_one_series_from_a_row_while_training():
    model = _ranker(SERIES, replace(SMALL, entity_dropout=0.6))
    batch = _batch(2000, share=1.0)
    parts, found, feed = model.network.body.vectors._split(batch.vectors, batch.found, batch.feed)
    assert torch.equal(feed, batch.feed * found.unsqueeze(2))
    lost = ~found
    assert lost.sum(1).max() == 1
    assert lost.float().mean(0).tolist() == pytest.approx([0.2] * 3, abs=0.05)
    for part, flag, original in zip(parts, found.unbind(1), batch.vectors.split([3, 3, 2], dim=1), strict=True):
        assert torch.equal(part, original * flag.unsqueeze(1))
    model.eval()
    assert model.network.body.vectors._split(batch.vectors, batch.found, batch.feed)[1].all()


@given(size=st.integers(0, 4), fields=st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_upper_pairs_are_the_dots_of_every_two(size, fields):
    x = torch.randn(size, fields, 3)
    expected = [(x[:, i] * x[:, j]).sum(1) for i in range(fields) for j in range(i + 1, fields)]
    got = upper_pairs(x)
    torch.testing.assert_close(got, torch.stack(expected, dim=1) if expected else torch.zeros(size, 0))


def test_the_network_takes_empty_batches():
    """Of the whole ranker only TorchRec's tables do not: a KeyedJaggedTensor cannot be split without a row."""
    network = _ranker(SERIES).network
    names = network.sparse
    bags = KeyedTensor(keys=names, length_per_key=[4] * len(names), values=torch.zeros(0, 4 * len(names)))
    dense = {owner: torch.zeros(0, width) for owner, width in network.widths.items()}
    assert network(bags, dense, torch.zeros(0, 8), torch.zeros(0, 3).bool(), torch.zeros(0, 3, 2)).shape == (0, 1)


def test_autocast():
    model, batch = _ranker(SERIES, tasks=2), _batch(6)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = RankerTask(model)(batch)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, RankerTask(model)(batch)[0], atol=0.02, rtol=0.02)


def test_ranker_task_reads_its_labels_and_their_masks():
    model, batch = _ranker(tasks=2), random_batch(full_schema(), 30)
    loss, output = RankerTask(model)(batch)
    logits, expected = model(batch), torch.zeros(())
    for task in range(2):
        valid = batch.label_mask[:, task]
        each = torch.nn.functional.binary_cross_entropy_with_logits
        expected = expected + each(logits[valid, task], batch.labels[valid, task])
    torch.testing.assert_close(loss, expected)
    assert output.losses.keys() == {"supervised"}
    assert torch.equal(output.labels, batch.labels)
    assert torch.equal(output.mask, batch.label_mask)
    assert output.logits.shape == (30, 2)
    assert not output.logits.requires_grad
    with pytest.raises(ValueError, match=r"the ranker has 1 tasks, batch\.labels 2 columns"):
        RankerTask(_ranker())(batch)


def test_bad_series_and_batches_are_named():
    with pytest.raises(ValueError, match="owner is 'context'; use user or item"):
        SeriesSpec(name="x", owner="context", space="s", dim=2)
    with pytest.raises(ValueError, match="dim is 0"):
        SeriesSpec(name="x", owner="user", space="s", dim=0)
    with pytest.raises(ValueError, match="give each once"):
        _ranker((SERIES[0], SERIES[0]))
    with pytest.raises(ValueError, match="share space 'ctr-1' but have dimensions 3 and 5"):
        _ranker((SERIES[0], replace(SERIES[1], dim=5)))
    with pytest.raises(ValueError, match="the ranker has no features"):
        DLRM(Schema(), SMALL)
    with pytest.raises(ValueError, match=r"None, None and None, the ranker reads 3 series of dimensions \[3, 3, 2\]"):
        _ranker(SERIES)(random_batch(full_schema(), 2))
