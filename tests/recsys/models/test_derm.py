from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.data.batch import Batch
from recsys.data.schema import Feature, Label, Schema, SchemaError
from recsys.models.derm import DERM, EntityTower, PairNetwork, TaskHeads, VectorHead
from recsys.train.tables import draw_tables
from tests.recsys.models.support import SMALL, full_schema, random_batch

TASKS = ("click", "buy")


def _derm(schema: Schema | None = None) -> DERM:
    torch.manual_seed(0)
    return draw_tables(DERM(schema or full_schema(), SMALL, TASKS), 0)


def _with_features_of(batch: Batch, other: Batch, schema: Schema, *owners: str) -> Batch:
    """`batch`, but with the features of `owners` taken from `other`."""
    replaced = {feature.name for feature in schema.owned_by(*owners)}
    replaced |= {feature.age_key for feature in schema.owned_by(*owners)}
    keys = batch.sparse.keys()
    parts = {key: (other if key in replaced else batch).sparse[key] for key in keys}
    sparse = KeyedJaggedTensor(
        keys=list(parts),
        values=torch.cat([part.values() for part in parts.values()]),
        lengths=torch.cat([part.lengths() for part in parts.values()]),
    )
    dense = {owner: (other if owner in owners else batch).dense[owner] for owner in batch.dense}
    return replace(batch, sparse=sparse, dense=dense)


def test_output_shapes_and_unit_vectors():
    schema = full_schema()
    model = _derm()
    output = model(random_batch(schema, 6))
    assert output.logits.shape == (6, 2)
    for vectors in (output.user, output.item):
        assert vectors.shape == (6, SMALL.vector_dim)
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(6))
    (output.logits.sum() + (output.user * output.item).sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_context_and_interaction_features_never_touch_an_entity_vector():
    schema = full_schema()
    model, batch, other = _derm(), random_batch(schema, 8, seed=1), random_batch(schema, 8, seed=2)
    changed = _with_features_of(batch, other, schema, "context", "interaction")
    before, after = model(batch), model(changed)
    assert torch.equal(before.user, after.user)
    assert torch.equal(before.item, after.item)
    assert not torch.equal(before.logits, after.logits)
    assert torch.equal(model.user_vector(changed), before.user)
    assert torch.equal(model.item_vector(changed), before.item)


@pytest.mark.parametrize(("owner", "name"), [("user", "item_vector"), ("item", "user_vector")])
def test_features_of_one_entity_never_touch_the_others_vector(owner, name):
    schema = full_schema()
    model, batch, other = _derm(), random_batch(schema, 8, seed=1), random_batch(schema, 8, seed=2)
    changed = _with_features_of(batch, other, schema, owner)
    assert torch.equal(getattr(model, name)(batch), getattr(model, name)(changed))
    own = f"{owner}_vector"
    assert not torch.equal(getattr(model, own)(batch), getattr(model, own)(changed))


@pytest.mark.parametrize("owner", ["user", "item"])
def test_one_tower_runs_on_a_batch_of_that_entity_alone(owner):
    schema = full_schema()
    model = _derm()
    alone = random_batch(schema, 5, owners=(owner,))
    whole = random_batch(schema, 5, seed=3)
    vector = f"{owner}_vector"
    merged = _with_features_of(whole, _with_keys(alone, whole), schema, owner)
    assert torch.equal(getattr(model, vector)(alone), getattr(model, vector)(merged))


def _with_keys(batch: Batch, whole: Batch) -> Batch:
    """`batch` with every dense owner of `whole`, as _with_features_of asks for them."""
    return replace(batch, dense={**whole.dense, **batch.dense})


def test_interaction_tower_may_have_the_two_vectors_alone():
    schema = full_schema()
    names = tuple(feature.name for feature in schema.owned_by("user", "item"))
    model = _derm(schema.select(features=names))
    assert model.interaction.tokens is None
    assert model(random_batch(schema, 3)).logits.shape == (3, 2)


@pytest.mark.parametrize("owner", ["user", "item"])
def test_an_entity_without_features_is_an_error(owner):
    other = "item" if owner == "user" else "user"
    schema = Schema(features=(Feature(name="x", owner=other, kind="id", rows=3),), labels=(Label(name="click"),))
    with pytest.raises(ValueError, match=f"the {owner} tower has no features: .* owner = '{owner}'"):
        DERM(schema, SMALL, ["click"])


@pytest.mark.parametrize("owner", ["context", "interaction"])
def test_context_cannot_be_asked_into_an_entity_tower(owner):
    with pytest.raises(ValueError, match=f"owner '{owner}'; only user and item have one"):
        EntityTower(full_schema(), owner, SMALL)


def test_tasks_are_checked():
    with pytest.raises(SchemaError, match="unknown label 'purchase'; the schema has: click, buy"):
        DERM(full_schema(), SMALL, ["purchase"])
    for tasks in ([], ["click", "click"]):
        with pytest.raises(ValueError, match="tasks is"):
            DERM(full_schema(), SMALL, tasks)


def test_a_zero_vector_has_a_finite_gradient():
    head = VectorHead(SMALL)
    torch.nn.init.zeros_(head.linear.bias)
    x = torch.zeros(2, SMALL.tokens, SMALL.token_dim, requires_grad=True)
    out = head(x)
    assert torch.equal(out, torch.zeros_like(out))
    out.sum().backward()
    assert x.grad.isfinite().all()


def test_task_heads_are_one_mlp_a_task():
    torch.manual_seed(0)
    heads, x = TaskHeads(6, 4, 3), torch.randn(5, 6)
    first, activation = heads.hidden
    for task, got in enumerate(heads(x).unbind(1)):
        rows = slice(4 * task, 4 * task + 4)
        hidden = activation(x @ first.weight[rows].T + first.bias[rows])
        torch.testing.assert_close(got, hidden @ heads.weight[task] + heads.bias[task])


def test_logits_hold_a_weighted_inner_product():
    network = PairNetwork(0, SMALL, 2)
    torch.nn.init.zeros_(network.heads.weight)
    user, item = torch.nn.functional.normalize(torch.randn(2, 5, SMALL.vector_dim), dim=2)
    expected = SMALL.vector_dim * (user * item) @ network.inner_product.weight.T
    torch.testing.assert_close(network(user, item, None), expected)


def test_pair_network_takes_empty_batches():
    network = PairNetwork(2, SMALL, 2)
    vectors = torch.zeros(0, SMALL.vector_dim)
    assert network(vectors, vectors, torch.zeros(0, 2, SMALL.token_dim)).shape == (0, 2)


def test_autocast_gives_float32_outputs_close_to_full_precision():
    model, batch = _derm(), random_batch(full_schema(), 6)
    full = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(batch)
    for got, expected in zip(half, full, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, atol=0.05, rtol=0.05)
    torch.testing.assert_close(half.user.norm(dim=1), torch.ones(6))


def test_tables_of_a_new_model_take_no_memory():
    model = DERM(full_schema(), SMALL, TASKS)
    for name, parameter in model.named_parameters():
        assert parameter.is_meta == ("embedding" in name), name
    assert {n for n, _ in model.named_parameters()} == {n for n, _ in _derm().named_parameters()}
