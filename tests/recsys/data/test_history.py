"""Histories against a loop over rows that anybody can check by eye."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.data.history import PastEvents

IDS = st.sampled_from([-(2**63), -5, 0, 7, 2**31 + 1, 2**63 - 1])
EVENTS = st.lists(st.tuples(IDS, st.integers(0, 6), st.booleans()), max_size=30)
QUERIES = st.lists(st.tuples(IDS, st.integers(-1, 8)), max_size=10)


def _columns(events: list[tuple[int, int, bool]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    entity = np.array([e for e, _, _ in events], np.int64)
    time = np.array([t for _, t, _ in events], np.int64)
    kept = np.array([k for _, _, k in events], bool)
    return entity, time, np.arange(len(events)) * 10, kept


def _expected(events: list[tuple[int, int, bool]], entity: int, time: int, max_length: int) -> list[tuple[int, int]]:
    earlier = [(t, i * 10) for i, (e, t, k) in enumerate(events) if k and e == entity and t < time]
    return [(value, t) for t, value in sorted(earlier)[-max_length:]]


@given(events=EVENTS, max_length=st.integers(1, 8))
def test_earlier_values_are_those_of_a_loop(events: list[tuple[int, int, bool]], max_length: int) -> None:
    entity, time, _, _ = _columns(events)
    history = PastEvents(*_columns(events)).before(entity, time, max_length)
    values, times = history.to_arrow()
    expected = [_expected(events, e, t, max_length) for e, t, _ in events]
    assert values.to_pylist() == [[value for value, _ in row] for row in expected]
    assert times.to_pylist() == [[time for _, time in row] for row in expected]
    assert history.lengths.tolist() == [len(row) for row in expected]


@given(events=EVENTS)
def test_earlier_counts_are_those_of_a_loop(events: list[tuple[int, int, bool]]) -> None:
    entity, time, _, _ = _columns(events)
    counts = PastEvents(*_columns(events)).count_before(entity, time)
    assert counts.tolist() == [len(_expected(events, e, t, 99)) for e, t, _ in events]


@given(events=EVENTS, queries=QUERIES, max_length=st.integers(1, 8))
def test_queries_of_their_own(
    events: list[tuple[int, int, bool]], queries: list[tuple[int, int]], max_length: int
) -> None:
    past = PastEvents(*_columns(events))
    entity, time = np.array([e for e, _ in queries], np.int64), np.array([t for _, t in queries], np.int64)
    values, _ = past.before(entity, time, max_length).to_arrow()
    assert values.to_pylist() == [[v for v, _ in _expected(events, e, t, max_length)] for e, t in queries]
    assert past.count_before(entity, time).tolist() == [len(_expected(events, e, t, 99)) for e, t in queries]


def test_equal_times_are_not_earlier() -> None:
    history = PastEvents([1, 1, 1], [5, 5, 6], ["a", "b", "c"]).before([1, 1, 1], [5, 5, 6], 9)
    assert history.to_arrow()[0].to_pylist() == [[], [], ["a", "b"]]


def test_no_rows_give_no_lists() -> None:
    empty = np.array([], np.int64)
    history = PastEvents(empty, empty, empty, empty.astype(bool)).before(empty, empty, 3)
    assert history.offsets.tolist() == [0]
    assert len(history.to_arrow()[0]) == 0


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="max_length is 0; use 1 or more"):
        PastEvents([1], [1], [1]).before([1], [1], 0)
    with pytest.raises(ValueError, match=r"'time': \(1,\).*equal length"):
        PastEvents([1, 2], [1], [1, 2], [True, True])
    with pytest.raises(ValueError, match="equal length"):
        PastEvents([1], [1], [1]).before([1, 2], [1], 3)
