import math
from typing import Any

import numpy as np
import pytest
import torch

from embedding_store import EmbeddingStore, Snapshot
from recsys.downstream.retrieval import VersionSkewError, evaluate_retrieval, most_popular

LAST = np.iinfo(np.int64).max


@pytest.fixture
def publish(tmp_path):
    """Publishes a snapshot of a series, making the series first."""
    store = EmbeddingStore(tmp_path)

    def write(name: str, ids: Any, vectors: Any, *, space: str = "ctr-1", as_of: int = 1000) -> Snapshot:
        vectors = torch.as_tensor(vectors, dtype=torch.float32)
        series = store.create(name, dim=vectors.shape[1], exist_ok=True)
        with series.write(as_of=as_of, space=space) as writer:
            writer.append(torch.as_tensor(ids, dtype=torch.int64), vectors)
        return series.latest()

    return write


def test_evaluation_worked_by_hand(publish):
    users = publish("user_ctr", [10, -20], [[1.0, 0.0], [0.0, 1.0]])
    items = publish("item_ctr", [5, LAST, 7], [[1.0, 0.1], [0.1, 1.0], [0.5, 0.5]])
    # 10 wants 5 (twice) and 99 (no vector), -20 wants the last id, 30 has no vector and wants 7
    positives = np.array([10, 10, 10, -20, 30]), np.array([5, 5, 99, LAST, 7])
    popularity = np.array([7, 99, 5]), np.array([4, 9, 4])
    found = evaluate_retrieval(users, items, positives, popularity, k=(1, 2))
    assert found.recall == {1: pytest.approx((0.5 + 1 + 0) / 3), 2: pytest.approx((0.5 + 1 + 0) / 3)}
    assert found.popularity_recall == {1: pytest.approx(0.5 / 3), 2: pytest.approx(1 / 3)}  # 99, then 5 before 7
    assert (found.users, found.items) == (3, 3)
    assert found.users_without_vector == pytest.approx(1 / 3)
    assert found.positives_without_vector == pytest.approx(1 / 4)
    assert (found.space, found.version, found.as_of) == ("ctr-1", 1, 1000)


def test_planted_factors_are_found_far_better_than_by_popularity(publish):
    rng = np.random.default_rng(0)
    users, items = (torch.from_numpy(rng.normal(size=(n, 8))).float() for n in (200, 1000))
    wanted = (users @ items.T).topk(5, dim=1).indices.flatten().numpy()
    found = evaluate_retrieval(
        publish("user_ctr", np.arange(200), users),
        publish("item_ctr", np.arange(1000), items),
        (np.repeat(np.arange(200), 5), wanted),
        np.unique(wanted, return_counts=True),
    )
    assert found.recall == {10: 1.0, 50: 1.0}
    assert found.popularity_recall[10] < 0.2


def test_nothing_to_find_gives_nan_and_no_candidates_give_zero(publish):
    users, items = publish("user_ctr", [1], [[1.0, 0.0]]), publish("item_ctr", [2], [[1.0, 0.0]])
    none = np.zeros(0, np.int64), np.zeros(0, np.int64)
    found = evaluate_retrieval(users, items, none, none)
    assert math.isnan(found.recall[10])
    assert math.isnan(found.users_without_vector)
    empty = publish("item_empty", [], torch.zeros(0, 2))
    found = evaluate_retrieval(users, empty, (np.array([1]), np.array([2])), none)
    assert found.recall == found.popularity_recall == {10: 0.0, 50: 0.0}
    assert found.positives_without_vector == 1.0


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
    monkeypatch.setattr(Snapshot, "load", lambda self: pytest.fail("loaded"))
    pair = np.array([1]), np.array([2])
    with pytest.raises(VersionSkewError, match=message):
        evaluate_retrieval(users, items, pair, pair)


def test_arguments_are_checked(publish):
    users, items = publish("user_ctr", [1], [[1.0]]), publish("item_ctr", [2], [[1.0]])
    pair = np.array([1]), np.array([2])
    for k in ((), (10, 0)):
        with pytest.raises(ValueError, match=r"give cut-offs of 1 or more"):
            evaluate_retrieval(users, items, pair, pair, k=k)
    with pytest.raises(ValueError, match=r"popularity are columns of 2 and 1; give two of one length"):
        evaluate_retrieval(users, items, pair, (np.array([1, 2]), np.array([3])))


def test_popularity_breaks_ties_by_id():
    assert most_popular(np.array([9, -3, 4, 8]), np.array([1, 2, 2, 5]), 3).tolist() == [8, -3, 4]
