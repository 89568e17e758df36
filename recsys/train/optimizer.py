"""One optimizer over both kinds of parameters: fused row-wise Adagrad in the tables, AdamW for everything else."""

from __future__ import annotations

import torch
from torch import Tensor
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.clipping import GradientClipping, GradientClippingOptimizer
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from recsys.train.replicated import replicated_tables, row_sums, row_wise_adagrad
from recsys.train.shards import local_parts


def build_optimizer(
    model: DistributedModelParallel,
    *,
    dense_lr: float,
    sparse_lr: float | None = None,
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
) -> CombinedOptimizer:
    """AdamW over the dense parameters, beside the optimizer that is fused into the tables' backward pass, and one that
    does the same for tables that are data-parallel.

    Its state exists at once, not after the first step, so that every checkpoint has the same keys and a checkpoint can
    be loaded in place.

    Args:
        model: the sharded model, see `recsys.train.sharding.shard`.
        dense_lr: learning rate of AdamW (that of sharded tables was given to `shard`).
        sparse_lr: learning rate of the tables that are data-parallel; may be left out where none is.
        weight_decay: decoupled weight decay of AdamW.
        clip_norm: the most that the norm of the dense gradient may be; 0: anything.

    Raises:
        ValueError: a table is data-parallel, and there is no `sparse_lr`.
    """
    replicated = replicated_tables(model)
    if replicated and sparse_lr is None:
        raise ValueError(f"{', '.join(replicated)} are data-parallel: give sparse_lr, which `shard` was given too")
    tables: list[KeyedOptimizer] = [model.fused_optimizer]
    if replicated and sparse_lr is not None:
        tables.append(row_wise_adagrad(replicated, sparse_lr))
    dense = {
        name: parameter
        for name, parameter in in_backward_optimizer_filter(model.named_parameters())
        if parameter.requires_grad and name not in replicated
    }
    if not dense:
        return CombinedOptimizer(tables)

    def adamw(parameters: list[Tensor]) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(parameters, lr=dense_lr, weight_decay=weight_decay, fused=True)
        _start_state(optimizer, parameters)
        return optimizer

    kept: KeyedOptimizer = KeyedOptimizerWrapper(dense, adamw)
    if clip_norm:
        kept = GradientClippingOptimizer(kept, GradientClipping.NORM, max_gradient=clip_norm)
    return CombinedOptimizer([*tables, kept])


@torch.no_grad()
def decay_accumulators(model: DistributedModelParallel, share: float) -> None:
    """Scale what the tables' Adagrad has summed up so far.

    Args:
        model: the sharded model.
        share: that is kept; 1 changes nothing.
    """
    if share == 1:
        return
    for state in model.fused_optimizer.state_dict()["state"].values():
        for value in state.values():
            for tensor, _ in local_parts(value):
                tensor.mul_(share)
    for sums in row_sums(model):
        sums.mul_(share)


def _start_state(optimizer: torch.optim.Optimizer, parameters: list[Tensor]) -> None:
    """What the first step would create, without its effect: a step of size 0 whose count is taken back."""
    group = optimizer.param_groups[0]
    rate, group["lr"] = group["lr"], 0.0
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    group["lr"] = rate
    for parameter in parameters:
        optimizer.state[parameter]["step"].zero_()
