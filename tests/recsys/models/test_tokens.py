from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedTensor

from recsys.data.schema import OWNERS, Schema
from recsys.models.tokens import TABLE_INIT, OwnerTokens, pooled_tokens
from recsys.train.tables import draw_tables
from tests.recsys.models.support import SMALL, full_schema, random_batch


def _tokens(schema: Schema, owners: tuple[str, ...]) -> OwnerTokens:
    return draw_tables(OwnerTokens(schema, owners, SMALL), 0)


@pytest.mark.parametrize(
    ("owners", "count"), [(("user",), 9), (("item",), 3), (("context", "interaction"), 4), (("context",), 2)]
)
def test_one_token_a_feature_two_a_sequence_one_for_dense(owners, count):
    schema = full_schema()
    tokens = _tokens(schema, owners)
    assert tokens.count == count
    out = tokens(random_batch(schema, 7))
    assert out.shape == (7, count, SMALL.token_dim)
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in tokens.parameters())


def test_rows_without_any_id_are_finite():
    schema = full_schema()
    batch = random_batch(schema, 3)
    nothing = batch.sparse.lengths().zero_()
    batch = replace(batch, sparse=type(batch.sparse)(batch.sparse.keys(), torch.zeros(0).long(), lengths=nothing))
    assert _tokens(schema, OWNERS)(batch).isfinite().all()


def test_tables_are_shared_within_an_owner_and_named_apart_between_owners():
    schema = full_schema()
    tokens = _tokens(schema, OWNERS)
    names = [table.name for table in tokens.bags.embedding_bag_configs()]
    assert names == ["user_user", "user_topic", "item_item", "item_tags", "context_hour", "interaction_item"]
    readers = {table.name: table.feature_names for table in tokens.bags.embedding_bag_configs()}
    assert readers["user_topic"] == ["interests", "main.topic"]
    elements = {table.name: table.feature_names for table in tokens.sequences.embedding_configs()}
    assert elements == {"user_history": ["history"], "user_like": ["likes", "last_liked"]}


def test_an_id_that_shares_a_sequences_table_is_its_row():
    schema = full_schema()
    tokens = _tokens(schema, ("user",))
    batch = random_batch(schema, 9)
    table = tokens.sequences.embeddings["user_like"].weight
    liked = batch.sparse["last_liked"]
    expected = torch.zeros(9, SMALL.token_dim)
    expected[liked.lengths() > 0] = table[liked.values()]
    column = len(tokens.assemble.bagged)
    torch.testing.assert_close(tokens(batch)[:, column], expected)


def test_tables_start_small():
    tokens = _tokens(full_schema(), OWNERS)
    tables = [p for name, p in tokens.named_parameters() if "embedding" in name]
    assert len(tables) == 8
    assert all(0 < p.detach().abs().max().item() <= TABLE_INIT for p in tables)


def test_pooled_tokens_take_any_order_of_keys():
    values = torch.arange(12.0).view(2, 6)
    bags = KeyedTensor(keys=["b", "a", "c"], length_per_key=[2, 2, 2], values=values)
    assert torch.equal(pooled_tokens(bags, ["a", "b", "c"]), values.view(2, 3, 2)[:, [1, 0, 2]])


def test_a_batch_of_another_schema_is_refused():
    schema = full_schema()
    tokens = _tokens(schema, ("item",))
    batch = random_batch(schema, 2)
    with pytest.raises(ValueError, match=r"batch.dense\['item'\] is \[B, 2\], the model was built for \[B, 1\]"):
        tokens(replace(batch, dense={"item": torch.zeros(2, 2)}))
    with pytest.raises(ValueError, match=r"batch.dense\['item'\] is missing"):
        tokens(replace(batch, dense={}))


def test_no_features_give_no_tokens():
    assert OwnerTokens(Schema(), ("user",), SMALL).count == 0
