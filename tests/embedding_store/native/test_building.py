"""The native parts of index building, beside the same in NumPy, on one thread and on several."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_store.format.index import ABSENT, EMPTY, SLOTS, Placement, hash_ids, home_buckets, unhash
from embedding_store.native import building
from embedding_store.native.layout import SLOT

WORD = st.integers(0, 2**64 - 1)
ENDS = [-(2**63), -(2**63) + 1, -1, 0, 1, 2**63 - 2, 2**63 - 1]


@pytest.fixture(params=[1, 3], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def words(values: list[int]) -> np.ndarray:
    return np.array(values, np.uint64)


def random_words(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)


@given(st.lists(st.sampled_from(ENDS) | st.integers(-(2**63), 2**63 - 1)), st.integers(0, 2**62))
def test_upserts_are_hashes_and_locations(ids: list[int], location: int):
    given_ids = np.array(ids, np.int64)
    h, operations = building.upserts(given_ids, location)
    assert np.array_equal(h, hash_ids(given_ids))
    assert operations.tolist() == [2 * (location + i) + 1 for i in range(len(ids))]
    assert np.array_equal(building.upserts(given_ids[::-1], location)[0], h[::-1])


def test_no_pieces_are_no_pairs():
    assert [len(column) for column in building.sort_pieces([])] == [0, 0]


def test_upserts_of_what_is_no_ids_are_refused():
    for wrong in (np.zeros(3), np.zeros(3, np.uint64), np.zeros((3, 1), np.int64)):
        with pytest.raises(ValueError, match="give int64"):
            building.upserts(wrong, 0)


def check_sorted(h: np.ndarray, value: np.ndarray) -> None:
    order = np.lexsort((value, h))
    for cuts in ([], [0, len(h) // 3, len(h) // 3, len(h) - len(h) // 7, len(h)]):
        pieces = [(h[a:b], value[a:b]) for a, b in pairwise([0, *cuts, len(h)])]
        found = building.sort_pieces(pieces)
        assert np.array_equal(found[0], h[order])
        assert np.array_equal(found[1], value[order])


@settings(deadline=None)
@given(st.lists(st.tuples(WORD | st.integers(0, 3), WORD | st.integers(0, 3))))
def test_pairs_are_sorted_by_hash_then_value(pairs: list[tuple[int, int]]):
    check_sorted(words([h for h, _ in pairs]), words([value for _, value in pairs]))


@pytest.mark.parametrize("count", [1, 2, 65_535, 300_000])
@pytest.mark.parametrize("kind", ["spread", "narrow", "few", "one and the ends", "equal"])
def test_many_pairs_are_sorted_however_they_are_spread(count: int, kind: str):
    h, value = random_words(count), random_words(count, 1)
    if kind == "narrow":
        h = h >> np.uint64(50)
    elif kind == "few":
        h = h % np.uint64(7) << np.uint64(60)
    elif kind == "one and the ends":
        h[3:] = 5
        h[:2], h[2:3] = 2**64 - 1, 0
    elif kind == "equal":
        h[:] = 2**64 - 1
    check_sorted(h, value)


@settings(deadline=None)
@given(st.lists(st.tuples(WORD, WORD)), st.integers(1, 16))
def test_partitioned_pairs_are_the_same_pairs_by_their_first_bits(pairs: list[tuple[int, int]], bits: int):
    h, value = words([h for h, _ in pairs]), words([value for _, value in pairs])
    parted_h, parted_value, ends = building.partition_pairs(h, value, bits)
    assert sorted(zip(parted_h.tolist(), parted_value.tolist(), strict=True)) == sorted(pairs)
    assert len(ends) == 2**bits
    first = parted_h >> np.uint64(64 - bits)
    expected = np.repeat(np.arange(2**bits, dtype=np.uint64), np.diff(ends, prepend=0))
    assert np.array_equal(first, expected)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1) | st.sampled_from(ENDS), st.integers(0, 2**40))))
def test_last_operations_are_what_each_leaves(chosen: list[tuple[int, int]]):
    by_id = dict(chosen)
    ids = np.array(list(by_id), np.int64)
    h, operations = building.sort_pieces([(hash_ids(ids), words(list(by_id.values())))])
    locations, ends, distinct = building.last_operations(h, operations)
    upserts = [id for id, operation in by_id.items() if operation & 1]
    expected = [op >> 1 if op & 1 else ABSENT for op in operations.tolist()]
    assert locations.tolist() == expected
    assert ends == ((min(upserts), max(upserts)) if upserts else None)
    assert distinct
    if len(h):
        assert not building.last_operations(np.append(h, h[-1]), np.append(operations, operations[-1]))[2]


def reference(h: np.ndarray, locations: np.ndarray, buckets: int, seed: int, free: int) -> tuple[np.ndarray, int, int]:
    """The slots from `free` on, the slot behind, and the most buckets visited."""
    placement = Placement(buckets)
    placement.free = free
    slots = placement.next(h)
    table = np.zeros(placement.free - free, SLOT)
    table["location"] = EMPTY
    table["id"][slots - free] = unhash(h, seed)
    table["location"][slots - free] = locations
    return table, placement.free, placement.header(len(h), seed).max_probe


@settings(deadline=None)
@given(
    ids=st.lists(st.integers(-(2**63), 2**63 - 1) | st.sampled_from(ENDS), unique=True),
    seed=st.integers(0, 7),
    free=st.integers(0, 400),
    crowded=st.booleans(),
)
def test_entries_lie_where_numpy_lays_them(ids: list[int], seed: int, free: int, crowded: bool):
    check_layout(np.sort(hash_ids(np.array(ids, np.int64), seed)), seed, free, crowded)


@pytest.mark.parametrize("crowded", [False, True])
@pytest.mark.parametrize("count", [16_384, 200_000])
def test_many_entries_lie_where_numpy_lays_them(count: int, crowded: bool):
    check_layout(np.unique(random_words(count)), 0, 12_345, crowded)


def check_layout(h: np.ndarray, seed: int, free: int, crowded: bool) -> None:
    buckets = max(
        1, home_buckets(len(h)) // (4 if crowded else 1)
    )  # four times as many as there is room for: long runs
    locations = np.arange(len(h), dtype=np.uint64)
    table, behind, probe = reference(h, locations, buckets, seed, free)
    assert building.plan(h, buckets, free) == (behind, probe)
    assert building.place(h, locations, buckets, seed, free, behind).tobytes() == table.tobytes()
    if len(h):
        with pytest.raises(ValueError, match="the entries end behind it"):
            building.place(h, locations, buckets, seed, free, behind - 1)
    assert behind >= len(h)
    assert SLOTS == 4


@pytest.mark.parametrize("wrong", [np.zeros(3), np.zeros(3, np.int64), np.zeros((3, 1), np.uint64)])
def test_what_is_no_words_is_refused(wrong: np.ndarray):
    good = np.zeros(3, np.uint64)
    for call in (
        lambda: building.sort_pieces([(good, good), (wrong, good)]),
        lambda: building.partition_pairs(good, wrong, 4),
        lambda: building.last_operations(good, wrong),
        lambda: building.plan(wrong, 1, 0),
        lambda: building.place(good, wrong, 1, 0, 0, 3),
    ):
        with pytest.raises(ValueError, match="give uint64"):
            call()


def test_numbers_that_no_index_has_are_refused():
    h = np.zeros(3, np.uint64)
    with pytest.raises(ValueError, match=r"value is uint64 \[2\]: give uint64 \[3\]"):
        building.sort_pieces([(h, h[:2])])
    with pytest.raises(ValueError, match="bits is 17: use 1 to 16"):
        building.partition_pairs(h, h, 17)
    for buckets, free in ((0, 0), (2**46, 0), (1, -1)):
        with pytest.raises(ValueError, match="no index has these"):
            building.plan(h, buckets, free)
