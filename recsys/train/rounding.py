"""Mean gradients that are rounded alike in every process, on CPUs.

DistributedDataParallel has gradients in one order in the first step of a process, and in another in all later ones; and
in which order gloo adds up the ranks' follows from a gradient's place. So a training that goes on from a checkpoint
would take one step that is rounded otherwise than that of one which nobody stopped, and the two drift apart. Here ranks
are added up in their order. Two need none of this, a + b is b + a; nor does what has one parameter, and so one order.

It also wants to average the very first gradients of a process, where later ones may wait for those of other batches.
Here they wait as well.

On GPUs gradients are NCCL's to add up, and their kernels' own order of adding is not fixed either.
"""

# No postponed annotations here: DistributedDataParallel looks at those of a hook.
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.futures import Future
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from recsys.train.shards import lookups


@dataclass
class Averaging:
    """How ranks average the gradients of a batch."""

    waits: bool = False
    """Whether they do not yet: each keeps its own, for the sum of several batches."""


def data_parallel(model: nn.Module) -> list[DistributedDataParallel]:
    """All that is so in a model."""
    found = [x for x in (*model.modules(), *lookups(model)) if isinstance(x, DistributedDataParallel)]
    return list(dict.fromkeys(found))


def average_in_order(model: nn.Module, *, waiting: bool = False) -> Averaging:
    """Let all that is data-parallel in a model on CPUs have its gradients averaged so; before the first backward pass.

    Args:
        model: sharded.
        waiting: whether gradients may have to wait.

    Returns:
        What says whether they do; before each backward pass it may be told.
    """
    averaging = Averaging()
    for module in data_parallel(model):
        parameters = _averaged(module)
        ordered = module.process_group.size() > 2 and len(parameters) > 1
        if parameters[0].is_cpu and (ordered or waiting):
            module.register_comm_hook(_Ranks(module.process_group, averaging, ordered), _mean)
    return averaging


def _averaged(module: DistributedDataParallel) -> list[nn.Parameter]:
    """Those whose gradients are."""
    named, ignored = module.named_parameters(), module.parameters_to_ignore
    return [x for name, x in named if x.requires_grad and name.removeprefix("module.") not in ignored]


@dataclass
class _Ranks:
    """That average together."""

    group: dist.ProcessGroup
    averaging: Averaging
    ordered: bool
    """Whether it matters in which order they are added up."""


def _mean(ranks: _Ranks, bucket: dist.GradBucket) -> Future[Tensor]:
    if ranks.averaging.waits:
        return _done(bucket.buffer())
    return _in_order(ranks.group, bucket.buffer()) if ranks.ordered else allreduce_hook(ranks.group, bucket)


def _in_order(group: dist.ProcessGroup, gradients: Tensor) -> Future[Tensor]:
    """Each rank adds up its share of the bucket for all: as many bytes cross as with gloo's own sum."""
    ranks = group.size()
    whole = functional.pad(gradients, (0, -len(gradients) % ranks))
    shares = torch.empty_like(whole)
    dist.all_to_all_single(shares, whole, group=group)
    mine, *others = shares.chunk(ranks)
    for other in others:
        mine += other
    mine /= ranks
    dist.all_gather(list(whole.chunk(ranks)), mine, group=group)
    return _done(gradients.copy_(whole[: len(gradients)]))


def _done(gradients: Tensor) -> Future[Tensor]:
    done: Future[Tensor] = Future()
    done.set_result(gradients)
    return done
