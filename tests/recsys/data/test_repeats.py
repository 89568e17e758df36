"""Ids that are to be distinct, and are there more than once."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.data.scan import repeats


@pytest.mark.parametrize("values", [1, 5, 300, 2**62])
def test_rows_whose_id_an_earlier_one_has(values: int) -> None:
    ids = np.random.default_rng(values).integers(-values, values, 400)
    firsts: dict[int, int] = {}
    wanted = [(row, firsts[key]) for row, key in enumerate(ids.tolist()) if firsts.setdefault(key, row) != row]
    found = repeats(ids)
    assert list(zip(*(rows.tolist() for rows in found), strict=True)) == wanted
    assert bool(wanted) == (values < 2**62)


def test_none_are_there() -> None:
    for ids in (np.empty(0, np.int64), np.array([7])):
        assert [rows.tolist() for rows in repeats(ids)] == [[], []]
