"""A two-tower retrieval model that reads store vectors as features, and its loss.

Each tower is one of DERM's (tokens, DHEN, `VectorHead`) with more tokens: of every series of its owner `out_tokens` of
the vector, and one of whether it was found and how it was fed. The vectors also go around the DHEN, straight into the
sum that is normalised (ours): where users and items have series of one space, of the dimension of the towers' vectors,
the towers begin as these, and learn what to change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.config import ModelConfig
from recsys.data.batch import Batch
from recsys.data.schema import Schema
from recsys.models.contrastive import Drawn, contrastive_loss
from recsys.models.derm import ENTITIES, NORM_EPS, VectorHead
from recsys.models.dhen import DHEN
from recsys.models.losses import ItemFrequencies, TaskOutput
from recsys.models.series import FEED, SeriesSpec, couples
from recsys.models.tokens import OwnerTokens
from recsys.models.vocabulary import Vocabulary

_QUIET = 0.1
"""Of the usual start of a head beside which store vectors enter."""


class TwoTowerOutput(NamedTuple):
    """What `TwoTower.forward` gives."""

    user: Tensor  # float32 [B, D], L2-normalised
    item: Tensor  # float32 [B + N, D], L2-normalised; the last N are the batch's negatives


class TwoTower(nn.Module):
    """Features and store vectors of users and items -> their vectors.

    Its tables are on "meta" until `recsys.train.tables.draw_tables` draws them or a checkpoint is loaded.

    Args:
        schema: says which feature each tower sees; context and interaction features reach none.
        config: sizes of the towers.
        series: what `Batch.vectors`, `found` and `feed` hold, in the order of their columns.

    Raises:
        ValueError: an entity with neither a feature nor a series.
    """

    def __init__(self, schema: Schema, config: ModelConfig, series: Sequence[SeriesSpec]) -> None:
        super().__init__()
        self.vocabulary = Vocabulary(schema)
        """Who owns the rows that users and items read by their own id; batches are to pass its `resolve`."""
        self.user, self.item = (StoreTower(schema, owner, config, series) for owner in ENTITIES)

    def forward(self, batch: Batch) -> TwoTowerOutput:
        """User vectors [B, D] and item vectors [B + N, D] of B events and N negatives."""
        return TwoTowerOutput(self.user(batch), self.item(batch))

    def user_vector(self, batch: Batch) -> Tensor:
        """User vectors [B, D]; a batch without features of items will do."""
        return self.user(batch)

    def item_vector(self, batch: Batch) -> Tensor:
        """Item vectors [B, D]; a batch without features of users will do."""
        return self.item(batch)


class StoreTower(nn.Module):
    """Features and store vectors of one entity -> its vector [B, D], of items [B + N, D]."""

    def __init__(self, schema: Schema, owner: str, config: ModelConfig, series: Sequence[SeriesSpec]) -> None:
        super().__init__()
        self.of_items = owner == "item"
        self.tokens = OwnerTokens(schema, (owner,), config)
        own = any(spec.owner == owner for spec in series)
        self.store = StoreTokens(series, owner, config) if own else None
        count = self.tokens.count + (self.store.count if self.store is not None else 0)
        if not self.tokens.count:
            raise ValueError(
                f"the {owner} tower has no features: give the schema at least one feature with owner = {owner!r}, "
                f"say the {owner} id itself as kind 'id'"
            )
        self.backbone = DHEN(count, config)
        self.head = VectorHead(config)
        if self.store is not None:
            with torch.no_grad():
                self.head.linear.weight.mul_(_QUIET)
                self.head.linear.bias.mul_(_QUIET)

    def forward(self, batch: Batch) -> Tensor:
        tokens = self.tokens(batch)
        if self.store is None:
            return self.head(self.backbone(tokens))
        events = None if self.of_items else batch.user_ids
        stored, straight = self.store(batch.vectors, batch.found, batch.feed, events)
        hidden = self.head.linear(self.backbone(torch.cat((tokens, stored), dim=1)).flatten(1))
        return F.normalize(hidden.float() + straight.float(), dim=1, eps=NORM_EPS)


class StoreTokens(nn.Module):
    """The vectors of one owner's series -> tokens [R, m, d] (m is `count`) and what is added to the head [R, D]."""

    def __init__(self, series: Sequence[SeriesSpec], owner: str, config: ModelConfig) -> None:
        super().__init__()
        self.dims = [spec.dim for spec in series]
        self.own = [place for place, spec in enumerate(series) if spec.owner == owner]
        self.width = config.token_dim
        self.project = nn.ModuleList(nn.Linear(self.dims[x], config.out_tokens * self.width) for x in self.own)
        self.known = nn.ModuleList(nn.Linear(1 + FEED, self.width) for _ in self.own)
        straight = [nn.Linear(self.dims[x], config.vector_dim, bias=False) for x in self.own]
        self.straight = nn.ModuleList(straight)
        self.count = len(self.own) * (config.out_tokens + 1)
        shared = {place for pair in couples(series) for place in pair}
        for place, layer in zip(self.own, straight, strict=True):
            if place in shared and self.dims[place] == config.vector_dim:
                nn.init.eye_(layer.weight)

    def forward(
        self,
        vectors: Tensor | None,  # float [R, V]
        found: Tensor | None,  # bool [R, S]
        feed: Tensor | None,  # float [R, S, 2]
        events: Tensor | None,  # [B, ...]: only as many rows are wanted; None: all
    ) -> tuple[Tensor, Tensor]:  # float [B, m, d], float [B, D]
        if vectors is None or found is None or feed is None or vectors.shape[1] != sum(self.dims):
            raise ValueError(
                f"the towers read series of dimensions {self.dims}: join those series, in that order, to the batch"
            )
        rows = slice(None if events is None else events.shape[0])
        parts, found, feed = vectors[rows].split(self.dims, dim=1), found[rows], feed[rows]
        tokens, straight = [], []
        layers = zip(self.own, self.project, self.known, self.straight, strict=True)
        for place, project, known, around in layers:
            here = found[:, place, None].to(vectors.dtype)
            facts = torch.cat((here, torch.log1p(feed[:, place]) * here), dim=1)
            vector = parts[place] * here
            tokens += [project(vector).unflatten(1, (-1, self.width)), known(facts).unsqueeze(1)]
            straight.append(around(vector))
        return torch.cat(tokens, dim=1), torch.stack(straight).sum(0)


