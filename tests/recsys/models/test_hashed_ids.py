from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.data.batch import Batch
from recsys.data.convert import table_rows
from recsys.data.schema import Feature, Label, Schema
from recsys.data.sparse import columns, keyed
from recsys.models.hashed_ids import HashedIds, sub_rows

SCHEMA = Schema(
    features=(
        Feature(name="user_id", owner="user", kind="id", rows=50),
        Feature(name="item_id", owner="item", kind="id", rows=20),
        Feature(name="tags", owner="item", kind="ids", rows=9),
    ),
    labels=(Label(name="click"),),
)
ENDS = [-(2**63), -1, 0, 1, 2**63 - 1]
INT64 = st.integers(-(2**63), 2**63 - 1)


def batch(users: list[int], items: list[int]) -> Batch:
    """As `to_batch` has it; an item's two tags hang on its id."""
    size = len(users)
    once, twice = np.ones(size, np.int64), np.full(size, 2, np.int64)
    rows = [table_rows(np.array(ids, np.int64), count) for ids, count in ((users, 50), (items, 20))]
    tags = ((np.array(items, np.int64) % 9)[:, None] + np.arange(2)).ravel() % 9
    sparse = {"user_id": (rows[0], once), "item_id": (rows[1], once), "tags": (tags, twice)}
    return Batch(
        dense={},
        sparse=keyed(sparse, size),
        labels=torch.zeros(size, 1),
        label_mask=torch.ones(size, 1).bool(),
        user_ids=torch.tensor(users, dtype=torch.int64),
        item_ids=torch.tensor(items, dtype=torch.int64),
        timestamps=torch.zeros(size, dtype=torch.int64),
    )


@settings(max_examples=40, deadline=None)
@given(ids=st.lists(INT64, max_size=20), rows=st.integers(1, 100), sub_tables=st.integers(1, 9))
def test_every_id_reads_a_row_of_each_table(ids: list[int], rows: int, sub_tables: int) -> None:
    found = sub_rows(np.array(ids, np.int64), rows, sub_tables)
    assert found.shape == (len(ids), sub_tables)
    assert ((found // rows) == np.arange(sub_tables)).all()
    alone = [sub_rows(np.array([each], np.int64), rows, sub_tables)[0].tolist() for each in ids]
    assert found.tolist() == alone, "a row hangs on the id alone"


def test_ids_at_both_ends_of_int64_are_spread_and_differ() -> None:
    found = sub_rows(np.array(ENDS, np.int64), 2**40, 4)
    assert len({tuple(row) for row in found.tolist()}) == len(ENDS)
    assert len({int(x) % 2**40 for x in found.ravel()}) == found.size, "sub-tables have hashes of their own"


def test_two_ids_that_meet_in_a_table_hardly_meet_in_another() -> None:
    found = sub_rows(np.arange(20_000), 1000, 2) % 1000
    same = found[:-1, 0] == found[1:, 0]
    assert abs(same.mean() - 0.001) < 0.001
    pairs = found[:, 0] * 1000 + found[:, 1]
    assert len(np.unique(pairs)) == pytest.approx(1e6 * (1 - np.exp(-0.02)), rel=0.005)


@settings(max_examples=20, deadline=None)
@given(rows=st.lists(st.tuples(INT64, INT64), max_size=6))
def test_resolve_gives_ids_their_rows_and_leaves_the_rest(rows: list[tuple[int, int]]) -> None:
    users, items = [list(each) for each in zip(*rows, strict=True)] or [[], []]
    hashed, given_batch = HashedIds(SCHEMA, 3), batch(users, items)
    before = columns(given_batch.sparse)["tags"]
    resolved = hashed.resolve(given_batch).sparse
    assert isinstance(resolved, KeyedJaggedTensor)
    parts = columns(resolved)
    assert list(parts) == ["user_id", "item_id", "tags"]
    for name, ids, size in (("user_id", users, 50), ("item_id", items, 20)):
        values, lengths = parts[name]
        assert lengths.tolist() == [3] * len(ids)
        assert values.reshape(-1, 3).tolist() == sub_rows(np.array(ids, np.int64), size, 3).tolist()
    assert [x.tolist() for x in parts["tags"]] == [x.tolist() for x in before]


def test_the_share_of_ids_without_a_row_is_a_loops() -> None:
    hashed, ids = HashedIds(SCHEMA, 2), np.arange(40)
    rows = sub_rows(ids, 20, 2)
    counts = np.bincount(rows.ravel(), minlength=40)
    expected = np.mean([all(counts[row] > 1) for row in rows])
    assert 0 < expected < 1
    nobody = np.zeros(0, np.int64)
    assert hashed.without_row({"user": nobody, "item": ids}) == {"user": 0.0, "item": expected}
