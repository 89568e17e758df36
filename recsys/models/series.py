"""What a ranker makes of the store's vectors (arXiv 2509.04337, where they join at the concatenation layer)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recsys.config import NetworkConfig
from recsys.models.history import HistoryAttention

FEED = 2
"""Figures of `Batch.feed` for each place."""


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
    versions: int = 1
    """Places it has in a batch: an entity's vectors in so many versions, newest first, which the ranker attends to."""
    table: str = ""
    """Whether the ranker learns a table in its place (`scratch`) or on top of it (`fine_tuned`, `attention`), see
    `recsys.models.learned`; empty: the vectors stay as the store has them."""
    relations: int = 0
    """Of `attention`: relations of the graph."""

    def __post_init__(self) -> None:
        if self.owner not in ("user", "item"):
            raise ValueError(f"series {self.name!r}: owner is {self.owner!r}; use user or item")
        if self.dim < 1:
            raise ValueError(f"series {self.name!r}: dim is {self.dim}; use 1 or more")
        if self.versions < 1:
            raise ValueError(f"series {self.name!r}: versions is {self.versions}; use 1 or more")


class VectorFeatures(nn.Module):
    """The store's vectors -> their share [B, H] of the top MLP's first layer.

    A series of several places is pooled to one vector first. `config.join` says what of the vectors is concatenated as
    it is; beside it stand their dots with each other and with the fields, and the products of those that share a space.
    """

    def __init__(self, series: Sequence[SeriesSpec], fields: int, hidden: int, config: NetworkConfig) -> None:
        super().__init__()
        self.dims = [x.dim for x in series]
        self.places = [x.versions for x in series]
        self.couples = couples(series)
        self.entity_dropout = config.entity_dropout
        width, count, total = config.projection_dim, len(series), sum(self.dims)
        same = config.embedding_dim == width
        self.widen = nn.Identity() if same else nn.Linear(config.embedding_dim, width, bias=False)
        self.project = nn.ModuleList(nn.Linear(x.dim, width) for x in series)
        joined = {"each": count * width, "raw": total, "together": config.join_dim}[config.join]
        products = sum(self.dims[user] + 1 for user, _ in self.couples)
        features = joined + count * fields + pair_count(count) + count + count * FEED + products
        self.dropout = nn.Dropout(config.vector_dropout)
        self.first = nn.Linear(features, hidden, bias=False)
        nn.init.zeros_(self.first.weight)
        self.raw = config.join == "raw"
        self.together = nn.Linear(total, config.join_dim) if config.join == "together" else None
        # Last, so that a history that is attended to starts with the parameters of its mean.
        asking = fields * config.embedding_dim + sum(x.dim for x in series if x.versions == 1)
        self.pools = nn.ModuleList(HistoryAttention(x.dim, asking, width) for x in series if x.versions > 1)

    def forward(
        self,
        fields: Tensor,  # [B, n, e]
        vectors: Tensor | None,  # float [B, V]
        found: Tensor | None,  # bool [B, P]
        feed: Tensor | None,  # float [B, P, 2]
    ) -> Tensor:  # [B, H]
        parts, found, feed = self._pooled(fields, *self._split(vectors, found, feed))
        projected = torch.stack([layer(x) for layer, x in zip(self.project, parts, strict=True)], dim=1)  # [B, S, w]
        dots = torch.bmm(projected, self.widen(fields).transpose(1, 2)).flatten(1)
        known = [found.to(projected.dtype), torch.log1p(feed).flatten(1)]
        features = [self._joined(parts, projected), upper_pairs(projected), dots, *known]
        for user, item in self.couples:
            product = parts[user] * parts[item]
            features += [product, product.sum(1, keepdim=True)]
        return self.first(self.dropout(torch.cat(features, dim=1)))

    def _joined(self, parts: Sequence[Tensor], projected: Tensor) -> Tensor:  # S of [B, D], [B, S, w] -> [B, J]
        if self.together is not None:
            return self.together(torch.cat(tuple(parts), dim=1))
        return torch.cat(tuple(parts), dim=1) if self.raw else projected.flatten(1)

    def _pooled(
        self,
        fields: Tensor,  # [B, n, e]
        parts: Sequence[Tensor],  # S of [B, D], or [B, k, D] where there are k places
        found: Tensor,  # bool [B, P]
        feed: Tensor,  # float [B, P, 2]
    ) -> tuple[Sequence[Tensor], Tensor, Tensor]:  # S of [B, D], bool [B, S], float [B, S, 2]
        """Every series with one place. Who is asked about is what the ranker knows of the row, and the newest vectors
        of both of its entities."""
        if not self.pools:
            return parts, found, feed
        asking = torch.cat([fields.flatten(1), *(x for x in parts if x.dim() == 2)], dim=1)
        pools, places = iter(self.pools), zip(found.split(self.places, 1), feed.split(self.places, 1), strict=True)
        pooled = [
            (x, *place) if x.dim() == 2 else next(pools)(asking, x, *place)
            for x, place in zip(parts, places, strict=True)
        ]
        parts, founds, feeds = zip(*pooled, strict=True)
        return parts, torch.cat(founds, dim=1), torch.cat(feeds, dim=1)

    def _split(
        self, vectors: Tensor | None, found: Tensor | None, feed: Tensor | None
    ) -> tuple[Sequence[Tensor], Tensor, Tensor]:
        """The series' vectors, those of several places [B, k, D], with found and feed: zeros where nothing is found."""
        widths = [dim * places for dim, places in zip(self.dims, self.places, strict=True)]
        total, count = sum(widths), sum(self.places)
        shapes = [None if x is None else list(x.shape[1:]) for x in (vectors, found, feed)]
        if vectors is None or found is None or feed is None or shapes != [[total], [count], [count, FEED]]:
            several = f" in {self.places} places" if self.pools else ""
            raise ValueError(
                f"rows of batch.vectors, found and feed are {shapes[0]}, {shapes[1]} and {shapes[2]}, the ranker reads "
                f"{len(self.dims)} series of dimensions {self.dims}{several}: join those series, in that order, to the "
                "batch"
            )
        if self.training and self.entity_dropout:
            found = found & ~self._lost(found)
        parts = []
        for x, keep, places in zip(vectors.split(widths, 1), found.split(self.places, 1), self.places, strict=True):
            several = x.unflatten(1, (places, -1)) * keep.unsqueeze(2).to(x.dtype)  # [B, k, D]
            parts.append(several if places > 1 else several.squeeze(1))
        return parts, found, feed * found.unsqueeze(2)

    def _lost(self, found: Tensor) -> Tensor:  # bool [B, P], what a row loses
        """A row loses one series, drawn evenly, with probability entity_dropout."""
        count = len(self.dims)
        draw = torch.rand(len(found), device=found.device) * (count / self.entity_dropout)
        series = torch.arange(count, device=found.device).repeat_interleave(
            torch.tensor(self.places, device=found.device), output_size=found.shape[1]
        )
        return draw.long().unsqueeze(1) == series


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


def couples(series: Sequence[SeriesSpec]) -> list[tuple[int, int]]:
    """Indices of every user series and item series that share a space."""
    pairs = []
    for i, user in enumerate(series):
        for j, item in enumerate(series):
            if user.owner != "user" or item.owner != "item" or user.space != item.space:
                continue
            if user.dim != item.dim:
                raise ValueError(
                    f"series {user.name!r} and {item.name!r} share space {user.space!r} but have dimensions "
                    f"{user.dim} and {item.dim}: publish both from one upstream"
                )
            pairs.append((i, j))
    return pairs
