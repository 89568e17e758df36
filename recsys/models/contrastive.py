"""The contrastive loss over the items of all ranks: one exchange, and no step that a GPU would wait for."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from recsys.models.objective import ranks_of


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
    select: bool | None = None,
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

    With `select` rows and candidates that are not positive are left out of the product, whose size is then to be read
    off the data; without it they are masked in it, and nothing is read. By default a CPU selects, where reading costs
    nothing; a GPU, which would wait for it, does not. The loss is the same.
    """
    select = user.device.type == "cpu" if select is None else select
    with torch.autocast(user.device.type, enabled=False):
        size, behind = user.shape[0], 0 if drawn is None else drawn.item.shape[0]
        if drawn is not None:
            item, item_ids = torch.cat((item, drawn.item)), torch.cat((item_ids, drawn.ids))
            log_q = torch.cat((log_q, drawn.log_q))
        own_facts = (F.pad(user_ids, (0, behind)), item_ids, _bits(log_q), _bits(F.pad(weights, (0, behind))))
        candidates, facts = _gather(item.float(), torch.stack(own_facts, dim=1), group)  # [E, D], int64 [E, 4]
        every_weight = _numbers(facts[:, 3])
        chosen = every_weight > 0
        is_drawn = torch.arange(len(chosen), device=chosen.device) % max(size + behind, 1) >= size
        rows = torch.arange(size, device=user.device)
        there = places = None
        if select:
            places, rows = (chosen | is_drawn).nonzero().squeeze(1), (weights > 0).nonzero().squeeze(1)
            facts, chosen, is_drawn = facts[places], chosen[places], is_drawn[places]
            candidates, user = candidates.index_select(0, places), user.index_select(0, rows)
        else:
            there = chosen | is_drawn
        own = rows + _rank(group) * (size + behind)  # [P], where the queries' own items are among the candidates
        own = own if places is None else torch.searchsorted(places, own)
        users, items, log_q_bits, _ = facts.T.contiguous()  # [E] each
        bias = _bias(_numbers(log_q_bits), chosen, is_drawn, drawn) if corrected else user.new_zeros(len(chosen))
        hidden = _chosen_items(user_ids[rows], users, items, chosen)
        hidden = (hidden if there is None else hidden | ~there).scatter_(1, own.unsqueeze(1), False)
        logits = torch.addmm(bias.float(), user.float() / temperature, candidates.T)  # [P, E]
        with torch.no_grad():  # the softmax has no gradient there as it is
            logits.masked_fill_(hidden, float("-inf"))
        losses = F.cross_entropy(logits, own, reduction="none")
        total = every_weight.sum().float()
        return (losses * weights[rows]).sum() * ranks_of(group) / torch.where(total > 0, total, 1.0)


def _bias(
    log_q: Tensor,  # float64 [E]
    chosen: Tensor,  # bool [E]
    is_drawn: Tensor,  # bool [E]
    drawn: Drawn | None,
) -> Tensor:  # float64 [E]
    """-log Q of the candidates, 0 of what is none."""
    if drawn is not None:
        count = chosen.sum().double()
        share = count / (count + is_drawn.sum()).clamp(min=1)
        log_q = (share * log_q.exp() + (1 - share) / drawn.items).log()
    return torch.where(chosen | is_drawn, -log_q, 0.0)


def _bits(numbers: Tensor) -> Tensor:  # float [N] -> int64 [N]
    """Numbers as they travel with ids."""
    return numbers.double().view(torch.int64)


def _numbers(bits: Tensor) -> Tensor:  # int64 [N] -> float64 [N]
    return bits.contiguous().view(torch.float64)


def _chosen_items(
    queries: Tensor,  # int64 [P], users
    users: Tensor,  # int64 [E]
    items: Tensor,  # int64 [E]
    chosen: Tensor,  # bool [E], which of the pairs there are
) -> Tensor:  # bool [P, E]
    """Whether the user of a query is paired with an item anywhere among the E pairs."""
    order = queries.sort().values
    first, at = torch.searchsorted(order, queries), torch.searchsorted(order, users)
    known = (F.pad(order, (0, 1))[at] == users) & (at < len(order)) & chosen
    item = torch.searchsorted(items.sort().values, items)  # the same number for the same item
    pairs = torch.zeros(len(queries) + 1, len(items), dtype=torch.bool, device=users.device)
    pairs[torch.where(known, at, len(queries)), item] = True  # the last row is nobody's
    return pairs.index_select(0, first).index_select(1, item)


def _rank(group: dist.ProcessGroup | None) -> int:
    return dist.get_rank(group) if dist.is_initialized() else 0


def _gather(
    vectors: Tensor,  # float32 [B, D]
    facts: Tensor,  # int64 [B, 4]
    group: dist.ProcessGroup | None,
) -> tuple[Tensor, Tensor]:  # float32 [W B, D], int64 [W B, 4]
    if ranks_of(group) == 1:
        return vectors, facts
    return _AllGather.apply(vectors, facts, group)


class _AllGather(torch.autograd.Function):
    """All ranks' rows, one rank after the other; backward sums every rank's gradient of this rank's vectors.

    Vectors and facts travel in one exchange, the bits of facts beside those of the vectors. torch.distributed has such
    functions of one tensor, but those that torch 2.11 has, the oldest we support, are deprecated since 2.13.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, facts: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor]:
        ctx.group = group
        world_size, dim = dist.get_world_size(group), vectors.shape[1]
        packed = torch.cat((vectors, facts.view(torch.float32)), dim=1)
        gathered = packed.new_empty(world_size * packed.shape[0], packed.shape[1])
        dist.all_gather(list(gathered.tensor_split(world_size)), packed, group=group)
        others = gathered[:, dim:].clone(memory_format=torch.contiguous_format).view(torch.int64)
        ctx.mark_non_differentiable(others)
        return gathered[:, :dim].contiguous(), others

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        gradients = list(gradient.contiguous().tensor_split(dist.get_world_size(ctx.group)))
        own = torch.empty_like(gradients[0])
        dist.reduce_scatter(own, gradients, group=ctx.group)
        return own, None, None