class TwoTowerTask(nn.Module):
    """A two-tower model and its loss, in the form the trainer takes: `forward(batch) -> (loss, TaskOutput)`.

    Args:
        model: gives TwoTowerOutput.
        temperature: of the softmax.
        frequencies: log Q of the items, counted over the training positives.
        items: how many the negatives of a batch are drawn from, where it has any.
    """

    def __init__(self, model: TwoTower, temperature: float, frequencies: ItemFrequencies, items: int = 0) -> None:
        super().__init__()
        self.model = model
        self.loss = TwoTowerLoss(temperature, frequencies, items)

    def forward(self, batch: Batch) -> tuple[Tensor, TaskOutput]:
        """Scalar loss of this rank's rows, and what to log."""
        return self.loss(self.model(batch), batch)


class TwoTowerLoss(nn.Module):
    """TwoTowerOutput and its batch of positives -> (loss, TaskOutput); a leaf of the train pipeline's trace.

    Sampled softmax over the items of all ranks' positives and those that they have drawn uniformly, with log Q of this
    mixture subtracted (see `contrastive_loss`). The logits are u.v / temperature.
    """

    def __init__(self, temperature: float, frequencies: ItemFrequencies, items: int) -> None:
        super().__init__()
        self.temperature, self.frequencies, self.items = temperature, frequencies, items

    def forward(self, output: TwoTowerOutput, batch: Batch) -> tuple[Tensor, TaskOutput]:
        size, drawn = len(batch), None
        if batch.negatives is not None:
            known = self.frequencies(batch.negatives, unseen=float("-inf"))
            drawn = Drawn(output.item[size:], batch.negatives, known, self.items)
        item = output.item[:size]
        loss = contrastive_loss(
            output.user,
            item,
            batch.user_ids,
            batch.item_ids,
            batch.labels[:, 0] > 0.5,
            self.frequencies(batch.item_ids),
            temperature=self.temperature,
            drawn=drawn,
        )
        logits = (output.user * item).sum(1, keepdim=True).detach().float() / self.temperature
        return loss, TaskOutput({"softmax": loss.detach()}, logits, batch.labels, batch.label_mask)
