import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_store import EmbeddingStore, Snapshot
from recsys.downstream.retrieval import VersionSkewError, build_index, most_popular, positions
from recsys.prior import WITHDRAWN

LAST = np.iinfo(np.int64).max


def writer_into(folder: Any) -> Any:
    """Publishes a snapshot of a series, making the series first."""
    store = EmbeddingStore(folder)

    def write(name: str, ids: Any, vectors: Any, *, space: str = "ctr-1", as_of: int = 1000) -> Snapshot:
        vectors = torch.as_tensor(vectors, dtype=torch.float32)
        series = store.create(name, dim=vectors.shape[1], exist_ok=True)
        with series.write(as_of=as_of, space=space) as writer:
            writer.append(torch.as_tensor(ids, dtype=torch.int64), vectors)
        return series.latest()

    return write


@pytest.fixture
def publish(tmp_path):
    return writer_into(tmp_path)


def test_scores_worked_by_hand(publish):
    users = publish("user_ctr", [10], [[1.0, 2.0]])
    items = publish("item_ctr", [5, LAST], [[1.0, 0.0], [0.0, 1.0]])
    prior = publish("item_ctr.prior", [5, 9], [[-2.0], [-1.0]])
    index = build_index(users, items, prior, temperature=0.5, weight=3.0)
    assert index.ids.tolist() == [5, 9, LAST]  # 9 is alive without a vector
    assert index.has_vector.tolist() == [True, False, True]
    queries, found = index.queries(torch.tensor([10, 11]))
    assert found.tolist() == [True, False]
    # 1 / 0.5 - 3 * 2; the mean of 1 and 2, over 0.5, - 3 * 1; 2 / 0.5 - 3 * (the least prior + log 2)
    unseen = 3 * math.log(2)
    want = torch.tensor([[-4.0, 0.0, -2.0 - unseen], [-6.0, -3.0, -6.0 - unseen]])
    torch.testing.assert_close(queries @ index.vectors.T, want)
    assert index.search(queries, 2).tolist()[0] == [1, 0]
    without = torch.tensor([0, 0]), torch.tensor([9, 12345])
    assert index.search(queries[:1], 3, without).tolist() == [[0, 2, -1]]


@given(st.integers(0, 5), st.integers(0, 7), st.integers(0, 7), st.floats(0.05, 2), st.floats(0, 4), st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_inner_products_are_the_formula(tmp_path_factory, users, items, priors, temperature, weight, seed):
    """Of any users, items with and without a vector, with and without a prior."""
    rng = np.random.default_rng(seed)
    write = writer_into(tmp_path_factory.mktemp("store"))
    user_ids, item_ids, prior_ids = (rng.choice(10, n, replace=False) for n in (users, items, priors))
    u, v, b = (rng.normal(size=(n, d)).astype(np.float32) for n, d in ((users, 3), (items, 3), (priors, 1)))
    snapshots = write("user_c", user_ids, u), write("item_c", item_ids, v), write("item_c.prior", prior_ids, b)
    index = build_index(*snapshots, temperature=temperature, weight=weight)
    assert index.ids.tolist() == sorted({*item_ids.tolist(), *prior_ids.tolist()})
    scores = (index.queries(torch.arange(10))[0] @ index.vectors.T).numpy()
    for user in range(10):
        vector = u[user_ids == user].sum(0)
        average = np.mean(v @ vector) if items else 0.0
        for column, item in enumerate(index.ids.tolist()):
            product = v[item_ids == item][0] @ vector if item in item_ids else average
            share = b[prior_ids == item][0, 0] if item in prior_ids else b.min() - math.log(2) if priors else 0.0
            assert scores[user, column] == pytest.approx(product / temperature + weight * share, abs=1e-3)


def test_who_is_new_gets_what_is_popular(publish):
    rng = np.random.default_rng(0)
    users = publish("user_ctr", [1], rng.normal(size=(1, 4)))
    items = publish("item_ctr", np.arange(50), rng.normal(size=(50, 4)))
    counts = rng.permutation(60)
    prior = publish("item_ctr.prior", np.arange(60), np.log1p(counts)[:, None])
    index = build_index(users, items, prior, temperature=0.1, weight=0.7)
    found = index.ids[index.search(index.queries(torch.tensor([777]))[0], 60)[0]]
    assert found.tolist() == most_popular(np.arange(60), counts, 60).tolist()


def test_what_is_withdrawn_is_gone_at_once(publish):
    users, items = publish("user_ctr", [1], [[1.0]]), publish("item_ctr", [2, 3], [[1.0], [2.0]])
    prior = publish("item_ctr.prior", [2, 3, 4, 99], [[-3.0], [WITHDRAWN], [-2.0], [WITHDRAWN]])
    index = build_index(users, items, prior, temperature=1.0)
    assert index.ids.tolist() == [2, 4]
    assert index.ids[index.search(index.queries(torch.tensor([1]))[0], 5)].tolist() == [[4, 2]]  # 1 - 2, 1 - 3


def test_nothing_to_retrieve_from(publish):
    empty = [
        publish(name, [], torch.zeros(0, dim)) for name, dim in (("user_e", 2), ("item_e", 2), ("item_e.prior", 1))
    ]
    index = build_index(*empty, temperature=1.0)
    assert index.search(index.queries(torch.tensor([1, 2]))[0], 3).shape == (2, 0)


@pytest.mark.parametrize(
    ("versions", "facts", "message"),
    [
        (2, {}, r"differ in version: users are user_ctr .*version 1 .*items are item_ctr .*version 2 "),
        (1, {"space": "cvr-1"}, r"differ in space: .*'ctr-1'.*'cvr-1'"),
        (1, {"as_of": 999}, r"differ in as_of: .*as of 1000.*as of 999"),
    ],
)
def test_version_skew_is_refused_before_anything_is_loaded(publish, monkeypatch, versions, facts, message):
    users = publish("user_ctr", [1], [[1.0]])
    items = [publish("item_ctr", [2], [[1.0]], **facts) for _ in range(versions)][-1]
    prior = publish("item_ctr.prior", [2], [[1.0]])
    monkeypatch.setattr(Snapshot, "load", lambda self: pytest.fail("loaded"))
    with pytest.raises(VersionSkewError, match=message):
        build_index(users, items, prior, temperature=0.1)


def test_popularity_breaks_ties_by_id():
    assert most_popular(np.array([9, -3, 4, 8]), np.array([1, 2, 2, 5]), 3).tolist() == [8, -3, 4]


def test_positions_among_ids_in_any_order():
    assert positions(torch.tensor([9, -3, LAST]), torch.tensor([LAST, 4, 9, -3])).tolist() == [2, -1, 0, 1]
    assert positions(torch.tensor([], dtype=torch.int64), torch.tensor([1])).tolist() == [-1]
