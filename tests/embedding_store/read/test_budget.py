"""Budgets of GPU memory: what is refused before anything is loaded, and by which name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from embedding_store import InvalidArgumentError, InvalidIdsError, Series
from embedding_store.read.budget import Budget, budget_of, budgets
from tests.embedding_store.helpers import publish

IDS = torch.tensor([3, 1])


def test_one_series_and_several():
    assert budgets(["user"], 10, None) == {"user": Budget(10)}
    assert budgets(["user"], {"user": 10}, {"user": IDS}) == {"user": Budget(10, IDS)}
    assert budgets(["user", "item"], {"item": 7}, None) == {"item": Budget(7)}
    assert budgets(["user", "item"], None, None) == {}
    assert budget_of(None, None) is None


@pytest.mark.parametrize(
    ("gpu_bytes", "hot_ids", "message"),
    [
        (-1, None, "gpu_bytes is -1; use 0 or more bytes"),
        (1.5, None, "gpu_bytes is 1.5; use"),
        (True, None, "gpu_bytes is True; use"),
        ("4 GB", None, "gpu_bytes is '4 GB'; use"),
        (None, IDS, "hot_ids are given without gpu_bytes: say how many bytes"),
    ],
)
def test_a_budget_that_cannot_be_is_refused(series: Series, gpu_bytes: Any, hot_ids: Any, message: str):
    snapshot = publish(series, 1, [1, 2, 3])
    with pytest.raises(InvalidArgumentError, match=message):
        snapshot.load(gpu_bytes=gpu_bytes, hot_ids=hot_ids)


@pytest.mark.parametrize(
    ("hot_ids", "kind"),
    [
        (IDS.to(torch.float32), r"torch.float32 \[2\]"),
        (IDS.view(1, 2), r"torch.int64 \[1, 2\]"),
        ([1, 2], "a list"),
    ],
)
def test_hot_ids_of_a_wrong_kind_are_refused(series: Series, hot_ids: Any, kind: str):
    snapshot = publish(series, 1, [1, 2, 3])
    with pytest.raises(InvalidIdsError, match=f"hot_ids are {kind}: give int64"):
        snapshot.load(gpu_bytes=2**20, hot_ids=hot_ids)


@pytest.mark.parametrize(
    ("gpu_bytes", "hot_ids", "message"),
    [
        (10, None, r"gpu_bytes is one for 2 series: give each its own, \{'user': ..., 'item': ...\}"),
        ({"user": 10, "itme": 10}, None, "gpu_bytes names 'itme'; use user, item"),
        ({"user": -10}, None, r"gpu_bytes\['user'\] is -10; use 0 or more bytes"),
        ({"user": 10}, IDS, "hot_ids is one for 2 series"),
        ({"user": 10}, {"item": IDS}, r"hot_ids\['item'\] are given without gpu_bytes\['item'\]"),
    ],
)
def test_of_several_series_each_has_its_own(gpu_bytes: Any, hot_ids: Any, message: str):
    with pytest.raises(InvalidArgumentError, match=message):
        budgets(["user", "item"], gpu_bytes, hot_ids)
