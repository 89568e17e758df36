"""DERM, the upstream model: user tower, item tower, interaction tower (arXiv 2509.04337).

An entity tower is built from the features its entity owns and from nothing else, so context and interaction features
cannot reach an entity vector. They enter the interaction tower, behind the two vectors.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.config import ModelConfig
from recsys.data.batch import Batch
from recsys.data.schema import Schema
from recsys.models.dhen import DHEN
from recsys.models.tokens import OwnerTokens
from recsys.models.vocabulary import Vocabulary

ENTITIES = ("user", "item")
"""Owners that have a tower and so vectors."""

NORM_EPS = 1e-4  # an output shorter than this stays shorter than 1; it bounds the gradient at the zero vector


class DermOutput(NamedTuple):
    """What `DERM.forward` gives."""

    logits: Tensor  # float [B, T], one column a task
    user: Tensor  # float32 [B, D], L2-normalised
    item: Tensor  # float32 [B + N, D], L2-normalised; the last N are the batch's negatives


class DERM(nn.Module):
    """Three towers with DHEN backbones; logits per task and the two entity vectors.

    Its tables are on "meta" until `recsys.train.tables.draw_tables` draws them or a checkpoint is loaded.

    Args:
        schema: says which feature each tower sees, and names the labels.
        config: sizes of the towers.
        tasks: labels to predict, in the order of the logits' columns.

    Raises:
        SchemaError: a task is not a label of the schema.
        ValueError: no task, a task twice, or an entity without a feature.
    """

    def __init__(self, schema: Schema, config: ModelConfig, tasks: Sequence[str]) -> None:
        super().__init__()
        if not tasks or len(set(tasks)) != len(tasks):
            raise ValueError(f"tasks is {list(tasks)}; name at least one label, each once")
        for task in tasks:
            schema.label(task)
        self.tasks = tuple(tasks)
        self.vector_dim, self.cross_dim = config.vector_dim, config.cross_dim
        self.vocabulary = Vocabulary(schema)
        """Who owns the rows that users and items read by their own id; batches are to pass its `resolve`."""
        self.user = EntityTower(schema, "user", config)
        self.item = EntityTower(schema, "item", config)
        self.interaction = InteractionTower(schema, config, len(tasks))
        self._own = {x: {key for own in schema.owned_by(x) for key in (own.name, own.age_key)} for x in ENTITIES}

    def forward(self, batch: Batch) -> DermOutput:
        """Logits [B, T], user vectors [B, D] and item vectors [B + N, D] of B events and N negatives."""
        user, item = self.user(batch), self.item(batch)
        return DermOutput(self.interaction(user, item, batch), user, item)

    @torch.no_grad()
    def raise_logits(self, levels: Tensor) -> None:  # [T]
        """Add to each task's logit, for a start where its level is known."""
        self.interaction.pair.heads.bias.add_(levels)

    def cross_vector(self, batch: Batch) -> Tensor:
        """The interaction tower's last hidden layer, unit vectors float32 [B, H] of B events; H is `cross_dim`.

        Of several layers after which the tower could be read, the last one that all tasks share: LFM4Ads
        (arXiv 2508.14948) takes the one before the logits. Unit length is ours, so that no event outweighs another in
        a mean. Each tower gets the keys of its owner alone, as from a batch of entities: in a sharded model the first
        batch settles for good which keys a collection of tables is given.
        """
        user = self.user(replace(batch, sparse=_of(batch.sparse, self._own["user"])))
        item = self.item(replace(batch, sparse=_of(batch.sparse, self._own["item"])))
        return F.normalize(self.interaction.hidden(user, item, batch).float(), dim=1)

    def part_of(self, owner: str) -> tuple[nn.Module, tuple[str, ...]]:
        """The tower of an owner, and with what the names of all begin that its vectors take."""
        return (self.user if owner == "user" else self.item), (f"{owner}.", f"vocabulary.tables.{owner}.")

    def user_vector(self, batch: Batch) -> Tensor:
        """User vectors [B, D]; touches only user features, so a batch that has no others will do."""
        return self.user(batch)

    def item_vector(self, batch: Batch) -> Tensor:
        """Item vectors [B, D]; touches only item features, so a batch that has no others will do."""
        return self.item(batch)


class EntityTower(nn.Module):
    """Features of one entity -> its vector [B, D]: tokens, DHEN, `out_tokens` tokens flattened and L2-normalised.

    Raises:
        ValueError: `owner` is not an entity, or the schema has no feature of it.
    """

    def __init__(self, schema: Schema, owner: str, config: ModelConfig) -> None:
        super().__init__()
        if owner not in ENTITIES:
            raise ValueError(
                f"an entity tower was asked for owner {owner!r}; only {' and '.join(ENTITIES)} have one: "
                "context and interaction features enter the interaction tower alone"
            )
        self.tokens = OwnerTokens(schema, (owner,), config)
        if self.tokens.count == 0:
            raise ValueError(
                f"the {owner} tower has no features: give the schema at least one feature with owner = {owner!r}, "
                f"say the {owner} id itself as kind 'id'"
            )
        self.backbone = DHEN(self.tokens.count, config)
        self.head = VectorHead(config)

    def forward(self, batch: Batch) -> Tensor:  # [B, D], of items [B + N, D]
        return self.head(self.backbone(self.tokens(batch)))


