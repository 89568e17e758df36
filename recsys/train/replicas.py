"""2D parallel: the ranks are groups, each has all tables sharded over its own, and the groups average theirs.

TorchRec's DMPCollection. What crosses between groups is weights and sums of gradients, every so many steps, not ids and
rows in each; a group that is one machine exchanges these within it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import _remote_device
from torchrec.distributed.model_parallel import DistributedModelParallel, DMPCollection, DMPCollectionContext
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    ModuleSharder,
    ShardingEnv2D,
    ShardingPlan,
    ShardingStrategy,
)

from recsys.train.distributed import Environment
from recsys.train.planning import PlanError
from recsys.train.shards import rows_written


def check_groups(group_ranks: int, world_size: int) -> None:
    """Raise PlanError unless the ranks are whole groups."""
    if group_ranks and world_size % group_ranks:
        raise PlanError(
            f"training.group_ranks is {group_ranks}, but there are {world_size} ranks: use a divisor of them, or 0: "
            "one group"
        )
    if group_ranks == 1 and world_size > 1:
        raise PlanError("training.group_ranks is 1: for tables that every rank has whole let them be data_parallel")


def replicas(
    task: nn.Module,
    environment: Environment,
    plan: ShardingPlan,
    group_ranks: int,
    sharders: list[ModuleSharder[nn.Module]],
) -> DMPCollection:
    """A task whose tables are spread over each group of so many ranks, that follow one another.

    Args:
        task: its tables on "meta".
        environment: this rank.
        plan: of one group; changed in place.
        group_ranks: more than one, and fewer than all.
        sharders: of the plan.
    """
    world = dist.group.WORLD
    assert world is not None
    ranks = (environment.device, plan, environment.world_size, group_ranks, world)
    if environment.device.type == "cpu":
        return CpuCollection(task, *ranks, sharders=sharders)
    return DMPCollection(task, *ranks, sharders=sharders, use_inter_host_allreduce=True)


def average(model: nn.Module) -> None:
    """Let all groups have the mean of their weights and of their sums of gradients; nothing where there is one."""
    if isinstance(model, DMPCollection):
        with rows_written(model):
            model.sync()


class CpuCollection(DMPCollection):
    """TorchRec's, on CPUs, which it refuses: what its own does, with sums in place of the means that
    gloo has not."""

    def __init__(
        self,
        module: nn.Module,
        device: torch.device,
        plan: ShardingPlan,
        world_size: int,
        sharding_group_size: int,
        global_pg: dist.ProcessGroup,
        *,
        sharders: Sequence[ModuleSharder[nn.Module]],
    ) -> None:
        self._device, self._pg, self._global_rank = device, global_pg, dist.get_rank(global_pg)
        self._custom_all_reduce = self._average
        self._use_sharded_relay, self._sharded_relay_state = False, None
        context = DMPCollectionContext(
            module=None,  # of all that no other context has
            plan=plan,
            sharding_group_size=sharding_group_size,
            node_group_size=sharding_group_size,
            use_inter_host_allreduce=True,
            sharding_strategy=ShardingStrategy.DEFAULT,
        )
        context.device_mesh, context.sharding_pg, context.replica_pg = self._create_process_groups(
            self._global_rank, world_size, sharding_group_size, use_inter_host_allreduce=True
        )
        self._default_ctx, self._ctxs = context, [context]
        self._submodule_ctxs: list[DMPCollectionContext] = []
        step = world_size // sharding_group_size
        self._remap_sharding_plan(plan, self._global_rank, step, sharding_group_size, use_inter_host_allreduce=True)
        _without_numbers(plan)
        environment = ShardingEnv2D(
            global_pg=global_pg,
            sharding_pg=context.sharding_pg,
            replica_pg=context.replica_pg,
            device_mesh=context.device_mesh,
            node_group_size=sharding_group_size,
            use_inter_host_allreduce=True,
        )
        DistributedModelParallel.__init__(self, module, environment, device, plan, list(sharders))
        self._group_sharded_modules(self._ctxs)
        self._cache_sync_tensors(self._ctxs)

    def _average(self, tensors: list[Tensor]) -> None:
        group = self._default_ctx.replica_pg
        for tensor in tensors:
            dist.all_reduce(tensor, group=group)
            tensor /= dist.get_world_size(group)


def _without_numbers(plan: ShardingPlan) -> None:
    """TorchRec numbers a machine's CPUs by rank; there is one."""
    for module_plan in plan.plan.values():
        for parameter in cast(EmbeddingModuleShardingPlan, module_plan).values():
            for shard in getattr(parameter.sharding_spec, "shards", ()):
                shard.placement = _remote_device(f"rank:{shard.placement.rank()}/cpu")
