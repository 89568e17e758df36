"""What a ranker makes of the store's vectors (arXiv 2509.04337, where they join at the concatenation layer)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recsys.config import NetworkConfig

FEED = 2
"""Figures of `Batch.feed` for each series."""


@dataclass(frozen=True, kw_only=True)
class SeriesSpec:
    """One series of the store that a ranker reads."""

    name: str
    """Name of the series, say `user_ctr`."""
    owner: str
    """`user` or `item`: whose vectors."""
    space: str
    """Vectors of one space may be multiplied, say `ctr-1`."""
    dim: int
    """Dimension of the vectors."""

    def __post_init__(self) -> None:
        if self.owner not in ("user", "item"):
            raise ValueError(f"series {self.name!r}: owner is {self.owner!r}; use user or item")
        if self.dim < 1:
            raise ValueError(f"series {self.name!r}: dim is {self.dim}; use 1 or more")


class VectorFeatures(nn.Module):
    """The store's vectors -> their share [B, H] of the top MLP's first layer."""

    def __init__(self, series: Sequence[SeriesSpec], fields: int, hidden: int, config: NetworkConfig) -> None:
        super().__init__()
        self.dims = [x.dim for x in series]
        self.couples = _couples(series)
        self.entity_dropout = config.entity_dropout
        width, count = config.projection_dim, len(series)
        same = config.embedding_dim == width
        self.widen = nn.Identity() if same else nn.Linear(config.embedding_dim, width, bias=False)
        self.project = nn.ModuleList(nn.Linear(x.dim, width) for x in series)
        products = sum(self.dims[user] + 1 for user, _ in self.couples)
        features = count * width + count * fields + pair_count(count) + count + count * FEED + products
        self.dropout = nn.Dropout(config.vector_dropout)
        self.first = nn.Linear(features, hidden, bias=False)
        nn.init.zeros_(self.first.weight)

    def forward(
        self,
        fields: Tensor,  # [B, n, e]
        vectors: Tensor | None,  # float [B, V]
        found: Tensor | None,  # bool [B, S]
        feed: Tensor | None,  # float [B, S, 2]
    ) -> Tensor:  # [B, H]
        parts, found, feed = self._split(vectors, found, feed)
        projected = torch.stack([layer(x) for layer, x in zip(self.project, parts, strict=True)], dim=1)  # [B, S, w]
        dots = torch.bmm(projected, self.widen(fields).transpose(1, 2)).flatten(1)
        known = [found.to(projected.dtype), torch.log1p(feed).flatten(1)]
        features = [projected.flatten(1), upper_pairs(projected), dots, *known]
        for user, item in self.couples:
            product = parts[user] * parts[item]
            features += [product, product.sum(1, keepdim=True)]
        return self.first(self.dropout(torch.cat(features, dim=1)))

    def _split(
        self, vectors: Tensor | None, found: Tensor | None, feed: Tensor | None
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        total, count = sum(self.dims), len(self.dims)
        shapes = [None if x is None else list(x.shape[1:]) for x in (vectors, found, feed)]
        if vectors is None or found is None or feed is None or shapes != [[total], [count], [count, FEED]]:
            raise ValueError(
                f"rows of batch.vectors, found and feed are {shapes[0]}, {shapes[1]} and {shapes[2]}, the ranker reads "
                f"{count} series of dimensions {self.dims}: join those series, in that order, to the batch"
            )
        if self.training and self.entity_dropout:
            # A row loses one series, drawn evenly, with probability entity_dropout.
            draw = torch.rand(len(found), device=found.device) * (count / self.entity_dropout)
            lost = draw.long().unsqueeze(1) == torch.arange(count, device=found.device)
            found = found & ~lost
        kept = found.to(vectors.dtype).unbind(1)
        parts = vectors.split(self.dims, dim=1)
        parts = tuple(x * keep.unsqueeze(1) for x, keep in zip(parts, kept, strict=True))
        return parts, found, feed * found.unsqueeze(2)


def upper_pairs(x: Tensor) -> Tensor:  # [B, n, w] -> [B, n (n - 1) / 2]
    """Dot products of every two of the n fields of a row."""
    fields = x.shape[1]
    rows, columns = torch.triu_indices(fields, fields, 1, device=x.device)
    dots = torch.bmm(x, x.transpose(1, 2)).flatten(1)
    # gather, not index_select: its backward pass is the cheaper one on CPUs.
    return dots.gather(1, (rows * fields + columns).expand(x.shape[0], -1))  # no len: torch.export


def pair_count(fields: int) -> int:
    """Pairs of so many fields."""
    return fields * (fields - 1) // 2


def _couples(series: Sequence[SeriesSpec]) -> list[tuple[int, int]]:
    """Indices of every user series and item series that share a space."""
    couples = []
    for i, user in enumerate(series):
        for j, item in enumerate(series):
            if user.owner != "user" or item.owner != "item" or user.space != item.space:
                continue
            if user.dim != item.dim:
                raise ValueError(
                    f"series {user.name!r} and {item.name!r} share space {user.space!r} but have dimensions "
                    f"{user.dim} and {item.dim}: publish both from one upstream"
                )
            couples.append((i, j))
    return couples
