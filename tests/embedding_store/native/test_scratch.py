"""Memory that is used again, and never while somebody looks at it."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from embedding_store.native import scratch

MIB = 1 << 20


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch):
    gc.collect()
    scratch._kept.clear()


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_memory_goes_to_the_next_array_of_about_that_size():
    first = scratch.empty(MIB // 8, np.uint64)
    at = address(first)
    del first
    again = scratch.empty(MIB // 4 - 5, np.uint32)
    assert address(again) == at
    assert again.dtype == np.uint32
    assert again.shape == (MIB // 4 - 5,)
    assert again.flags.writeable


def test_a_view_keeps_it():
    first = scratch.empty(MIB, np.uint8)
    first[:] = 7
    views = [first[10:20], first.view(np.uint64)[::2], first.reshape(2, -1)[1].data]
    del first
    while views:
        other = scratch.empty(MIB, np.uint8)
        other[:] = 9
        assert all((np.asarray(view).ravel().view(np.uint8) == 7).all() for view in views)
        views.pop()
        del other


@pytest.mark.parametrize("count", [0, 1, 100, (8 << 20) + 1])
def test_small_and_huge_ones_are_not_kept(count: int):
    array = scratch.empty(count, np.uint8)
    assert array.shape == (count,)
    del array
    assert not any(scratch._kept.values())


def test_no_more_than_some_of_a_size_are_kept():
    arrays = [scratch.empty(MIB, np.uint8) for _ in range(40)]
    assert len({address(array) for array in arrays}) == 40
    arrays.clear()
    assert len(scratch._kept[MIB]) == 8
