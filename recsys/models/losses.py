"""The upstream's loss: supervised multi-task + contrastive between user and item vectors (arXiv 2509.04337)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from recsys.config import ConfigError, LossConfig
from recsys.data.batch import Batch
from recsys.models.contrastive import Drawn, contrastive_loss
from recsys.models.derm import DermOutput
from recsys.models.frequencies import ItemFrequencies
from recsys.models.objective import Objective


class TaskOutput(NamedTuple):
    """What a task module gives beside its loss, for logging and metrics. Nothing here carries a gradient."""

    losses: dict[str, Tensor]  # scalars: each part of the loss by name
    logits: Tensor  # float32 [B, T]
    labels: Tensor  # float32 [B, T]
    mask: Tensor  # bool [B, T], true where the label exists and will not change any more


class DermTask(nn.Module):
    """A DERM and its loss, in the form the trainer takes: `forward(batch) -> (loss, TaskOutput)`.

    The loss is the sum of the tasks' losses, see `Objective`, plus `contrastive_weight` x the contrastive loss. Of
    `losses`, each task has its own under its name, the contrastive one (where there is one) is "contrastive".
    All means are over the rows of all ranks: averaged over ranks, loss and gradient are those of one rank with the
    whole batch.

    Args:
        model: gives DermOutput.
        config: which label is contrasted, and how.
        tasks: the labels of a batch, in the order of their columns, which is the order of the logits.
        frequencies: log Q of the items, counted over the rows with a positive contrastive label; None where there are
            none, or their weight is 0: nothing is contrasted.
        items: how many the negatives of a batch are drawn from, where it has any.
        objective: what the logits are learned by; None: labels of 0 and 1, as they stand.

    Raises:
        ConfigError: the contrastive label is not among the tasks.
    """

    def __init__(
        self,
        model: nn.Module,
        config: LossConfig,
        tasks: Sequence[str],
        frequencies: ItemFrequencies | None,
        items: int = 0,
        objective: Objective | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = DermLoss(config, tasks, frequencies, items, objective)

    def forward(self, batch: Batch) -> tuple[Tensor, TaskOutput]:
        """Scalar loss of this rank's rows, and what to log."""
        return self.loss(self.model(batch), batch)


class DermLoss(nn.Module):
    """DermOutput and its batch -> (loss, TaskOutput); a leaf of the train pipeline's trace. See DermTask."""

    positives: Tensor  # float32 [T], what a row weighs for being positive by each label; 0: nothing

    def __init__(
        self,
        config: LossConfig,
        tasks: Sequence[str],
        frequencies: ItemFrequencies | None,
        items: int = 0,
        objective: Objective | None = None,
    ) -> None:
        super().__init__()
        label = config.contrastive_label or tasks[0]
        if label not in tasks:
            raise ConfigError(f"loss.contrastive_label is {label!r}; use one of the tasks: {', '.join(tasks)}")
        self.config = config
        self.tasks = tuple(tasks)
        weights = config.contrasted(self.tasks)
        if unknown := sorted(weights.keys() - set(self.tasks)):
            raise ConfigError(f"loss.positives names {unknown}; use some of the tasks: {', '.join(tasks)}")
        self.register_buffer("positives", torch.tensor([weights.get(x, 0.0) for x in self.tasks]), persistent=False)
        self.frequencies = frequencies
        self.items = items
        self.objective = objective or Objective()

    def forward(self, output: DermOutput, batch: Batch) -> tuple[Tensor, TaskOutput]:
        logits = output.logits.float()
        if logits.shape != batch.labels.shape:
            raise ValueError(
                f"batch.labels is {list(batch.labels.shape)}, the logits are {list(logits.shape)} for the tasks "
                f"{', '.join(self.tasks)}: read the events with schema.select(labels=tasks)"
            )
        means = self.objective(logits, batch, batch.label_mask)
        losses = dict(zip(self.tasks, means.detach().unbind(), strict=True))
        loss = means.sum()
        # Not in evaluation, whose loss nobody reads: the ranks' batches need not be of one size there.
        if self.training and self.config.contrastive_weight and self.frequencies is not None:
            # No product of matrices, which autocast would round.
            weights = (((batch.labels > 0.5) & batch.label_mask) * self.positives).sum(dim=1)
            drawn = None
            if batch.negatives is not None:
                known = self.frequencies(batch.negatives, unseen=float("-inf"))
                drawn = Drawn(output.item[len(batch) :], batch.negatives, known, self.items)
            contrastive = contrastive_loss(
                output.user,
                output.item[: len(batch)],
                batch.user_ids,
                batch.item_ids,
                weights,
                self.frequencies(batch.item_ids),
                temperature=self.config.temperature,
                corrected=self.config.log_q,
                drawn=drawn,
            )
            losses["contrastive"] = contrastive.detach()
            loss = loss + self.config.contrastive_weight * contrastive
        return loss, TaskOutput(losses, logits.detach(), batch.labels, batch.known)
