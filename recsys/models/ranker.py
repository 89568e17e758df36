"""Downstream rankers: what all kinds have in common, and the choice of one.

A ranker is a vocabulary, tables, and a network that ends in a `RankerBody`. What reads the store's vectors is built
after everything else and meets the rest in one sum, in front of the head's first activation. So the ranker without
vectors is the same network, and under the same torch seed starts from the same parameters, as the ranker with any
series; what the vectors add to the sum starts at zero, so that it starts as the same function too: an ablation compares
what the vectors add and nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.config import NetworkConfig
from recsys.data.batch import Batch
from recsys.data.schema import Schema
from recsys.models.learned import LearnedTables
from recsys.models.losses import TaskOutput
from recsys.models.objective import Objective
from recsys.models.series import SeriesSpec, VectorFeatures
from recsys.models.tokens import dense_widths
from recsys.models.vocabulary import Vocabulary


class Ranker(nn.Module, ABC):
    """Base of all kinds: `forward(batch)` -> logits, float32 [B, T].

    Its tables are on "meta" until `recsys.train.tables.draw_tables` draws them or a checkpoint is loaded.

    Args:
        schema: features of every owner; labels are not used.
        series: what `Batch.vectors`, `found` and `feed` hold, in the order of their columns; all are ignored if empty.

    Raises:
        ValueError: no feature, or a series twice.
    """

    def __init__(self, schema: Schema, series: Sequence[SeriesSpec]) -> None:
        super().__init__()
        names = [x.name for x in series]
        if len(set(names)) != len(names):
            raise ValueError(f"series are {names}; give each once")
        if not (any(x.rows for x in schema.features) or dense_widths(schema.features)):
            raise ValueError("the ranker has no features: give the schema at least one, say the item id as kind 'id'")
        self.vocabulary = Vocabulary(schema)
        """Who owns the rows that users and items read by their own id; batches are to pass its `resolve`."""

    learned: LearnedTables | None
    """Tables in place of some of the series, built after everything else."""

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:  # [B, T]
        """Logits, float32 [B, T]."""

    def stored(self, batch: Batch) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """What the network reads as the batch's `vectors`, `found` and `feed`."""
        if self.learned is None:
            return batch.vectors, batch.found, batch.feed
        read = self.learned(batch.sparse, batch.vectors, batch.found)
        return read[0], read[1], batch.feed  # the pipeline's trace cannot unpack what it has not run

    @abstractmethod
    def outputs(self) -> list[nn.Linear]:
        """The layers whose outputs, side by side, are the logits."""

    @torch.no_grad()
    def raise_logits(self, levels: Tensor) -> None:  # [T]
        """Add to each task's logit, for a start where its level is known."""
        layers = self.outputs()
        for layer, part in zip(layers, levels.split([layer.out_features for layer in layers]), strict=True):
            layer.bias.add_(part)


