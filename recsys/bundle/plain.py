"""A ranker's batches and tables as plain tensors, which `torch.export` can trace.

TorchRec's collections take a KeyedJaggedTensor, whose layout is known at run time alone. In a program every key has
values and offsets of its own, and each collection is replaced by one that looks up those.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar, cast

import torch.nn.functional as F
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

M = TypeVar("M", bound=nn.Module)


class FlatSparse:
    """What a ranker asks of `Batch.sparse`: key -> its values."""

    def __init__(self, rows: dict[str, Tensor], offsets: dict[str, Tensor]) -> None:
        self.rows = rows
        self.offsets = offsets

    def __getitem__(self, key: str) -> JaggedTensor:
        """Values and offsets of a key."""
        return JaggedTensor(self.rows[key], offsets=self.offsets[key])


class PlainBatch(NamedTuple):
    """What a ranker asks of a `Batch`."""

    sparse: FlatSparse
    dense: dict[str, Tensor]
    vectors: Tensor  # float32 [B, V]
    found: Tensor  # bool [B, P]
    feed: Tensor  # float32 [B, P, 2]
    user_ids: Tensor  # [B, ...]: how many events there are
    longest: None = None


def with_plain_tables(model: M) -> M:
    """The model, its collections of tables replaced in place; the weights stay where they are."""
    for name, child in list(model.named_children()):
        if isinstance(child, EmbeddingBagCollection):
            setattr(model, name, _PlainBags(child))
        elif isinstance(child, EmbeddingCollection):
            setattr(model, name, _PlainElements(child))
        else:
            with_plain_tables(child)
    return model


class _PlainBags(nn.Module):
    """Mean-pooled tables."""

    def __init__(self, bags: EmbeddingBagCollection) -> None:
        super().__init__()
        self.tables, self.table_of = _tables(bags.embedding_bag_configs(), bags.embedding_bags)

    def forward(self, sparse: FlatSparse) -> KeyedTensor:
        pooled = [
            F.embedding_bag(
                sparse.rows[name], self.tables[table], sparse.offsets[name], mode="mean", include_last_offset=True
            )
            for name, table in self.table_of.items()
        ]
        return KeyedTensor.from_tensor_list(list(self.table_of), pooled)


class _PlainElements(nn.Module):
    """Tables that are read element by element."""

    def __init__(self, elements: EmbeddingCollection) -> None:
        super().__init__()
        self.tables, self.table_of = _tables(elements.embedding_configs(), elements.embeddings)

    def forward(self, sparse: FlatSparse) -> dict[str, JaggedTensor]:
        return {
            name: JaggedTensor(F.embedding(sparse.rows[name], self.tables[table]), offsets=sparse.offsets[name])
            for name, table in self.table_of.items()
        }


def _tables(configs: Any, modules: nn.ModuleDict) -> tuple[nn.ParameterDict, dict[str, str]]:
    """The weights by table, and feature -> its table, in the collection's order."""
    tables, table_of = nn.ParameterDict(), dict[str, str]()
    for config in configs:
        tables[config.name] = nn.Parameter(cast(Tensor, modules[config.name].weight).detach())
        table_of |= dict.fromkeys(config.feature_names, config.name)
    return tables, table_of
