import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.evaluate.nearest import exact_top_k, nearest, recall_at_k


@given(st.integers(0, 9), st.integers(0, 30), st.integers(1, 40), st.integers(1, 7), st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_top_k_equals_sorting_everything(users, items, k, chunk, seed):
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(users, 4, generator=generator), torch.randn(items, 4, generator=generator)
    found = exact_top_k(left, right, k, chunk)
    assert torch.equal(found, (left @ right.T).argsort(dim=1, descending=True)[:, :k])
    assert found.dtype == torch.int64


def test_top_k_refuses_what_cannot_be():
    with pytest.raises(ValueError, match=r"k is 0 and chunk is 5; use 1 or more"):
        exact_top_k(torch.zeros(1, 2), torch.zeros(1, 2), 0, 5)
    with pytest.raises(ValueError, match=r"users have 2 dimensions and items 3"):
        exact_top_k(torch.zeros(1, 2), torch.zeros(1, 3), 1)


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
    st.integers(0, 6), st.integers(0, 20), st.integers(1, 25), st.integers(1, 7), st.integers(0, 40), st.integers(0, 99)
)
@settings(max_examples=60, deadline=None)
def test_pairs_that_are_left_out_are_not_found(users, items, k, chunk, pairs, seed):
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(users, 4, generator=generator), torch.randn(items, 4, generator=generator)
    count = pairs if users and items else 0
    without = (
        torch.randint(max(users, 1), (count,), generator=generator),
        torch.randint(max(items, 1), (count,), generator=generator),
    )
    scores = left @ right.T
    scores[without] = float("-inf")
    best, wanted = scores.sort(dim=1, descending=True)
    wanted[best == float("-inf")] = -1
    assert torch.equal(exact_top_k(left, right, k, chunk, without=without), wanted[:, :k])


@given(
    users=st.integers(1, 5),
    items=st.integers(0, 200),
    k=st.integers(1, 30),
    chunk=st.integers(16, 70),
    order=st.sampled_from(["any", "best first", "best last"]),
    pairs=st.integers(0, 300),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_blocks_and_groups_pass_over_nothing_that_wins(users, items, k, chunk, order, pairs, seed):
    """Whole groups of items, a rest, and bars that rise with every block or never."""
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(users, 4, generator=generator), torch.randn(items, 4, generator=generator)
    if order != "any":
        right = right[(right @ left[0]).argsort(descending=order == "best first")]
    count = pairs if items else 0
    without = tuple(torch.randint(max(n, 1), (count,), generator=generator) for n in (users, items))
    scores = left @ right.T
    scores[without] = float("-inf")
    best, wanted = scores.sort(dim=1, descending=True)
    wanted[best == float("-inf")] = -1
    found = nearest(left, right, k, chunk, without=without)
    assert torch.equal(found.rows, wanted[:, :k])
    torch.testing.assert_close(found.scores, best[:, :k])