class VectorHead(nn.Module):
    """DHEN's tokens -> `out_tokens` tokens of `out_dim`, flattened, L2-normalised in float32."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.tokens * config.token_dim, config.vector_dim)

    def forward(self, x: Tensor) -> Tensor:  # [B, m, d] -> [B, D]
        return F.normalize(self.linear(x.flatten(1)).float(), dim=1, eps=NORM_EPS)


class InteractionTower(nn.Module):
    """User vector, item vector, context and interaction features -> logits [B, T]."""

    def __init__(self, schema: Schema, config: ModelConfig, tasks: int) -> None:
        super().__init__()
        tokens = OwnerTokens(schema, ("context", "interaction"), config)
        self.tokens = tokens if tokens.count else None
        self.pair = PairNetwork(tokens.count, config, tasks)

    def forward(
        self,
        user: Tensor,  # [B, D]
        item: Tensor,  # [B + N, D], the events' first
        batch: Batch,
    ) -> Tensor:  # [B, T]
        return self.pair(user, item, None if self.tokens is None else self.tokens(batch))

    def hidden(
        self,
        user: Tensor,  # [B, D]
        item: Tensor,  # [B, D]
        batch: Batch,
    ) -> Tensor:  # [B, H]
        """What the tasks' heads read."""
        return self.pair.hidden(*self.pair.scaled(user, item), None if self.tokens is None else self.tokens(batch))


class PairNetwork(nn.Module):
    """Tokens of user, item, their elementwise product (ours) and the event -> DHEN -> one small MLP a task.

    To each task's logit a weighted inner product of the two vectors is added (ours): it gives the vectors a gradient
    from the first step, before DHEN has learned to multiply.
    """

    def __init__(self, event_tokens: int, config: ModelConfig, tasks: int) -> None:
        super().__init__()
        self.out_tokens = config.out_tokens
        self.scale = math.sqrt(config.vector_dim)  # brings the components of a unit vector to unit size
        self.project = nn.ModuleList(nn.Linear(config.out_dim, config.token_dim) for _ in range(3))
        self.backbone = DHEN(3 * config.out_tokens + event_tokens, config)
        self.heads = TaskHeads(config.cross_dim, config.token_dim, tasks)
        self.inner_product = nn.Linear(config.vector_dim, tasks, bias=False)

    def forward(
        self,
        user: Tensor,  # [B, D]
        item: Tensor,  # [B + N, D], the events' first
        event: Tensor | None,  # [B, m, d]
    ) -> Tensor:  # [B, T]
        user, item, product = self.scaled(user, item)
        return self.heads(self.hidden(user, item, product, event)) + self.inner_product(product)

    def scaled(self, user: Tensor, item: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # [B, D] each
        """The vectors of the events' users and items with components of unit size, and their product."""
        user, item = user * self.scale, item[: user.shape[0]] * self.scale
        return user, item, user * item

    def hidden(
        self,
        user: Tensor,  # [B, D]
        item: Tensor,  # [B, D]
        product: Tensor,  # [B, D]
        event: Tensor | None,  # [B, m, d]
    ) -> Tensor:  # [B, H]
        """The last layer that the tasks share, of what `scaled` gives."""
        tokens = [
            project(vector.unflatten(1, (self.out_tokens, -1)))
            for project, vector in zip(self.project, (user, item, product), strict=True)
        ]
        if event is not None:
            tokens.append(event)
        return self.backbone(torch.cat(tokens, dim=1)).flatten(1)


class TaskHeads(nn.Module):
    """One MLP (Linear, GELU, Linear to 1) a task, all computed by two batched products."""

    def __init__(self, width: int, hidden: int, tasks: int) -> None:
        super().__init__()
        self.tasks = tasks
        self.hidden = nn.Sequential(nn.Linear(width, tasks * hidden), nn.GELU())
        self.weight = nn.Parameter(torch.empty(tasks, hidden))
        self.bias = nn.Parameter(torch.empty(tasks))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As nn.Linear; called again where the module was built on the meta device."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:  # [B, W] -> float32 [B, T]
        hidden = self.hidden(x).unflatten(1, (self.tasks, -1)).float()
        return (hidden * self.weight).sum(2) + self.bias


def _of(sparse: KeyedJaggedTensor, own: Collection[str]) -> KeyedJaggedTensor:
    """The keys of one owner alone, if it has any."""
    places = [place for place, key in enumerate(sparse.keys()) if key in own]
    return sparse.permute(places) if places else sparse
