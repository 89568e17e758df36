"""The arithmetic against plain Python, and days published to a store against a dict of entities."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.config import AGGREGATIONS
from recsys.refresh.aggregate import Aggregation, aggregate, expired
from recsys.refresh.aggregator import is_in

# aggregate and expired


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 40),
    dim=st.sampled_from([1, 3, 64]),
    method=st.sampled_from(AGGREGATIONS),
    weight=st.sampled_from([0.0, 0.2, 0.5, 0.8]),
    renormalise=st.booleans(),
    stored=st.sampled_from([torch.float32, torch.float16]),
    seed=st.integers(0, 9),
)
def test_aggregate_against_plain_python(
    rows: int, dim: int, method: str, weight: float, renormalise: bool, stored: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    previous, today = (torch.randn(rows, dim, generator=generator).to(stored) for _ in range(2))
    counts = torch.randint(1, 9, (rows,), generator=generator)
    known = torch.rand(rows, generator=generator) < 0.7
    result = aggregate(method, weight, previous, counts, known, today, renormalise=renormalise)
    assert (result.shape, result.dtype) == ((rows, dim), torch.float32)
    for row in range(rows):
        old, new, count = previous[row].tolist(), today[row].tolist(), int(counts[row])
        share = {"latest": 0.0, "ma": weight, "average": count / (count + 1)}[method] if known[row] else 0.0
        expected = [share * a + (1 - share) * b for a, b in zip(old, new, strict=True)]
        length = math.sqrt(sum(x * x for x in expected)) if renormalise else 1.0
        assert result[row].tolist() == pytest.approx([x / length for x in expected], abs=2e-6, rel=2e-6)


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    previous, today = torch.randn(2, 1000, 5, generator=generator)
    counts, known = torch.ones(1000), torch.rand(1000, generator=generator) < 0.5
    whole = aggregate("average", 0.8, previous, counts, known, today)
    monkeypatch.setattr("recsys.refresh.aggregate._BLOCK_VALUES", 37)
    assert torch.equal(aggregate("average", 0.8, previous, counts, known, today), whole)


@pytest.mark.parametrize("method", AGGREGATIONS)
def test_the_result_may_go_where_an_input_was(method: str) -> None:
    previous, today, counts = torch.randn(9, 4), torch.randn(9, 4), torch.full((9,), 3.0)
    known = torch.arange(9) % 3 > 0
    expected = aggregate(method, 0.8, previous, counts, known, today)
    for name in ("previous", "today"):
        inputs = {"previous": previous.clone(), "today": today.clone()}
        result = aggregate(method, 0.8, counts=counts, known=known, out=inputs[name], **inputs)
        assert result is inputs[name]
        assert torch.equal(result, expected)
    half = aggregate(method, 0.8, previous, counts, known, today, out=torch.empty(9, 4, dtype=torch.float16))
    assert torch.equal(half, expected.half())


def test_what_is_not_known_is_not_looked_at() -> None:
    previous = torch.full((2, 3), math.nan)
    result = aggregate("ma", 0.8, previous, torch.zeros(2), torch.zeros(2, dtype=torch.bool), torch.ones(2, 3))
    assert torch.equal(result, torch.ones(2, 3))


def test_a_zero_vector_stays_zero_when_renormalised() -> None:
    zero = torch.zeros(1, 3)
    result = aggregate("ma", 0.8, zero, torch.ones(1), torch.ones(1, dtype=torch.bool), zero, renormalise=True)
    assert torch.equal(result, zero)


def test_time_to_live_counts_the_newest_day() -> None:
    last = torch.tensor([100.0, 99.0, 98.0, 97.0])
    assert expired(last, 100, 3).tolist() == [False, False, False, True]
    assert expired(last, 100, 1).tolist() == [False, True, True, True]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "mean"}, "method is 'mean'; use one of ma, latest, average"),
        ({"weight": 1.0}, "weight is 1.0"),
        ({"weight": -0.1}, "weight is -0.1"),
        ({"weight": math.nan}, "weight is nan"),
        ({"time_to_live_days": 0}, "time_to_live_days is 0"),
        ({"delta_below": 1.5}, "delta_below is 1.5"),
    ],
)
def test_settings_that_cannot_work(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Aggregation(**fields)  # type: ignore[arg-type]


def test_is_in() -> None:
    among = torch.tensor([-5, 0, 2**63 - 1])
    assert is_in(torch.tensor([0, 1, -5, -6, 2**63 - 1]), among).tolist() == [True, False, True, False, True]
    assert is_in(torch.tensor([3]), among[:0]).tolist() == [False]
    assert is_in(among[:0], among).tolist() == []
