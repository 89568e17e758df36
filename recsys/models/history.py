"""An entity's vectors in several versions -> one, by attention (LoopFM, arXiv 2605.29280; which form is ours)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HistoryAttention(nn.Module):
    """Of the versions that hold the entity the mean, weighted by `softmax(q . (LN(W v) + u log(1 + days)) / sqrt(w))`.

    `q` is a linear map of what is asked about, v a version's vector and days its age, so that a weight falls as a power
    of the age. `q` is zero at first: it starts as the plain mean. Values are the vectors themselves, so what comes out
    lies in their space.

    Args:
        dim: D.
        asking: A.
        width: w, of queries and keys.
    """

    def __init__(self, dim: int, asking: int, width: int) -> None:
        super().__init__()
        self.key = nn.Linear(dim, width, bias=False)
        self.age = nn.Linear(1, width, bias=False)
        self.query = nn.Linear(asking, width)
        nn.init.zeros_(self.query.weight)
        nn.init.zeros_(self.query.bias)

    def forward(
        self,
        asking: Tensor,  # [B, A]
        vectors: Tensor,  # [B, k, D], zeros where nothing is found
        found: Tensor,  # bool [B, k]
        feed: Tensor,  # float [B, k, 2], the first is the age in days; zeros where nothing is found
    ) -> tuple[Tensor, Tensor, Tensor]:  # [B, D], bool [B, 1], float [B, 1, 2]
        """The vector, zeros where no version holds the entity; whether one does; and as feed the versions' mean age in
        days and their number, as of a plain mean."""
        keys = self.key(vectors)
        keys = F.layer_norm(keys, keys.shape[-1:]) + self.age(torch.log1p(feed[:, :, :1]).to(keys.dtype))
        scores = torch.bmm(keys, self.query(asking).unsqueeze(2)).squeeze(2).float() / math.sqrt(keys.shape[2])
        # Not -inf: of a row without any version no gradient would be finite.
        weights = scores.masked_fill(~found, torch.finfo(scores.dtype).min).softmax(dim=1)
        pooled = torch.bmm(weights.to(vectors.dtype).unsqueeze(1), vectors).squeeze(1)
        count = found.sum(1, keepdim=True)
        days = feed[:, :, 0].sum(1, keepdim=True) / count.clamp(min=1)
        return pooled, count > 0, torch.stack([days, count.to(days.dtype)], dim=2)
