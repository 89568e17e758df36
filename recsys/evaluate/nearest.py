"""Exact search by inner product, and how much of what was wanted is among the first k found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from embedding_store import nearest as nearest_rows

_SCORES = 1 << 24
"""That PyTorch holds at once, where native code does not compute them."""
_ITEMS = 4096
"""That a block of users is scored against at once there."""
_NOTHING = float("-inf")


class Nearest(NamedTuple):
    """What was found for each user, best first."""

    rows: Tensor  # int64 [U, K], of the items; -1: nothing at this place
    scores: Tensor  # float [U, K]; -inf: nothing at this place


def exact_top_k(
    users: Tensor,  # float [U, D]
    items: Tensor,  # float [N, D]
    k: int,
    *,
    without: tuple[Tensor, Tensor] | None = None,  # int64 [P] each: rows of users, rows of items
) -> Tensor:
    """For each user the rows of the `k` items of greatest inner product: `nearest`, without the scores."""
    return nearest(users, items, k, without=without).rows


def nearest(
    users: Tensor,  # float [U, D]
    items: Tensor,  # float [N, D]
    k: int,
    *,
    without: tuple[Tensor, Tensor] | None = None,  # int64 [P] each: rows of users, rows of items
) -> Nearest:
    """For each user the `k` items of greatest inner product, best first; ties in any order.

    float32 on the CPU is native code's, in which a score that is no better than the user's k-th so far never leaves the
    registers it is computed in; all else PyTorch's, some users against some items at a time. Memory does not grow with
    U x N.

    Args:
        users, items: the vectors.
        k: how many.
        without: pairs that are left out, each user row with an item row that it must not get.

    Returns:
        rows of `items` and their scores, [U, min(k, N)]; -1 and -inf where a user has fewer that are not left out.

    Raises:
        ValueError: k < 1, widths D that differ, or a pair that is left out of a user that is not there.
    """
    if k < 1:
        raise ValueError(f"k is {k}; use 1 or more")
    if users.shape[1] != items.shape[1]:
        raise ValueError(
            f"users have {users.shape[1]} dimensions and items {items.shape[1]}: give vectors of one space"
        )
    if without is None:
        without = (torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
    unknown = without[0][(without[0] < 0) | (without[0] >= len(users))]
    if len(unknown):
        raise ValueError(f"without has user {int(unknown[0])}; use a row of the {len(users)} users")
    if users.device.type == "cpu" and users.dtype == items.dtype == torch.float32:
        return Nearest(*nearest_rows(users, items, k, *without))
    size = max(1, _SCORES // (_ITEMS + k))
    parts = [
        _nearest_of_some(users[start : start + size], items, min(k, len(items)), (without[0] - start, without[1]))
        for start in range(0, max(1, len(users)), size)
    ]
    return Nearest(*(torch.cat(each) for each in zip(*parts, strict=True)))


def _nearest_of_some(
    users: Tensor,  # float [u, D]
    items: Tensor,  # float [N, D]
    k: int,
    without: tuple[Tensor, Tensor],  # int64 [P] each; others' pairs may be among them
) -> Nearest:
    scores = users.new_full((len(users), k), _NOTHING)
    rows = torch.full_like(scores, -1, dtype=torch.int64)
    for begin in range(0, len(items), _ITEMS):
        here = users @ items[begin : begin + _ITEMS].T  # [u, n]
        user, item = without[0], without[1] - begin
        inside = (user >= 0) & (user < here.shape[0]) & (item >= 0) & (item < here.shape[1])
        here[user[inside], item[inside]] = _NOTHING
        numbers = torch.arange(begin, begin + here.shape[1], device=rows.device).expand_as(here)
        scores, place = torch.cat([scores, here], dim=1).topk(k, dim=1)
        rows = torch.cat([rows, numbers], dim=1).gather(1, place)
    return Nearest(rows.masked_fill(scores == _NOTHING, -1), scores)


def recall_at_k(
    retrieved: Tensor,  # int64 [U, K], best first; -1: nothing at this place
    user_rows: Tensor,  # int64 [P], rows of `retrieved`
    items: Tensor,  # int64 [P], in the terms of `retrieved`; -1: can not be retrieved
    k: Sequence[int],
) -> dict[int, float]:
    """Mean over users with positives of the share of a user's positives among the first k retrieved.

    Positives are the pairs (user_rows[i], items[i]) and should be distinct. A user with more than k positives cannot
    reach 1. A k beyond K counts what there is.

    Returns:
        k -> recall; NaN without positives.
    """
    return mean_recall(user_rows, found_at(retrieved, user_rows, items), k)


def found_at(
    retrieved: Tensor,  # int64 [U, K], best first; -1: nothing at this place
    user_rows: Tensor,  # int64 [P], rows of `retrieved`
    items: Tensor,  # int64 [P], in the terms of `retrieved`; -1: can not be retrieved
) -> Tensor:  # int64 [P]
    """The place, from 0, at which each item was retrieved for its user; one beyond any cut-off where it was not."""
    places = torch.full((len(items),), np.iinfo(np.int64).max)
    # chunks bound the [P, K] comparison
    for start in range(0, len(items), 65_536):
        part = slice(start, start + 65_536)
        wanted = items[part, None]  # [p, 1]
        hit = (retrieved[user_rows[part]] == wanted) & (wanted >= 0)  # [p, K]
        if hit.shape[1]:
            place = hit.int().argmax(dim=1)
            places[part] = torch.where(hit.any(dim=1), place, places[part])
    return places


def mean_recall(
    users: Tensor,  # int64 [P], 0, 1, ...: whose positive it is
    places: Tensor,  # int64 [P], see `found_at`
    k: Sequence[int],
) -> dict[int, float]:
    """k -> mean over the users of the share of their positives at a place before k; NaN without positives."""
    return {cut: float(recall_by_user(users, places, cut).mean()) for cut in k}


def recall_by_user(
    users: Tensor,  # int64 [P]
    places: Tensor,  # int64 [P]
    cut: int,
) -> Tensor:  # float64 [<= U], of users with a positive
    """The share of each user's positives at a place before `cut`; arguments as of `mean_recall`."""
    positives = torch.bincount(users)
    has_any = positives > 0
    hits = torch.bincount(users, weights=(places < cut).double(), minlength=len(positives))
    return hits[has_any] / positives[has_any]
