"""The features of one tower -> tokens: tables, sequences and dense columns, all of width `config.token_dim`.

A tower's tables lie in one EmbeddingBagCollection and one EmbeddingCollection, called straight from `forward` with
`batch.sparse`: TorchRec's train pipeline traces that far to start the exchange of ids a batch ahead.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from recsys.config import ModelConfig
from recsys.data.batch import Batch
from recsys.data.schema import Feature, Schema
from recsys.models.jagged import JaggedLayout
from recsys.models.sequence import SEQUENCE_TOKENS, SequenceEncoder
from recsys.models.vocabulary import table_features

C = TypeVar("C", bound=EmbeddingBagCollection | EmbeddingCollection)

META = torch.device("meta")
UNBOUNDED = 16
"""Ids that a list is taken to have where its schema sets no `max_length`."""
TABLE_INIT = 0.05
"""Tables start uniform in +-TABLE_INIT (our choice)."""


class OwnerTokens(nn.Module):
    """The features of some owners -> tokens [B, m, d] (m is `count`), of items [B + N, m, d]: a batch's negatives have
    item features alone.

    One token per `id` or `ids` feature, two per `sequence`, one per owner with `dense` or `vector` columns. An `id` or
    `ids` feature that shares a table with a sequence is read from that table and averaged.
    """

    def __init__(self, schema: Schema, owners: tuple[str, ...], config: ModelConfig) -> None:
        super().__init__()
        features = table_features(schema, owners)
        elementwise = {(x.owner, x.table_name) for x in features if x.kind == "sequence"}
        single = tuple(x for x in features if x.rows and (x.owner, x.table_name) in elementwise)
        bagged = tuple(x for x in features if x.rows and x not in single)
        self.bags = bag_collection(bagged, config.token_dim)
        self.sequences = _element_collection(single, config.token_dim)
        self.assemble = _Assemble(bagged, single, dense_widths(features), config)
        self.count = self.assemble.count
        self.of_items = owners == ("item",)

    def forward(self, batch: Batch) -> Tensor:  # [B, m, d]
        bags = None if self.bags is None else self.bags(batch.sparse)
        sequences = None if self.sequences is None else self.sequences(batch.sparse)
        events = None if self.of_items else batch.user_ids
        return self.assemble(bags, sequences, batch.sparse, batch.dense, events, batch.longest)


class _Assemble(nn.Module):
    """Everything of OwnerTokens that is not a table; a leaf of the train pipeline's trace."""

    def __init__(
        self, bagged: tuple[Feature, ...], single: tuple[Feature, ...], widths: dict[str, int], config: ModelConfig
    ) -> None:
        super().__init__()
        self.bagged = [feature.name for feature in bagged]
        self.averaged = {x.name: 1 if x.kind == "id" else x.max_length for x in single if x.kind != "sequence"}
        timed = [feature for feature in single if feature.kind == "sequence"]
        self.sequences = [(feature.name, feature.age_key if feature.time else "") for feature in timed]
        self.encoders = nn.ModuleList(
            SequenceEncoder(
                config.token_dim,
                layers=config.sequence_layers,
                heads=config.heads,
                max_length=feature.max_length,
                timed=bool(feature.time),
                dropout=config.dropout,
            )
            for feature in timed
        )
        self.widths = widths
        self.dense = nn.ModuleDict({owner: DenseToken(width, config.token_dim) for owner, width in widths.items()})
        self.count = len(bagged) + len(self.averaged) + SEQUENCE_TOKENS * len(timed) + len(widths)

    def forward(
        self,
        bags: KeyedTensor | None,
        sequences: dict[str, JaggedTensor] | None,
        sparse: KeyedJaggedTensor,
        dense: dict[str, Tensor],
        events: Tensor | None,  # [B, ...]: only as many rows are wanted; None: all
        longest: dict[str, int] | None = None,  # see `Batch.longest`
    ) -> Tensor:  # [B, m, d]
        known = longest or {}
        rows = slice(None if events is None else events.shape[0])
        tokens = [] if bags is None else [pooled_tokens(bags, self.bagged)[rows]]
        if sequences is not None:
            for name, shown in self.averaged.items():
                layout = JaggedLayout.build(sequences[name].lengths()[rows], shown or known.get(name, 0))
                tokens.append(layout.mean(sequences[name].values()).unsqueeze(1))
            for (name, age_key), encoder in zip(self.sequences, self.encoders, strict=True):
                ages = sparse[age_key].values() if age_key else None
                tokens.append(
                    encoder(sequences[name].values(), sequences[name].lengths()[rows], ages, known.get(name, 0))
                )
        for owner, encoder in self.dense.items():
            tokens.append(encoder(checked_dense(dense, owner, self.widths[owner])).unsqueeze(1))
        return torch.cat(tokens, dim=1)


