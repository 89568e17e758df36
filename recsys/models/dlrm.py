"""DLRM (arXiv 1906.00091), the default ranker: bottom MLP, pooled tables, pairwise dots, a top MLP a task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedTensor

from recsys.config import NetworkConfig
from recsys.data.batch import Batch
from recsys.data.schema import OWNERS, Schema
from recsys.models.learned import learned_tables
from recsys.models.ranker import Ranker, RankerBody, TowerHead
from recsys.models.series import SeriesSpec, pair_count, upper_pairs
from recsys.models.tokens import bag_collection, checked_dense, dense_widths, pooled_tokens
from recsys.models.vocabulary import table_features

_TABLE_INIT = 1e-2


class DLRM(Ranker):
    """Bottom MLP on dense columns, own tables, pairwise dots, top MLP.

    Beside the dots, the top MLP sees the embeddings themselves (ours: a stronger baseline). Of each series it sees what
    `recsys.models.series.VectorFeatures` says.

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
        super().__init__(schema, series)
        sparse = tuple(x for x in table_features(schema) if x.rows)
        self.bags = bag_collection(sparse, config.embedding_dim, init=_TABLE_INIT)
        self.network = DLRMNetwork([x.name for x in sparse], dense_widths(schema.features), config, series, tasks)
        self.learned = learned_tables(schema, series, config)

    def forward(self, batch: Batch) -> Tensor:  # [B, T]
        bags = None if self.bags is None else self.bags(batch.sparse)
        return self.network(bags, batch.dense, *self.stored(batch))

    def outputs(self) -> list[nn.Linear]:
        return self.network.body.outputs()


class DLRMNetwork(nn.Module):
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
        head = TowerHead(config, tasks)
        trunk = _PairwiseDots(fields, dim, head.width)
        self.body = RankerBody(trunk, head, fields=fields, config=config, series=series)

    def forward(
        self,
        bags: KeyedTensor | None,
        dense: dict[str, Tensor],
        vectors: Tensor | None,  # float [B, V]
        found: Tensor | None,  # bool [B, P]
        feed: Tensor | None,  # float [B, P, 2]
    ) -> Tensor:  # [B, T]
        return self.body(self._fields(bags, dense), vectors, found, feed)

    def _fields(self, bags: KeyedTensor | None, dense: dict[str, Tensor]) -> Tensor:  # [B, n, e]
        fields = [] if bags is None else [pooled_tokens(bags, self.sparse)]
        if self.bottom is not None:
            columns = [checked_dense(dense, owner, width) for owner, width in self.widths.items()]
            fields.append(self.bottom(torch.asinh(torch.cat(columns, dim=1))).unsqueeze(1))
        return torch.cat(fields, dim=1)


class _PairwiseDots(nn.Module):
    """The fields themselves and the dots of every two, to the width of the head."""

    def __init__(self, fields: int, dim: int, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(fields * dim + pair_count(fields), width)

    def forward(self, fields: Tensor) -> Tensor:  # [B, n, e] -> [B, H]
        return self.first(torch.cat((fields.flatten(1), upper_pairs(fields)), dim=1))