class RankerBody(nn.Module):
    """Fields [B, n, e] -> `head(trunk(fields) + what the vectors add)`, logits [B, T].

    Args:
        trunk: fields -> [B, H].
        head: the rest.
        fields: n.
        config: widths and dropouts.
        series: what is read.
    """

    def __init__(
        self,
        trunk: nn.Module,
        head: Head,
        *,
        fields: int,
        config: NetworkConfig,
        series: Sequence[SeriesSpec],
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.vectors = VectorFeatures(series, fields, head.width, config) if series else None

    def forward(
        self,
        fields: Tensor,  # [B, n, e]
        vectors: Tensor | None,  # float [B, V]
        found: Tensor | None,  # bool [B, P]
        feed: Tensor | None,  # float [B, P, 2]
    ) -> Tensor:  # float32 [B, T]
        hidden = self.trunk(fields)
        if self.vectors is not None:
            hidden = hidden + self.vectors(fields, vectors, found, feed)
        return self.head(hidden).float()

    def outputs(self) -> list[nn.Linear]:
        """See `Ranker`; without a layer in the head these are the trunk's."""
        return self.head.outputs() or [x for x in self.trunk.modules() if isinstance(x, nn.Linear)][-1:]


class Head(nn.Module, ABC):
    """What follows the sum of trunk and vectors, [B, H] -> [B, T]. `width`: H."""

    width: int

    @abstractmethod
    def outputs(self) -> list[nn.Linear]:
        """The layers whose outputs, side by side, are its own; empty where it has none."""


class TowerHead(Head):
    """The top MLP, one for each task: activation, dropout, linear, ... down to its logit.

    Of what is summed each has a share of its own, so that tasks share the tables, the fields and their interactions,
    and none a hidden layer: of the conversions of few rows a layer shared with the clicks of all learns little.
    """

    def __init__(self, config: NetworkConfig, tasks: int) -> None:
        super().__init__()
        widths = (*config.hidden, 1)
        self.width = tasks * widths[0]  # without hidden layers the sum is the logits
        self.towers = nn.ModuleList(self._tower(widths, config.dropout) for _ in range(tasks))

    def _tower(self, widths: Sequence[int], dropout: float) -> nn.Sequential:
        layers: list[nn.Module] = []
        for wider, width in pairwise(widths):
            layers += [nn.ReLU(), nn.Dropout(dropout), nn.Linear(wider, width)]
        return nn.Sequential(*layers)

    def forward(self, hidden: Tensor) -> Tensor:  # [B, H] -> [B, T]
        shares = hidden.chunk(len(self.towers), dim=1)
        return torch.cat([tower(share) for tower, share in zip(self.towers, shares, strict=True)], dim=1)

    def outputs(self) -> list[nn.Linear]:
        last = [[layer for layer in tower.modules() if isinstance(layer, nn.Linear)][-1:] for tower in self.towers]
        return [layer for layers in last for layer in layers]


class RankerTask(nn.Module):
    """A ranker of all labels of its batches and its loss, see `RankerLoss`: `forward(batch) -> (loss, TaskOutput)`."""

    def __init__(
        self, model: Ranker, given: Mapping[int, int] = MappingProxyType({}), objective: Objective | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = RankerLoss(given, objective)

    def forward(self, batch: Batch) -> tuple[Tensor, TaskOutput]:
        """Scalar loss, and what to log."""
        return self.loss(self.model(batch), batch)


class RankerLoss(nn.Module):
    """Logits [B, T] and their batch -> (loss, TaskOutput); a leaf of the train pipeline's trace.

    The loss is the sum of the tasks' losses, see `Objective`. A task of `given` is learned over the whole space instead
    (ESMM, arXiv 1804.07931): its probability, or expectation, times the probability of the task it is given by, against
    its label, which is 0 where the other one is, on every row that the other one has. Its logit stays the conditional
    one.

    Args:
        given: column of a task -> column of the task whose label has to be 1 for its own to exist.
        objective: what the logits are learned by; None: labels of 0 and 1, as they stand.
    """

    def __init__(self, given: Mapping[int, int] = MappingProxyType({}), objective: Objective | None = None) -> None:
        super().__init__()
        self.given = dict(given)
        self.objective = objective or Objective()

    def forward(self, logits: Tensor, batch: Batch) -> tuple[Tensor, TaskOutput]:
        if logits.shape != batch.labels.shape:
            raise ValueError(
                f"the ranker has {logits.shape[1]} tasks, batch.labels {batch.labels.shape[1]} columns: "
                "read the events with a schema of the tasks' labels alone"
            )
        learned, mask = logits, batch.label_mask
        if self.given:
            columns, masks = list(logits.float().unbind(1)), list(mask.unbind(1))
            for task, other in self.given.items():
                whole = joint_log_mean if self.objective.is_value(task) else joint_logit
                columns[task], masks[task] = whole(logits[:, task], logits[:, other]), mask[:, other]
            learned, mask = torch.stack(columns, dim=1), torch.stack(masks, dim=1)
        loss = self.objective(learned, batch, mask).sum()
        return loss, TaskOutput({"supervised": loss.detach()}, logits.detach().float(), batch.labels, batch.known)


def joint_logit(first: Tensor, second: Tensor) -> Tensor:  # float [B] each -> float32 [B]
    """The logit of the product of two probabilities, given as logits: log p - log(1 - p), p = sigmoid(a) sigmoid(b).

    1 - p = 1 / (1 + e^a) + sigmoid(a) / (1 + e^b), so nothing is lost where p is near 1.
    """
    a, b = first.float(), second.float()
    both = F.logsigmoid(a) + F.logsigmoid(b)
    return both - torch.logaddexp(F.logsigmoid(-a), F.logsigmoid(a) + F.logsigmoid(-b))


def joint_log_mean(first: Tensor, second: Tensor) -> Tensor:  # float [B] each -> float32 [B]
    """The log of a mean, given as a log, times a probability, given as a logit."""
    return first.float() + F.logsigmoid(second.float())
