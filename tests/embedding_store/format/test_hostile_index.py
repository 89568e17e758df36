"""Indexes that lie: found where they mislead, never followed to a wrong vector."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embedding_store import (
    FileFormatError,
    InvalidIndexError,
    Series,
    Snapshot,
)
from tests.embedding_store.format.forging import (
    IDS,
    rewrite_file,
    rewrite_header,
    rewrite_slots,
    used,
)


@pytest.mark.parametrize(
    ("field", "value", "error", "message"),
    [
        (0, b"ESINDEX3", FileFormatError, "starts with b'ESINDEX3', an index starts with b'ESINDEX2'"),
        (1, 0, InvalidIndexError, "0 home buckets"),
        (1, -1, InvalidIndexError, "-1 home buckets"),
        (1, 2**62, InvalidIndexError, "home buckets"),
        (2, 2**57, InvalidIndexError, "in all, but the file has"),
        (2, 1, InvalidIndexError, "in all, but the file has"),
        (3, 19, InvalidIndexError, "says 19 entries, its manifest 20 rows"),
        (4, 33, InvalidIndexError, "max_probe is 33"),
        (4, -1, InvalidIndexError, "max_probe is -1"),
        (5, 8, InvalidIndexError, "seed 8"),
        (5, -1, InvalidIndexError, "seed -1"),
        (6, 1, InvalidIndexError, "reserved numbers"),
    ],
)
def test_a_lying_header(series: Series, snapshot: Snapshot, field: int, value: object, error, message: str):
    hostile = rewrite_header(series, snapshot, field, value)
    with pytest.raises(error, match=f"index.hash: .*{message}"):
        hostile.load()


def test_an_index_that_is_too_short_for_a_header(series: Series, snapshot: Snapshot):
    with pytest.raises(FileFormatError, match=r"index.hash: starts with"):
        rewrite_file(series, snapshot, "index", b"ESINDEX2" + bytes(20)).load()


@pytest.mark.parametrize(("field", "value"), [(1, 1), (4, 7), (5, 3)])
def test_a_header_that_leads_searches_elsewhere(series: Series, snapshot: Snapshot, field: int, value: int):
    """Fewer home buckets, another max_probe, another seed: ids may be missing, but have no wrong vector."""
    expected = snapshot.load().lookup(torch.tensor(IDS))[0]
    hostile = rewrite_header(series, snapshot, field, value)
    vectors, found = hostile.load().lookup(torch.tensor(IDS))
    assert torch.equal(vectors, torch.where(found[:, None], expected, 0.0))
    with pytest.raises(InvalidIndexError, match=r"index.hash: (its entries are not in their places|has 20 entries)"):
        hostile.verify()


@pytest.mark.parametrize("location", [4 << 40, 2**63 - 1, 2**64 - 2, (3 << 40) | 2, 6, (1 << 40) - 1, 2**40 + 2**39])
def test_an_index_that_points_past_its_rows(series: Series, snapshot: Snapshot, location: int):
    hit: list[int] = []

    def change(slots: np.ndarray) -> None:
        position = used(slots)[5]
        hit.append(int(slots["id"][position]))
        slots["location"][position] = location

    hostile = rewrite_slots(series, snapshot, change)
    others = torch.tensor([id for id in IDS if id != hit[0]])
    table = hostile.load()
    assert bool(table.lookup(others)[1].all())
    with pytest.raises(InvalidIndexError, match=r"index.hash: "):
        table.lookup(torch.tensor(IDS))
    with pytest.raises(InvalidIndexError, match=r"index.hash: points to row \d+ of segment \d+, which does not exist"):
        hostile.verify()


def test_an_index_without_empty_slots_ends_every_search(series: Series, snapshot: Snapshot):
    def change(slots: np.ndarray) -> None:
        empty = slots["location"] == 2**64 - 1
        slots["id"][empty] = -(2**62) - np.arange(int(empty.sum()))
        slots["location"][empty] = 0

    hostile = rewrite_slots(series, snapshot, change)
    _, found = hostile.load().lookup(torch.cat([torch.tensor(IDS), torch.arange(1000, 3000)]))
    assert found.tolist() == [True] * 20 + [False] * 2000
    with pytest.raises(InvalidIndexError, match=r"index.hash: "):
        hostile.verify()


def reverse(slots: np.ndarray, places: np.ndarray) -> None:
    slots["location"][places] = slots["location"][places][::-1]


def repeat_location(slots: np.ndarray, places: np.ndarray) -> None:
    slots["location"][places[0]] = slots["location"][places[1]]


def repeat_id(slots: np.ndarray, places: np.ndarray) -> None:
    slots["id"][places[0]] = slots["id"][places[1]]


def exchange(slots: np.ndarray, places: np.ndarray) -> None:
    slots[places[[0, 1]]] = slots[places[[1, 0]]]


def remove(slots: np.ndarray, places: np.ndarray) -> None:
    slots["location"][places[0]] = 2**64 - 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (reverse, r"leads from id -?\d+ to row \d of segment \d in data/\w+/vectors-0000\d.arrow, which is id -?\d+"),
        (repeat_location, "points to a row twice"),
        (repeat_id, "not in their places"),
        (exchange, "not in their places"),
        (remove, "has 19 entries, its header is .*entries=20|not in their places"),
    ],
)
def test_an_index_that_disagrees_is_found_by_verify(series: Series, snapshot: Snapshot, change, message: str):
    hostile = rewrite_slots(series, snapshot, lambda slots: change(slots, used(slots)))
    with pytest.raises(InvalidIndexError, match=f"index.hash: .*{message}"):
        hostile.verify()
