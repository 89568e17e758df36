"""Exact search by inner product, and how much of what was wanted is among the first k found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_USERS = 512
"""That are scored at once, if k is no greater than a block of items."""
_SCORES = _USERS * 4096
"""Of a block, at most, if one user's are no more: they lie in the processor's caches while they are looked through."""
_GROUP = 16
"""Items of a group that is passed over or looked at as one."""
_NOTHING = float("-inf")


class Nearest(NamedTuple):
    """What was found for each user, best first."""

    rows: Tensor  # int64 [U, K], of the items; -1: nothing at this place
    scores: Tensor  # float [U, K]; -inf: nothing at this place


def exact_top_k(
    users: Tensor,  # float [U, D]
    items: Tensor,  # float [N, D]
    k: int,
    chunk: int = 4096,
    *,
    without: tuple[Tensor, Tensor] | None = None,  # int64 [P] each: rows of users, rows of items
) -> Tensor:
    """For each user the rows of the `k` items of greatest inner product: `nearest`, without the scores."""
    return nearest(users, items, k, chunk, without=without).rows


def nearest(
    users: Tensor,  # float [U, D]
    items: Tensor,  # float [N, D]
    k: int,
    chunk: int = 4096,
    *,
    without: tuple[Tensor, Tensor] | None = None,  # int64 [P] each: rows of users, rows of items
) -> Nearest:
    """For each user the `k` items of greatest inner product, best first; ties in any order.

    Some users are scored against `chunk` items at a time, so memory does not grow with U x N. What is no better than a
    user's k-th so far is passed over in blocks, so next to the products little is left to do.

    Args:
        users, items: the vectors.
        k: how many.
        chunk: see above.
        without: pairs that are left out, each user row with an item row that it must not get.

    Returns:
        rows of `items` and their scores, [U, min(k, N)]; -1 and -inf where a user has fewer that are not left out.

    Raises:
        ValueError: k or chunk < 1, or widths D that differ.
    """
    if k < 1 or chunk < 1:
        raise ValueError(f"k is {k} and chunk is {chunk}; use 1 or more")
    if users.shape[1] != items.shape[1]:
        raise ValueError(
            f"users have {users.shape[1]} dimensions and items {items.shape[1]}: give vectors of one space"
        )
    shape, size = (len(users), min(k, len(items))), max(1, _SCORES // max(chunk, k, _SCORES // _USERS))
    result = Nearest(torch.empty(shape, dtype=torch.int64, device=users.device), users.new_empty(shape))
    for start in range(0, len(users), size):
        found = _nearest_of_few(users[start : start + size], items, k, chunk, _shifted(without, start))
        result.rows[start : start + size] = torch.where(found.scores == _NOTHING, -1, found.rows)
        result.scores[start : start + size] = found.scores
    return result


def _nearest_of_few(
    users: Tensor,  # float [u, D]
    items: Tensor,  # float [N, D]
    k: int,
    chunk: int,
    without: tuple[Tensor, Tensor] | None,
) -> Nearest:
    queries, first = users.T.contiguous(), max(chunk, k)
    scores = _leave_out(items[:first] @ queries, without)
    best, rows = scores.T.topk(min(k, len(scores)), dim=1)
    found, pending = Nearest(rows, best), list[_Better]()
    block = scores.new_empty(
        chunk if first < len(items) else 0, len(users)
    )  # memory anew would cost a tenth of a product
    for begin in range(first, len(items), chunk):
        # [items, users]: so the maxima of groups of items, and the products themselves, are taken at full speed
        part = items[begin : begin + chunk]
        scores = _leave_out(torch.mm(part, queries, out=block[: len(part)]), _shifted(without, 0, begin))
        pending.append(_better(scores, found.scores[:, -1], begin))
        if sum(len(each.users) for each in pending) * 2 > best.numel():
            found, pending = _merged(found, pending), []
    return _merged(found, pending) if pending else found


class _Better(NamedTuple):
    """Items that beat a user's k-th."""

    users: Tensor  # int64 [P]
    rows: Tensor  # int64 [P], of all items
    scores: Tensor  # float [P]


def _better(
    scores: Tensor,  # float [n, u], of consecutive items
    bar: Tensor,  # float [u], what is to be beaten
    begin: int,  # row of the first item
) -> _Better:
    """Only the items of groups whose greatest score beats the bar are looked at; a group is every so many-th item."""
    count = len(scores) // _GROUP
    groups = scores[: count * _GROUP].view(_GROUP, count, scores.shape[1])
    group, user = (groups.amax(dim=0) > bar).nonzero(as_tuple=True)
    members = groups[:, group, user]  # [_GROUP, G]
    member, place = (members > bar[user]).nonzero(as_tuple=True)
    rest, rest_user = (scores[count * _GROUP :] > bar).nonzero(as_tuple=True)
    rows = torch.cat([member * count + group[place], rest + count * _GROUP]) + begin
    values = torch.cat([members[member, place], scores[count * _GROUP :][rest, rest_user]])
    return _Better(torch.cat([user[place], rest_user]), rows, values)


def _merged(found: Nearest, pending: Sequence[_Better]) -> Nearest:
    """The best of what was found and what is better than its last."""
    users, rows, scores = (torch.cat(parts) for parts in zip(*pending, strict=True))
    order = users.argsort()
    users, rows, scores = users[order], rows[order], scores[order]
    (many, k), counts = found.rows.shape, torch.bincount(users, minlength=len(found.rows))
    width = k + int(counts.max())
    place = k + torch.arange(len(users), device=users.device) - (counts.cumsum(0) - counts)[users]
    every = Nearest(rows.new_full((many, width), -1), scores.new_full((many, width), _NOTHING))
    every.rows[:, :k], every.scores[:, :k] = found
    every.rows[users, place], every.scores[users, place] = rows, scores
    best, order = every.scores.topk(k, dim=1)
    return Nearest(every.rows.gather(1, order), best)


def _shifted(pairs: tuple[Tensor, Tensor] | None, user: int, item: int = 0) -> tuple[Tensor, Tensor] | None:
    """Pairs of rows of users and items, counted from these on."""
    return None if pairs is None else (pairs[0] - user, pairs[1] - item)


def _leave_out(
    scores: Tensor,  # float [n, u], changed
    without: tuple[Tensor, Tensor] | None,  # int64 [P] each: rows of users, rows of items; others may be among them
) -> Tensor:
    if without is not None:
        column, row = without
        here = (row >= 0) & (row < scores.shape[0]) & (column >= 0) & (column < scores.shape[1])
        scores[row[here], column[here]] = _NOTHING
    return scores


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
