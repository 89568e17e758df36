"""What a model's logits are learned by, one task a column: the loss of upstreams and rankers alike.

The logit of a label of 0 and 1 is the log-odds of its probability (binary cross-entropy). That of a value, revenue or
watch time, is the log of its expectation. Of a row whose outcome may still come, not having come yet is what is as
likely as the model says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.data.label_facts import QUANTILES, LabelFacts
from recsys.data.schema import Label

STEEPEST = 20.0
"""Log of the prediction over the mean from which on exp goes on as a straight line: no row is e^20 times the mean."""


class Objective(nn.Module):
    """Logits [B, T] and their batch -> the loss of each task, float32 [T]: a weighted mean over the rows of all ranks.

    Args:
        tempered: whether a task weighs as the root of how many rows it has, which is between all tasks alike, where
            those of few rows spoil the tables for the others, and all rows alike, where they hardly train them
            (Arivazhagan et al., arXiv 1907.05019, 4.2, of languages: a temperature of 2); else tasks weigh alike. What
            a task has of its own learns the same, as AdamW trains it.
        labels: of the tasks, in the order of the logits; empty: any number of labels of 0 and 1.
        facts: of the rows that are trained on.
        value_loss: of labels that are values. `poisson`: exp(z) - y z, which is least at exp(z) = the mean of y,
            whatever the distribution of y (Gneiting, JASA 2011). `weighted`: logistic regression in which each row is a
            negative once and a positive with its value as weight, so that the odds exp(z) are the mean (Covington et
            al., Deep Neural Networks for YouTube Recommendations, RecSys 2016, 4.2; there a positive is no negative
            too, and the odds come out higher by 1 / (1 - rate)). Both are of values in units of their mean, so that
            no task outweighs another for the unit it is in.
    """

    means: Tensor  # float32 [T], 1 where the label is no value
    chosen: Tensor  # bool [T], whether the label is a value
    delays: Tensor  # float32 [T, QUANTILES]; 0 where the label is not `corrected`

    def __init__(
        self,
        labels: Sequence[Label] = (),
        facts: LabelFacts | None = None,
        value_loss: str = "poisson",
        *,
        tempered: bool = False,
    ) -> None:
        super().__init__()
        facts = facts or LabelFacts()
        self.tempered = tempered
        self.values = tuple(label.is_value for label in labels)
        self.weighted = value_loss == "weighted"
        means = torch.tensor([facts.means.get(label.name, 1.0) for label in labels])
        self.register_buffer("means", means, persistent=False)
        self.register_buffer("chosen", torch.tensor(self.values, dtype=torch.bool), persistent=False)
        self.corrected = any(label.delayed == "corrected" for label in labels)
        if self.corrected:
            # In the checkpoints: a day that goes on from one has no row whose window has ended to measure delays by.
            nothing = np.zeros(QUANTILES, np.float32)
            delays = np.stack([facts.delays.get(label.name, nothing) for label in labels])
            self.register_buffer("delays", torch.from_numpy(delays))

    def is_value(self, task: int) -> bool:
        """Whether a task's label is a value."""
        return bool(self.values) and self.values[task]

    @property
    def levels(self) -> Tensor:  # float32 [T]
        """The logits to begin with: a value's mean, even odds."""
        return self.means.log()

    def forward(
        self,
        logits: Tensor,  # [B, T]
        batch: Batch,
        mask: Tensor,  # bool [B, T], true where a row is learned from
    ) -> Tensor:  # float32 [T]
        labels = batch.labels.float()
        if self.corrected and batch.elapsed is not None:
            logits = torch.where(labels > 0, logits.float(), unfinished_logit(logits, self._come(batch.elapsed)))
        each = F.binary_cross_entropy_with_logits(logits.float(), labels, reduction="none")
        if any(self.values):
            each = torch.where(self.chosen, self._of_values(logits.float() - self.levels, labels / self.means), each)
        return weighted_means(each, mask, batch.weights, tempered=self.tempered)

    def _come(self, elapsed: Tensor) -> Tensor:  # float32 [B, T]
        """The share of outcomes that have come by then, [B, T]."""
        places = torch.searchsorted(self.delays, elapsed.T.contiguous(), right=True)
        return places.T.float() / self.delays.shape[1]

    def _of_values(self, logits: Tensor, values: Tensor) -> Tensor:  # [B, T] each
        if self.weighted:
            return (1 + values) * F.softplus(logits) - values * logits
        return safe_exp(logits) - values * logits


def weighted_means(
    losses: Tensor,  # float [B, T]
    mask: Tensor,  # bool [B, T], true where the label exists
    weights: Tensor | None = None,  # float [B], 0 or more; None: all the same
    group: dist.ProcessGroup | None = None,
    *,
    tempered: bool = False,
) -> Tensor:  # float32 [T]
    """This rank's part of each task's mean loss over the valid rows of all ranks in `group`, weighted: the sum of
    weight x loss over the sum of the weights, so that a factor of all weights changes nothing. `tempered`: times the
    root of that sum over the sum of the task that has most.

    The ranks' parts average to the mean, and their gradients to its gradient; 0, with a gradient of 0, where no rank
    has a valid row of any weight. `group` is by default all ranks, where torch.distributed runs: all of them must call
    this.
    """
    share = mask.float() if weights is None else mask * weights.float().unsqueeze(1)
    totals, ranks = share.sum(0), ranks_of(group)
    if ranks > 1:
        dist.all_reduce(totals, group=group)
    if tempered:
        totals = (totals * totals.max()).sqrt()
    summed = torch.where(share > 0, losses * share, 0.0).sum(0) * ranks
    return summed / torch.where(totals > 0, totals, 1.0)


def unfinished_logit(logits: Tensor, come: Tensor) -> Tensor:  # float [B, T] each -> float32 [B, T]
    """The logit of p F: that an outcome of probability p comes, and has come already, which of those that come a share
    F has. So its cross-entropy with a label of 0 is -log(1 - p F) (Chapelle, KDD 2014, 4; there F is fitted with p).

    p F / (1 - p F) = e^z F / (1 + e^z (1 - F)): nothing is lost where p is near 1, or F is 1.
    """
    z, share = logits.float(), come.clamp(min=1e-12)
    return z + share.log() - F.softplus(z + torch.log1p(-share))


def safe_exp(x: Tensor) -> Tensor:
    """exp(x), from STEEPEST on its tangent: convex, and neither it nor its gradient overflows."""
    return x.clamp(max=STEEPEST).exp() + math.exp(STEEPEST) * F.relu(x - STEEPEST)


def ranks_of(group: dist.ProcessGroup | None) -> int:
    """How many ranks a group has; None: all, where torch.distributed runs."""
    return dist.get_world_size(group) if dist.is_initialized() else 1
