"""Exact search against plain PyTorch (reference.py), at every level of instructions, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from embedding_store.native import ops, reference
from embedding_store.native.library import library
from tests.embedding_store.native.test_ops import LEVELS, level  # noqa: F401

NOBODY = torch.empty(0, dtype=torch.int64)


def drawn(users: int, items: int, dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """Of whole numbers, so that inner products are exact in any order, and many of them equal."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(-3, 4, (count, dim), generator=generator).float() for count in (users, items))


@settings(max_examples=150, deadline=None)
@given(
    users=st.integers(0, 40),
    items=st.integers(0, 150),
    dim=st.integers(0, 20) | st.just(129),
    k=st.integers(1, 40) | st.just(1000),
    pairs=st.integers(0, 200),
    order=st.sampled_from(["any", "best first", "best last"]),
    instructions=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_nearest_is_what_the_reference_finds(users, items, dim, k, pairs, order, instructions, seed):
    """Ties too: the first rows win."""
    left, right = drawn(users, items, dim, seed)
    if order != "any" and users:
        right = right[(right @ left[0]).argsort(descending=order == "best first")]
    count = pairs if users and items else 0
    without = [torch.randint(max(n, 1), (count,)) for n in (users, items)]
    library().embedding_store_use_level(instructions)
    try:
        rows, scores = ops.nearest(left, right, k, *without)
    finally:
        library().embedding_store_use_level(len(LEVELS))
    expected_rows, expected = reference.nearest(left, right, k, *without)
    assert torch.equal(rows, expected_rows)
    assert torch.equal(scores, expected)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("users", "items", "dim"), [(700, 9_000, 40), (20, 30_000, 7), (3, 5_000, 3_000)])
def test_many_users_and_items(users: int, items: int, dim: int, threads: int, level: int):  # noqa: F811
    """More than a block of users, and items or users shared between threads: the bits of one user alone."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(count, dim, generator=generator) for count in (users, items))
    without = (torch.arange(users).repeat(2), torch.arange(2 * users) % items)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rows, scores = ops.nearest(left, right, 50, *without)
    finally:
        torch.set_num_threads(before)
    _, expected = reference.nearest(left, right, 50, *without)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close((left[:, None] * right[rows]).sum(2), scores, rtol=1e-4, atol=1e-3)
    assert all(len(row.unique()) == 50 for row in rows)
    assert not (rows[without[0]] == without[1][:, None]).any()
    alone = ops.nearest(left[-1:], right, 50, torch.zeros(2, dtype=torch.int64), without[1][without[0] == users - 1])
    assert torch.equal(alone[0][0], rows[-1])
    assert torch.equal(alone[1][0], scores[-1])


def test_what_is_no_number_is_not_found():
    items = torch.tensor([[1.0], [float("nan")], [2.0], [float("-inf")], [float("inf")]])
    rows, scores = ops.nearest(torch.ones(1, 1), items, 5, NOBODY, NOBODY)
    assert rows.tolist() == [[4, 2, 0, -1, -1]]
    assert scores.tolist() == [[float("inf"), 2.0, 1.0, float("-inf"), float("-inf")]]


def test_strided_vectors():
    left, right = drawn(5, 60, 8, seed=0)
    rows, _ = ops.nearest(left[:, ::2], right.T.contiguous().T[:, ::2], 9, NOBODY, NOBODY)
    assert torch.equal(rows, reference.nearest(left[:, ::2], right[:, ::2], 9, NOBODY, NOBODY)[0])


def test_nearest_passes_opcheck():
    outcome = torch.library.opcheck(torch.ops.embedding_store.nearest.default, (*drawn(4, 9, 3, 0), 5, NOBODY, NOBODY))
    assert set(outcome.values()) == {"SUCCESS"}, outcome


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"users": torch.zeros(2, 3, dtype=torch.float64)}, "users are not float32 of two dimensions"),
        ({"items": torch.zeros(3)}, "items are not float32 of two dimensions"),
        ({"items": torch.zeros(2, 4)}, "users have 3 dimensions and items 4"),
        ({"k": 0}, "k is 0; use 1 or more"),
        ({"without_users": torch.zeros(1)}, "without is not as many int64 rows of items as of users"),
        ({"without_items": torch.tensor([1, 2])}, "without is not as many int64 rows of items as of users"),
        ({"without_users": torch.tensor([2])}, "without has user 2; use a row of the 2 users"),
        ({"without_users": torch.tensor([-1])}, "without has user -1; use a row of the 2 users"),
    ],
)
def test_wrong_arguments_are_refused(change: dict, message: str):
    zero = torch.zeros(1, dtype=torch.int64)
    arguments = {"users": torch.zeros(2, 3), "items": torch.zeros(4, 3), "k": 2}
    with pytest.raises(ValueError, match=message):
        ops.nearest(**{**arguments, "without_users": zero, "without_items": zero, **change})
