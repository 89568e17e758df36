"""log Q in bounded memory: the frequent items exactly, the others never too rare, and the same whoever has counted."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.counts import Counts
from recsys.data.ranks import Ranks, home
from recsys.models.frequencies import ItemFrequencies
from recsys.positives import frequencies_of
from tests.recsys.data.threads import run_threads


def counts_of(items: int, seed: int = 0, skew: float = 1.1) -> Counts:
    """Counts that fall as a power of the rank, of ids from anywhere."""
    random = np.random.default_rng(seed)
    ids = np.unique(random.integers(-(2**63), 2**63 - 1, items))
    return Counts(ids, 1 + (items / random.permutation(np.arange(1, len(ids) + 1)) ** skew).astype(np.int64))


def exactly(counts: Counts) -> torch.Tensor:
    return torch.from_numpy(np.log(counts.counts / counts.counts.sum())).float()


@settings(max_examples=60, deadline=None)
@given(
    counts=st.dictionaries(st.integers(-(2**63), 2**63 - 1), st.integers(1, 9), max_size=40),
    head=st.integers(1, 45),
    world_size=st.integers(1, 3),
)
def test_frequent_items_are_exact_and_no_item_is_too_rare(counts: dict[int, int], head: int, world_size: int) -> None:
    ids = np.array(sorted(counts), np.int64)
    whole = Counts(ids, np.array([counts[id_] for id_ in sorted(counts)], np.int64))

    def found(ranks: Ranks) -> ItemFrequencies | None:
        mine = home(whole.ids, ranks) == ranks.rank
        return frequencies_of(Counts(*(column[mine] for column in whole)), ranks, head=head, width=16)

    every = run_threads(found, world_size)
    if not counts:
        assert every == [None] * world_size
        return
    got = [frequencies(torch.from_numpy(ids)) for frequencies in every]
    assert all(torch.equal(each, got[0]) for each in got)
    wanted = exactly(whole)
    assert (got[0] >= wanted - 0.01).all()
    assert (got[0] <= wanted.max() + 0.01).all()
    exact = np.isin(ids, every[0].ids.numpy())
    assert exact.all() if len(ids) <= head else exact.sum() <= head
    assert exact[whole.counts > np.sort(whole.counts)[::-1][min(head, len(ids)) - 1]].all(), "the most frequent ones"
    torch.testing.assert_close(got[0][exact], wanted[exact])


def test_the_error_of_the_rare_ones_is_small_where_there_is_room() -> None:
    """60,000 items, 1,000 of them exact, in 4 x 65,536 cells: one item a cell."""
    counts = counts_of(60_000)
    sketch = frequencies_of(counts, head=1000, width=2**16)
    assert sketch is not None
    error = sketch(torch.from_numpy(counts.ids)) - exactly(counts)
    assert float(error.abs().mean()) < 0.02
    assert float((error.abs() > 0.02).float().mean()) < 0.05
    weighted = (error.abs().double() * torch.from_numpy(counts.counts)).sum() / counts.counts.sum()
    assert float(weighted) < 0.01


def test_what_was_never_seen() -> None:
    counts = counts_of(300)
    sketch = frequencies_of(counts, head=100, width=2**12)
    assert sketch is not None
    others = torch.from_numpy(counts_of(2000, seed=1).ids)
    assert float((sketch(others, unseen=-math.inf) == -math.inf).float().mean()) > 0.99
    assert float(sketch(others).min()) == pytest.approx(-math.log(counts.counts.sum()), abs=0.01)
    assert sketch.state_dict() == {}
    assert sum(x.numel() * x.element_size() for x in sketch.buffers()) <= 100 * 12 + 4 * 2**12 * 2 + 4
