import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.evaluate import nearest as nearest_module
from recsys.evaluate.nearest import exact_top_k, nearest, recall_at_k

DTYPES = st.sampled_from([torch.float32, torch.float64])  # native code's, and PyTorch's


@given(DTYPES, st.integers(0, 9), st.integers(0, 30), st.integers(1, 40), st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_top_k_equals_sorting_everything(dtype, users, items, k, seed):
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(count, 4, generator=generator, dtype=dtype) for count in (users, items))
    found = exact_top_k(left, right, k)
    assert torch.equal(found, (left @ right.T).argsort(dim=1, descending=True)[:, :k])
    assert found.dtype == torch.int64


def test_top_k_refuses_what_cannot_be():
    with pytest.raises(ValueError, match=r"k is 0; use 1 or more"):
        exact_top_k(torch.zeros(1, 2), torch.zeros(1, 2), 0)
    with pytest.raises(ValueError, match=r"users have 2 dimensions and items 3"):
        exact_top_k(torch.zeros(1, 2), torch.zeros(1, 3), 1)
    pair = (torch.tensor([1]), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"without has user 1; use a row of the 1 users"):
        exact_top_k(torch.zeros(1, 2), torch.zeros(1, 2), 1, without=pair)


def test_recall_worked_by_hand():
    retrieved = torch.tensor([[4, 7, 9], [4, 5, 6], [-1, -1, -1], [0, 1, 2]])
    # user 0 wants 7 and 8, user 1 wants 4 and one that cannot be retrieved, user 2 wants 4, user 3 nothing
    rows, items = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([7, 8, 4, -1, 4])
    assert recall_at_k(retrieved, rows, items, (1, 2, 50)) == {1: 0.5 / 3, 2: 1 / 3, 50: 1 / 3}
    nothing = torch.zeros(0, dtype=torch.int64)
    assert math.isnan(recall_at_k(retrieved, nothing, nothing, (1,))[1])


@given(st.integers(0, 60), st.integers(0, 12), st.integers(0, 99))
@settings(deadline=None)
def test_recall_equals_sets(positives, width, seed):
    rng = np.random.default_rng(seed)
    retrieved = np.stack([rng.permutation(12)[:width] for _ in range(6)])
    pairs = np.unique(np.stack([rng.integers(0, 6, positives), rng.integers(-1, 12, positives)], axis=1), axis=0)
    found = recall_at_k(torch.from_numpy(retrieved), *torch.from_numpy(pairs).T, k=(1, 5))
    for k, recall in found.items():
        shares = []
        for user in np.unique(pairs[:, 0]):
            wanted = set(pairs[pairs[:, 0] == user, 1])
            shares.append(len(wanted & set(retrieved[user, :k])) / len(wanted))
        assert recall == pytest.approx(np.mean(shares)) if shares else math.isnan(recall)


@given(
    dtype=DTYPES,
    users=st.integers(0, 12),
    items=st.integers(0, 200),
    k=st.integers(1, 30),
    pairs=st.integers(0, 300),
    order=st.sampled_from(["any", "best first", "best last"]),
    few=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=120, deadline=None)
def test_pairs_that_are_left_out_are_not_found(dtype, users, items, k, pairs, order, few, seed):
    """In one block of users and items, and in many of few."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(count, 4, generator=generator, dtype=dtype) for count in (users, items))
    if order != "any" and users:
        right = right[(right @ left[0]).argsort(descending=order == "best first")]
    count = pairs if users and items else 0
    without = tuple(torch.randint(max(n, 1), (count,), generator=generator) for n in (users, items))
    scores = left @ right.T
    scores[without] = float("-inf")
    best, wanted = scores.sort(dim=1, descending=True)
    wanted[best == float("-inf")] = -1
    with pytest.MonkeyPatch.context() as patch:
        if few:
            patch.setattr(nearest_module, "_ITEMS", 17)
            patch.setattr(nearest_module, "_SCORES", 100)
        found = nearest(left, right, k, without=without)
    assert torch.equal(found.rows, wanted[:, :k])
    torch.testing.assert_close(found.scores, best[:, :k])
