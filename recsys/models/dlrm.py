"""DLRM, the downstream ranker, with or without vectors from the store (arXiv 1906.00091; 2509.04337).

The part that reads the store's vectors is built after everything else and meets the rest in one sum, in front of the
top MLP's first activation. So the ranker without vectors is the same network, and under the same torch seed starts
from the same parameters, as the ranker with any series; what the vectors add to the sum starts at zero, so that it
starts as the same function too: an ablation compares what the vectors add and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedTensor

from recsys.config import NetworkConfig
from recsys.data.batch import Batch
from recsys.data.schema import OWNERS, Schema
from recsys.models.losses import TaskOutput, supervised_loss
from recsys.models.tokens import bag_collection, checked_dense, dense_widths, pooled_tokens
from recsys.models.vocabulary import Vocabulary, table_features

_TABLE_INIT = 1e-2
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


class DLRM(nn.Module):
    """Bottom MLP on dense columns, own tables, pairwise dots, top MLP with an output for each task; logits [B, T].

    Beside the dots, the top MLP sees the embeddings themselves (ours: a stronger baseline). Of each series it sees the
    projected vector, its dots with everything else, whether it was found, how old and how well fed it is; of a user
    and an item series of one space also the elementwise product of the raw vectors and its sum, their inner product
    (ours). Its tables are on "meta" until `recsys.train.tables.draw_tables` draws them or a checkpoint is loaded.

    Args:
        schema: features of every owner; labels are not used.
        config: widths and dropouts.
        series: what `Batch.vectors`, `found` and `feed` hold, in the order of their columns; all are ignored if empty.
        tasks: T.

    Raises:
        ValueError: no feature, a series twice, or a user and an item series of one space that differ in dimension.
    """

    def __init__(
        self, schema: Schema, config: NetworkConfig, series: Sequence[SeriesSpec] = (), tasks: int = 1
    ) -> None:
        super().__init__()
        names = [x.name for x in series]
        if len(set(names)) != len(names):
            raise ValueError(f"series are {names}; give each once")
        sparse = tuple(x for x in table_features(schema) if x.rows)
        widths = dense_widths(schema.features)
        if not (sparse or widths):
            raise ValueError("the ranker has no features: give the schema at least one, say the item id as kind 'id'")
        self.vocabulary = Vocabulary(schema)
        """Who owns the rows that users and items read by their own id; batches are to pass its `resolve`."""
        self.bags = bag_collection(sparse, config.embedding_dim, init=_TABLE_INIT)
        self.network = RankerNetwork([x.name for x in sparse], widths, config, series, tasks)

    def forward(self, batch: Batch) -> Tensor:
        """Logits, float32 [B, T]."""
        bags = None if self.bags is None else self.bags(batch.sparse)
        return self.network(bags, batch.dense, batch.vectors, batch.found, batch.feed)


class RankerNetwork(nn.Module):
    """Everything of DLRM that is not a table; a leaf of the train pipeline's trace."""

    def __init__(
        self, sparse: list[str], widths: dict[str, int], config: NetworkConfig, series: Sequence[SeriesSpec], tasks: int
    ) -> None:
        super().__init__()
        self.sparse = sparse
        self.widths = {owner: widths[owner] for owner in OWNERS if owner in widths}
        dim, total = config.embedding_dim, sum(self.widths.values())
        self.bottom = nn.Sequential(nn.Linear(total, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim)) if total else None
        fields = len(sparse) + bool(total)
        hidden, *rest = (*config.hidden, tasks)
        self.first = nn.Linear(fields * dim + _pair_count(fields), hidden)
        self.top = _top(hidden, rest, config.dropout)
        self.vectors = VectorFeatures(series, fields, hidden, config) if series else None

    def forward(
        self,
        bags: KeyedTensor | None,
        dense: dict[str, Tensor],
        vectors: Tensor | None,  # float [B, V]
        found: Tensor | None,  # bool [B, S]
        feed: Tensor | None,  # float [B, S, 2]
    ) -> Tensor:  # [B, T]
        pooled = None if bags is None else pooled_tokens(bags, self.sparse)
        return self.score(pooled, dense, vectors, found, feed)

    def score(
        self,
        pooled: Tensor | None,  # [B, F, e]: of the sparse features, in their order
        dense: dict[str, Tensor],
        vectors: Tensor | None,
        found: Tensor | None,
        feed: Tensor | None,
    ) -> Tensor:  # [B, T]
        """`forward` of the rows that the tables gave."""
        fields = self._fields(pooled, dense)
        hidden = self.first(torch.cat((fields.flatten(1), upper_pairs(fields)), dim=1))
        if self.vectors is not None:
            hidden = hidden + self.vectors(fields, vectors, found, feed)
        return self.top(hidden).float()

    def _fields(self, pooled: Tensor | None, dense: dict[str, Tensor]) -> Tensor:  # [B, n, e]
        fields = [] if pooled is None else [pooled]
        if self.bottom is not None:
            columns = [checked_dense(dense, owner, width) for owner, width in self.widths.items()]
            fields.append(self.bottom(torch.asinh(torch.cat(columns, dim=1))).unsqueeze(1))
        return torch.cat(fields, dim=1)


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
        features = count * width + count * fields + _pair_count(count) + count + count * FEED + products
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


class RankerTask(nn.Module):
    """A ranker of all labels of its batches and its loss, the sum of the tasks' masked binary cross-entropies ("bce"):
    `forward(batch) -> (loss, TaskOutput)`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.loss = RankerLoss()

    def forward(self, batch: Batch) -> tuple[Tensor, TaskOutput]:
        """Scalar loss, and what to log."""
        return self.loss(self.model(batch), batch)


class RankerLoss(nn.Module):
    """Logits [B, T] and their batch -> (loss, TaskOutput); a leaf of the train pipeline's trace."""

    def forward(self, logits: Tensor, batch: Batch) -> tuple[Tensor, TaskOutput]:
        if logits.shape != batch.labels.shape:
            raise ValueError(
                f"the ranker has {logits.shape[1]} tasks, batch.labels {batch.labels.shape[1]} columns: "
                "read the events with a schema of the tasks' labels alone"
            )
        loss = supervised_loss(logits, batch.labels, batch.label_mask).sum()
        return loss, TaskOutput({"bce": loss.detach()}, logits.detach().float(), batch.labels, batch.label_mask)


def _pair_count(fields: int) -> int:
    return fields * (fields - 1) // 2


def _top(hidden: int, rest: list[int], dropout: float) -> nn.Sequential:
    """What follows the first layer of the top MLP: activation, dropout, linear, ... down to the logits."""
    layers: list[nn.Module] = []
    for width, wider in zip(rest, (hidden, *rest), strict=False):
        layers += [nn.ReLU(), nn.Dropout(dropout), nn.Linear(wider, width)]
    return nn.Sequential(*layers)


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
