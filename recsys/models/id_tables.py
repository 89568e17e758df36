"""Tables of ids alone, the upstream of kind `contrastive`: the first facet of MFLET (arXiv 2508.05700).

An entity's vector is the row of its own id (or what several hashed ones make, see `recsys.models.hashed_ids`), plus
those of its other ids, say an item's author, of unit length. Nothing but the contrastive loss moves the tables. How
likely a user does something is read off the inner product by two numbers a task, which get no gradient to the tables:
so such an upstream is judged by entropy day by day, as any other is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from recsys.config import ContrastiveConfig
from recsys.data.batch import Batch
from recsys.data.schema import Schema
from recsys.models.derm import NORM_EPS, DermOutput
from recsys.models.hashed_ids import HashedIds
from recsys.models.managed_ids import ManagedRows
from recsys.models.tokens import META, TABLE_INIT, bag_collection, pooled_tokens
from recsys.models.vocabulary import OwnedRows, Vocabulary, own_ids, table_features

_HASTE = 30.0
"""By this much the readout's two numbers a task are larger than their parameters, whose steps are those of a network:
so that they settle within the first pass."""


class IdTables(nn.Module):
    """Logits per task and the two entity vectors, as `DERM`; its tables are on "meta" until they are drawn or loaded.

    Args:
        schema: of the ids, and naming the labels: see `recsys.source.upstream_schema`.
        config: what the tables are like.
        tasks: labels to predict, in the order of the logits' columns.

    Raises:
        ValueError: an entity's own id is no feature.
    """

    def __init__(self, schema: Schema, config: ContrastiveConfig, tasks: Sequence[str]) -> None:
        super().__init__()
        self.vector_dim = config.dim
        self.vocabulary: Vocabulary | HashedIds
        """What lets ids read their rows; batches are to pass its `resolve`."""
        if config.ids == "hashed":
            self.vocabulary = HashedIds(schema, config.sub_tables)
        else:
            managed = partial(ManagedRows, time_to_live_hours=config.time_to_live_hours)
            self.vocabulary = Vocabulary(schema, managed if config.ids == "managed" else OwnedRows)
        self.user = IdTower(schema, "user", config)
        self.item = IdTower(schema, "item", config)
        self.readout = Readout(len(tasks))

    def forward(self, batch: Batch) -> DermOutput:
        """Logits [B, T], user vectors [B, D] and item vectors [B + N, D] of B events and N negatives."""
        user, item = self.user(batch), self.item(batch)
        return DermOutput(self.readout(user, item), user, item)

    @torch.no_grad()
    def raise_logits(self, levels: Tensor) -> None:  # [T]
        """Add to each task's logit, for a start where its level is known."""
        self.readout.bias.add_(levels / _HASTE)

    def part_of(self, owner: str) -> tuple[nn.Module, tuple[str, ...]]:
        """The tower of an owner, and with what the names of all begin that its vectors take."""
        return (self.user if owner == "user" else self.item), (f"{owner}.", f"vocabulary.tables.{owner}.")

    def own_table(self, owner: str) -> nn.Module:
        """The collection whose only table is read by the owner's own id."""
        return self.user.own if owner == "user" else self.item.own

    def user_vector(self, batch: Batch) -> Tensor:
        """User vectors [B, D]; touches only user features."""
        return self.user(batch)

    def item_vector(self, batch: Batch) -> Tensor:
        """Item vectors [B, D]; touches only item features."""
        return self.item(batch)


class IdTower(nn.Module):
    """The ids of one entity -> its vector [B, D], of items [B + N, D]."""

    def __init__(self, schema: Schema, owner: str, config: ContrastiveConfig) -> None:
        super().__init__()
        own = own_ids(schema).get(owner)
        if own is None:
            raise ValueError(f"the schema has no feature that is the {owner}'s own id: list it, of kind 'id'")
        rows = {feature.name: feature.rows for feature in table_features(schema, (owner,))}
        others = tuple(x for x in table_features(schema, (owner,)) if x.name != own.name)
        table = EmbeddingConfig(
            name=f"{owner}_{own.table_name}".replace(".", "-"),
            embedding_dim=config.row_dim,
            num_embeddings=config.sub_tables * own.rows if config.ids == "hashed" else rows[own.name],
            feature_names=[own.name],
            weight_init_min=-TABLE_INIT,
            weight_init_max=TABLE_INIT,
        )
        self.own = EmbeddingCollection(tables=[table], device=META)
        self.own.ids_a_row = {own.name: config.rows_an_id}
        self.others = bag_collection(others, config.dim)
        self.join = _Join(own.name, [x.name for x in others], config)

    def forward(self, batch: Batch) -> Tensor:
        return self.join(self.own(batch.sparse), None if self.others is None else self.others(batch.sparse))


class _Join(nn.Module):
    """Rows of an entity's ids -> its vector; a leaf of the train pipeline's trace."""

    def __init__(self, own: str, others: list[str], config: ContrastiveConfig) -> None:
        super().__init__()
        self.own, self.others = own, others
        self.shape = config.rows_an_id // config.parts, config.dim  # rows that are added up, of what width

    def forward(self, own: dict[str, JaggedTensor], others: KeyedTensor | None) -> Tensor:
        vector = own[self.own].values().float().view(-1, *self.shape).sum(1)
        if others is not None:
            vector = vector + pooled_tokens(others, self.others)[: len(vector)].float().sum(1)
        return F.normalize(vector, dim=1, eps=NORM_EPS)


class Readout(nn.Module):
    """Inner products of users and items, of which nothing flows back -> logits float32 [B, T]."""

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((tasks,), 1 / _HASTE))
        self.bias = nn.Parameter(torch.zeros(tasks))

    def forward(
        self,
        user: Tensor,  # [B, D]
        item: Tensor,  # [B + N, D], the events' first
    ) -> Tensor:
        product = (user * item[: user.shape[0]]).sum(1, keepdim=True).detach()
        return _HASTE * (product * self.scale + self.bias)
