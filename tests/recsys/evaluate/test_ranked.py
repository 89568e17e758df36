import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from recsys.evaluate.nearest import found_at
from recsys.evaluate.ranked import best_places, hit_by_list, ndcg_by_list


@settings(max_examples=60, deadline=None)
@given(
    positives=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 14)), max_size=30, unique=True),
    cut=st.integers(1, 20),
    seed=st.integers(0, 3),
)
def test_ndcg_and_hits_equal_scikit_learn_and_sets(positives: list[tuple[int, int]], cut: int, seed: int) -> None:
    """Of five users and fifteen items, all of them ranked."""
    ranked = np.argsort(np.random.default_rng(seed).random((5, 15)), axis=1)
    pairs = torch.tensor(positives, dtype=torch.int64).reshape(-1, 2)
    places = found_at(torch.from_numpy(ranked), pairs[:, 0], pairs[:, 1])
    found, hits = ndcg_by_list(pairs[:, 0], places, cut), hit_by_list(pairs[:, 0], places, cut)
    wanted = np.zeros((5, 15))
    wanted[tuple(pairs.T.numpy())] = 1
    asked = wanted.any(axis=1)
    scores = np.empty((5, 15))
    np.put_along_axis(scores, ranked, -np.arange(15.0)[None].repeat(5, 0), axis=1)
    assert len(found) == len(hits) == asked.sum()
    expected = [ndcg_score(wanted[user : user + 1], scores[user : user + 1], k=cut) for user in np.flatnonzero(asked)]
    assert found.tolist() == pytest.approx(expected)
    tops = [{*ranked[user, :cut]} & {*np.flatnonzero(wanted[user])} for user in np.flatnonzero(asked)]
    assert hits.tolist() == [float(bool(top)) for top in tops]


def test_what_was_never_retrieved_counts_as_missed() -> None:
    """Two positives, one at the second of three places, the other nowhere."""
    retrieved = torch.tensor([[4, 7, -1]])
    lists = torch.zeros(2, dtype=torch.int64)
    places = found_at(retrieved, lists, torch.tensor([7, -1]))
    best = 1 + 1 / math.log2(3)
    assert ndcg_by_list(lists, places, 3).tolist() == pytest.approx([1 / math.log2(3) / best])
    assert ndcg_by_list(lists, places, 1).tolist() == hit_by_list(lists, places, 1).tolist() == [0]


def test_the_best_place_of_each_item() -> None:
    retrieved = torch.tensor([[3, 1, -1], [1, 0, 2]])
    assert best_places(retrieved, 5).tolist() == [1, 0, 2, 0, 3]
    assert best_places(retrieved[:1].expand(4, -1), 4).tolist() == [3, 1, 3, 0]
    assert best_places(torch.empty(0, 2, dtype=torch.int64), 2).tolist() == [2, 2]
    assert best_places(torch.empty(3, 0, dtype=torch.int64), 1).tolist() == [0]
