"""How good ranked lists are, by the places at which they hold what was wanted; recall is beside the search, in
`recsys.evaluate.nearest`."""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.evaluate.nearest import recall_by_user


def ndcg_by_list(
    lists: Tensor,  # int64 [P], 0, 1, ...: the list that each positive was wanted from
    places: Tensor,  # int64 [P], from 0, see `recsys.evaluate.nearest.found_at`
    cut: int,
) -> Tensor:  # float64 [<= L], of lists with a positive
    """Normalised discounted cumulative gain of each list's first `cut` places, with gains of 0 and 1.

    A positive at place p counts 1 / log2(p + 2); the sum is divided by what the best order of the list's positives
    would have (Järvelin and Kekäläinen 2002). A positive that was never retrieved lowers it as one beyond the cut does.
    """
    positives = torch.bincount(lists)
    discounts = 1 / torch.arange(2, cut + 2, dtype=torch.float64).log2()
    gains = torch.cat([discounts, torch.zeros(1)])[places.clamp(max=cut)]
    ideal = torch.cat([torch.zeros(1), discounts.cumsum(0)])[positives.clamp(max=cut)]
    return (torch.bincount(lists, gains, minlength=len(positives)) / ideal)[positives > 0]


def hit_by_list(
    lists: Tensor,  # int64 [P]
    places: Tensor,  # int64 [P]
    cut: int,
) -> Tensor:  # float64 [<= L], of lists with a positive
    """Whether any of a list's positives is among its first `cut` places; arguments as of `ndcg_by_list`."""
    return (recall_by_user(lists, places, cut) > 0).double()


def best_places(
    retrieved: Tensor,  # int64 [U, K], rows of items, best first; -1: nothing at this place
    items: int,
) -> Tensor:  # int64 [items]
    """The best place, from 0, at which anybody got each item; K where nobody did."""
    width = retrieved.shape[1]
    best, got = torch.full((items,), width), retrieved >= 0
    columns = torch.arange(width).expand(len(retrieved), -1)
    return best.scatter_reduce_(0, retrieved[got], columns[got], "amin")
