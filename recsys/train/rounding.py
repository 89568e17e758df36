"""Mean gradients that are rounded alike wherever they lie in a bucket, on CPUs.

DistributedDataParallel has gradients in one order in the first step of a process, and in another in all later ones; and
in which order gloo adds up the ranks' follows from a gradient's place. So a training that goes on from a checkpoint
would take one step that is rounded otherwise than that of one which nobody stopped, and the two drift apart. Here ranks
are added up in their order. Two need none of this: a + b is b + a.

On GPUs gradients are NCCL's to add up, and their kernels' own order of adding is not fixed either.
"""

# No postponed annotations here: DistributedDataParallel looks at those of a hook.
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel


def add_in_order(model: nn.Module) -> None:
    """Let all that is data-parallel in a model have its gradients averaged so; before the first backward pass.

    Args:
        model: sharded, on CPUs.
    """
    for module in model.modules():
        if isinstance(module, DistributedDataParallel) and module.process_group.size() > 2:
            module.register_comm_hook(module.process_group, _mean)


def _mean(group: dist.ProcessGroup, bucket: dist.GradBucket) -> Future[Tensor]:
    """Each rank adds up its share of the bucket for all: as many bytes cross as with gloo's own sum."""
    gradients, ranks = bucket.buffer(), group.size()
    whole = functional.pad(gradients, (0, -len(gradients) % ranks))
    shares = torch.empty_like(whole)
    dist.all_to_all_single(shares, whole, group=group)
    mine, *others = shares.chunk(ranks)
    for other in others:
        mine += other
    mine /= ranks
    dist.all_gather_into_tensor(whole, mine, group=group)
    done: Future[Tensor] = Future()
    done.set_result(gradients.copy_(whole[: len(gradients)]))
    return done
