"""The upstream's loss: supervised multi-task + contrastive between user and item vectors (arXiv 2509.04337)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.config import ConfigError, LossConfig
from recsys.data.batch import Batch
from recsys.models.derm import DermOutput
from recsys.models.objective import Objective, ranks_of


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
            weights = ((batch.labels > 0.5) & batch.label_mask).float() @ self.positives
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


class Drawn(NamedTuple):
    """N items that a rank has drawn uniformly, the same number on every rank."""

    item: Tensor  # [N, D]
    ids: Tensor  # int64 [N]
    log_q: Tensor  # float [N], log of the probability that the item of a positive row is this one; -inf: never
    items: int  # how many they were drawn from


def contrastive_loss(
    user: Tensor,  # [B, D]
    item: Tensor,  # [B, D]
    user_ids: Tensor,  # int64 [B]
    item_ids: Tensor,  # int64 [B]
    weights: Tensor,  # float [B], above 0 in the rows whose user chose their item, the positive ones
    log_q: Tensor,  # float [B], log of the probability that the item of a positive row is this row's
    *,
    temperature: float,
    corrected: bool = True,
    drawn: Drawn | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:  # float32 []
    """This rank's part of the weighted mean over positive rows of -log softmax(u.p / temperature - log Q), mixed
    negatives.

    The candidates of a row are the items of the C positive rows of every rank in `group` (default: all ranks, where
    torch.distributed runs) and the M items that these have drawn, but for the items of the user's own positive rows.
    Q is the mixture that they are samples of: C / (C + M) of `log_q`, the rest uniform. Without `drawn` there are
    in-batch negatives alone, and log Q is `log_q`. Not `corrected`: log Q is not subtracted.

    The mean is over the positive rows of all ranks and the gradient flows through the gather: averaged over ranks, as
    DistributedDataParallel does, loss and gradient are those of one rank with the whole batch. Every rank must call
    this, with the same B and N; a rank without positives gets 0. arXiv 2509.04337; the mixture is that of
    Yang et al. 2020, "Mixed Negative Sampling for Learning Two-tower Neural Networks in Recommendations".
    """
    with torch.autocast(user.device.type, enabled=False):
        size = user.shape[0]
        if drawn is not None:
            item, item_ids = torch.cat((item, drawn.item)), torch.cat((item_ids, drawn.ids))
            log_q = torch.cat((log_q, drawn.log_q))
        behind = item.shape[0] - size
        candidates = _gather(item.float(), group)  # [W (B + N), D]
        # One exchange for what has no gradient: the bits of numbers travel as int64.
        facts = (F.pad(user_ids, (0, behind)), item_ids, _bits(log_q), _bits(F.pad(weights, (0, behind))))
        users, items, log_q_bits, weight_bits = _gather(torch.stack(facts, dim=1), group).unbind(1)
        every_weight = _numbers(weight_bits)
        columns = (every_weight > 0).nonzero().squeeze(1)  # [C]
        extra = (torch.arange(len(users), device=users.device) % max(size + behind, 1) >= size).nonzero().squeeze(1)
        every = torch.cat((columns, extra))  # [C + M]
        rows = (weights > 0).nonzero().squeeze(1)  # [P]
        candidate_log_q = _numbers(log_q_bits)[every]
        if drawn is not None:
            share = len(columns) / max(len(every), 1)
            candidate_log_q = (share * candidate_log_q.exp() + (1 - share) / drawn.items).log()
        queries, keys = user.float().index_select(0, rows), candidates.index_select(0, every)
        logits = queries @ keys.T / temperature  # [P, C + M]
        if corrected:
            logits = logits - candidate_log_q.float()
        own = torch.searchsorted(columns, rows + _rank(group) * (size + behind))  # [P]
        known = _chosen_items(users[columns], items[every], own).scatter(1, own.unsqueeze(1), False)
        logits = logits.masked_fill(known, float("-inf"))
        losses = logits.logsumexp(1) - logits.gather(1, own.unsqueeze(1)).squeeze(1)
        total = every_weight.sum().float()
        return (losses * weights[rows]).sum() * ranks_of(group) / torch.where(total > 0, total, 1.0)


def _bits(numbers: Tensor) -> Tensor:  # float [N] -> int64 [N]
    return numbers.double().view(torch.int64)


def _numbers(bits: Tensor) -> Tensor:  # int64 [N] -> float64 [N]
    return bits.contiguous().view(torch.float64)


def _chosen_items(
    users: Tensor,  # int64 [C]
    items: Tensor,  # int64 [C + M], the users' in front
    queries: Tensor,  # int64 [P], which of the C pairs are queries
) -> Tensor:  # bool [P, C + M]
    """Whether the user of a query is paired with an item anywhere among the C pairs."""
    (user_values, user), (item_values, item) = (torch.unique(x, return_inverse=True) for x in (users, items))
    pairs = torch.zeros(len(user_values), len(item_values), dtype=torch.bool, device=users.device)
    pairs[user, item[: len(users)]] = True
    return pairs[user[queries]].index_select(1, item)


class ItemFrequencies(nn.Module):
    """log Q: log-probability of an item under the training positives' counts.

    The counts come from the training files and are the same after a restart, so they are no part of a checkpoint.
    """

    ids: Tensor  # int64 [N], sorted
    log_probability: Tensor  # float32 [N]

    def __init__(self, ids: Tensor, log_probability: Tensor) -> None:
        """See `from_counts`."""
        super().__init__()
        self.register_buffer("ids", ids, persistent=False)
        self.register_buffer("log_probability", log_probability, persistent=False)

    @staticmethod
    def from_counts(ids: Tensor, counts: Tensor) -> ItemFrequencies:
        """Build from item ids (int64 [N], in any order, each once) and how often each was seen ([N], at least 1).

        Raises:
            ValueError: no items, different lengths, a repeated id, or a count below 1.
        """
        if ids.shape != counts.shape or ids.dim() != 1 or not len(ids):
            raise ValueError(
                f"ids and counts are {list(ids.shape)} and {list(counts.shape)}; give two of [N] with N of 1 or more"
            )
        ids, order = ids.long().sort()
        if bool((ids[1:] == ids[:-1]).any()):
            raise ValueError("ids repeat: add up the counts of each item first")
        if int(counts.min()) < 1:
            raise ValueError(f"the smallest count is {int(counts.min())}; leave out items that were not seen")
        counts = counts.double()[order]
        return ItemFrequencies(ids, (counts / counts.sum()).log().float())

    def forward(self, item_ids: Tensor, unseen: float | None = None) -> Tensor:  # int64 [B] -> float32 [B]
        """Each item's; `unseen` of one that was not seen, by default the smallest of those that were."""
        at = torch.searchsorted(self.ids, item_ids).clamp(max=len(self.ids) - 1)
        rest = self.log_probability.min() if unseen is None else unseen
        return torch.where(self.ids[at] == item_ids, self.log_probability[at], rest)


def _rank(group: dist.ProcessGroup | None) -> int:
    return dist.get_rank(group) if dist.is_initialized() else 0


def _gather(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:  # [B, ...] -> [W B, ...]
    if ranks_of(group) == 1:
        return x
    return _AllGather.apply(x, group)


class _AllGather(torch.autograd.Function):
    """All ranks' rows, one rank after the other; backward sums every rank's gradient of this rank's rows.

    torch.distributed.nn.functional has one, deprecated since torch 2.13 in favour of a function that torch 2.11, the
    oldest we support, lacks.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        x = x.contiguous()
        world_size = dist.get_world_size(group)
        gathered = x.new_empty(world_size * x.shape[0], *x.shape[1:])
        dist.all_gather(list(gathered.tensor_split(world_size)), x, group=group)
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradients = list(gradient.contiguous().tensor_split(dist.get_world_size(ctx.group)))
        own = torch.empty_like(gradients[0])
        dist.reduce_scatter(own, gradients, group=ctx.group)
        return own, None
