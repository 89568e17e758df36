"""log Q of items, in memory that does not grow with the catalogue: what a sampled softmax is corrected by.

The most frequent items are there with their exact counts, the others in a count-min sketch (Cormode & Muthukrishnan
2005): DEPTH hash functions give an item a cell each, and its frequency is the least of what these hold. Streaming
estimates (Yi et al. 2019, algorithm 2) use such cells too. Here the counts are complete before the first step, so a
cell holds the greatest count of its items, not their sum: an item that is the greatest in any of its cells is exact,
and the rest are taken for as frequent as what hides them, never for less frequent than they are. What builds it is in
`recsys.positives`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

DEPTH = 4


class ItemFrequencies(nn.Module):
    """log Q: log-probability of an item under the training positives' counts.

    The counts come from the training files and are the same after a restart, so they are no part of a checkpoint.
    """

    ids: Tensor  # int64 [N], sorted
    log_probability: Tensor  # float32 [N]
    tail: Tensor  # float16 [DEPTH, W], -inf where a cell is empty; W is 0 where the N are all
    least: Tensor  # float32 [], of an item that was seen once where there is a tail, else the smallest of the N

    def __init__(self, ids: Tensor, log_probability: Tensor, tail: Tensor | None = None, least: float = 0.0) -> None:
        """See `from_counts`, and `recsys.positives` for what has a tail."""
        super().__init__()
        if tail is None:
            tail, least = torch.empty(DEPTH, 0, dtype=torch.float16), float(log_probability.min())
        self.register_buffer("ids", ids, persistent=False)
        self.register_buffer("log_probability", log_probability, persistent=False)
        self.register_buffer("tail", tail, persistent=False)
        self.register_buffer("least", torch.tensor(least), persistent=False)

    @staticmethod
    def from_counts(ids: Tensor, counts: Tensor) -> ItemFrequencies:
        """Build from item ids (int64 [N], in any order, each once) and how often each was seen ([N], at least 1).

        Raises:
            ValueError: no items, different lengths, a repeated id, or a count below 1.
        """
        if ids.shape != counts.shape or ids.dim() != 1 or not len(ids):
            raise ValueError(
                f"ids and counts are {list(ids.shape)} and {list(counts.shape)}; give two of [N] with N of 1 or more"
            )
        ids, order = ids.long().sort()
        if bool((ids[1:] == ids[:-1]).any()):
            raise ValueError("ids repeat: add up the counts of each item first")
        if int(counts.min()) < 1:
            raise ValueError(f"the smallest count is {int(counts.min())}; leave out items that were not seen")
        counts = counts.double()[order]
        return ItemFrequencies(ids, (counts / counts.sum()).log().float())

    def forward(self, item_ids: Tensor, unseen: float | None = None) -> Tensor:  # int64 [B] -> float32 [B]
        """Each item's; `unseen` of one that was not seen, by default the smallest of those that were."""
        rest = self.least if unseen is None else unseen
        if self.tail.shape[1]:
            places = cells_of(item_ids, self.tail.shape[1])
            hidden = self.tail.gather(1, places).amin(0).float()
            rest = torch.where(torch.isfinite(hidden), hidden, rest)
        if not len(self.ids):
            return torch.as_tensor(rest).expand(item_ids.shape)
        at = torch.searchsorted(self.ids, item_ids).clamp(max=len(self.ids) - 1)
        return torch.where(self.ids[at] == item_ids, self.log_probability[at], rest)


def cells_of(ids: Tensor, width: int) -> Tensor:  # int64 [B] -> int64 [DEPTH, B]
    """Where items are in each row of cells, of `width`, a power of two: the halves of splitmix64, combined (Kirsch &
    Mitzenmacher 2006)."""
    x = ids + -0x61C8864680B583EB
    x = (x ^ _shifted(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shifted(x, 27)) * -0x6B2FB644ECCEEE15
    x = x ^ _shifted(x, 31)
    first, step = x & (2**32 - 1), _shifted(x, 32) | 1
    rows = torch.arange(DEPTH, device=ids.device).unsqueeze(1)
    return (first + rows * step) & (width - 1)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """To the right, as an unsigned number."""
    return (x >> bits) & (2 ** (64 - bits) - 1)
