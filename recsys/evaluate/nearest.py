"""Exact search by inner product, and how much of what was wanted is among the first k found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def exact_top_k(
    users: Tensor,  # float [U, D]
    items: Tensor,  # float [N, D]
    k: int,
    chunk: int = 4096,
    *,
    without: tuple[Tensor, Tensor] | None = None,  # int64 [P] each: rows of users, rows of items
) -> Tensor:
    """For each user the rows of the `k` items of greatest inner product, best first; ties in any order.

    At most `chunk` users are scored against `chunk` items at a time, so memory does not grow with U x N.

    Args:
        users, items: the vectors.
        k: how many.
        chunk: see above.
        without: pairs that are left out, each user row with an item row that it must not get.

    Returns:
        int64 [U, min(k, N)], rows of `items`; -1 where a user has fewer that are not left out.

    Raises:
        ValueError: k or chunk < 1, or widths D that differ.
    """
    if k < 1 or chunk < 1:
        raise ValueError(f"k is {k} and chunk is {chunk}; use 1 or more")
    if users.shape[1] != items.shape[1]:
        raise ValueError(
            f"users have {users.shape[1]} dimensions and items {items.shape[1]}: give vectors of one space"
        )
    result = torch.empty(len(users), min(k, len(items)), dtype=torch.int64, device=users.device)
    for start in range(0, len(users), chunk):
        block = users[start : start + chunk]
        best = block.new_empty(len(block), 0)
        rows = result.new_empty(len(block), 0)
        for first in range(0, len(items), chunk):
            scores = block @ items[first : first + chunk].T
            if without is not None:
                row, column = without[0] - start, without[1] - first
                here = (row >= 0) & (row < scores.shape[0]) & (column >= 0) & (column < scores.shape[1])
                scores[row[here], column[here]] = float("-inf")
            scores, columns = scores.topk(min(k, scores.shape[1]), dim=1)
            best, rows = torch.cat([best, scores], dim=1), torch.cat([rows, columns + first], dim=1)
            best, order = best.topk(min(k, best.shape[1]), dim=1)
            rows = rows.gather(1, order)
        result[start : start + chunk] = torch.where(best == float("-inf"), -1, rows)
    return result


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