class DenseToken(nn.Sequential):
    """Dense columns -> one token: asinh (numbers of any size, either sign), Linear, GELU, Linear."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__(nn.Linear(width, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:  # [B, W] -> [B, d]
        return super().forward(torch.asinh(x))


def dense_widths(features: Iterable[Feature]) -> dict[str, int]:
    """owner -> columns of `Batch.dense[owner]`, for the owners that have any."""
    widths: dict[str, int] = {}
    for feature in features:
        if feature.kind in ("dense", "vector"):
            widths[feature.owner] = widths.get(feature.owner, 0) + max(feature.width, 1)
    return widths


def checked_dense(dense: dict[str, Tensor], owner: str, width: int) -> Tensor:  # [B, width]
    """`dense[owner]`. Raises ValueError if the batch was read with another schema."""
    x = dense.get(owner)
    if x is None or x.shape[1] != width:
        found = "missing" if x is None else f"[B, {x.shape[1]}]"
        raise ValueError(
            f"batch.dense[{owner!r}] is {found}, the model was built for [B, {width}]: "
            "read the events with the schema the model was built from"
        )
    return x


def bag_collection(
    features: tuple[Feature, ...], dim: int, *, init: float = TABLE_INIT
) -> EmbeddingBagCollection | None:
    """Mean-pooled tables of these features, on "meta" until they are drawn or loaded; None without features.

    No table is ever whole where it is shared by ranks: see `recsys.train.sharding.shard`.
    """
    tables = [
        EmbeddingBagConfig(
            name=name,
            embedding_dim=dim,
            num_embeddings=readers[0].rows,
            feature_names=[feature.name for feature in readers],
            pooling=PoolingType.MEAN,
            weight_init_min=-init,
            weight_init_max=init,
        )
        for name, readers in _by_table(features).items()
    ]
    return with_ids_a_row(EmbeddingBagCollection(tables=tables, device=META), features) if tables else None


def pooled_tokens(bags: KeyedTensor, names: list[str]) -> Tensor:  # [B, F, d]
    """The pooled embeddings in the order of `names`; a sharded collection puts them out in an order of its own."""
    columns = dict(zip(bags.keys(), bags.values().unflatten(1, (len(names), -1)).unbind(1), strict=True))
    return torch.stack([columns[name] for name in names], dim=1)


def _element_collection(features: tuple[Feature, ...], dim: int) -> EmbeddingCollection | None:
    tables = [
        EmbeddingConfig(
            name=name,
            embedding_dim=dim,
            num_embeddings=readers[0].rows,
            feature_names=[feature.name for feature in readers],
            weight_init_min=-TABLE_INIT,
            weight_init_max=TABLE_INIT,
        )
        for name, readers in _by_table(features).items()
    ]
    return with_ids_a_row(EmbeddingCollection(tables=tables, device=META), features) if tables else None


def with_ids_a_row(collection: C, features: Iterable[Feature]) -> C:
    """Note with a collection how many ids of each feature a row has at most, for who plans where its tables lie."""
    collection.ids_a_row = {x.name: 1 if x.kind == "id" else x.max_length or UNBOUNDED for x in features}
    return collection


def _by_table(features: tuple[Feature, ...]) -> dict[str, list[Feature]]:
    """Table name -> its features. The owner in front makes names unique over a model; module names take no dots."""
    tables: dict[str, list[Feature]] = {}
    for feature in features:
        tables.setdefault(f"{feature.owner}_{feature.table_name}".replace(".", "-"), []).append(feature)
    return tables
