"""How a single-device task is spread over ranks: by TorchRec's DistributedModelParallel, along a plan."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, cast

import torch
import torch.distributed as dist
from rich.table import Table
from torch import nn
from torch.distributed import _remote_device
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ParameterSharding, ShardingPlan
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from recsys.config import TableConfig
from recsys.train.distributed import Environment
from recsys.train.planning import PlanError, Planner, topology_of
from recsys.train.replicas import check_groups, replicas
from recsys.train.replicated import replicated_tables, table_of
from recsys.train.table_sizes import TableSize, halve

_COLLECTED_BYTES = 64 * 2**20
"""Tables of more than this are worth the tenths of a second in which the collector walks all objects."""


def shard(
    task: nn.Module,
    environment: Environment,
    *,
    sparse_lr: float,
    batch_size: int = 1024,
    tables: Mapping[str, TableConfig] = MappingProxyType({}),
    memory: int | None = None,
    exchange: str = "float32",
    group_ranks: int = 0,
    taken: int = 0,
) -> DistributedModelParallel:
    """Spread the embedding tables of `task` over the ranks and wrap the rest in data parallelism.

    Every table is trained by row-wise Adagrad, on any number of ranks by the same rule: fused, but for those that are
    data-parallel (`recsys.train.replicated`). That is why the planner alone chooses no columns (each shard keeps an
    accumulator a row). A collective: every rank calls it. `task` is changed in place.

    No rank ever holds more than its shards: the tables are on "meta" before, and have memory but no weights to use
    afterwards. Draw them (`recsys.train.tables.draw_tables`) or load a checkpoint.

    Args:
        task: module whose tables are EmbeddingBagCollection and EmbeddingCollection, on "meta". Everything else must be
            the same on every rank.
        environment: this rank.
        sparse_lr: learning rate of the tables.
        batch_size: rows a rank and step, for the planner's estimates.
        tables: table name -> how it is spread, where the planner shall not choose.
        memory: bytes of table memory a rank may use; default: most of the GPU, or of the host's share of this rank.
        group_ranks: ranks that have all tables together; 0: all of them. Fewer: see `recsys.train.replicas`.
        exchange: what rows and their gradients cross between ranks in: float32, float16, or on GPUs bfloat16.
        taken: bytes of the GPU's memory that are not for tables, of the default of `memory`.

    Raises:
        PlanError: the tables do not fit, `tables` names one that is not there or asks for what it cannot have, or the
            ranks cannot exchange so.
        ValueError: a table is not on "meta".
    """
    for path, module in task.named_modules():
        if isinstance(module, EmbeddingBagCollection | EmbeddingCollection) and module.device.type != "meta":
            raise ValueError(f'the tables of {path!r} are on {module.device}: build them on "meta"')
    halve(task, [name for name, how in tables.items() if how.dtype == "float16"])
    check_groups(group_ranks, environment.world_size)
    sharers = min(group_ranks or environment.world_size, environment.world_size)
    planner = Planner(
        topology_of(replace(environment, world_size=sharers), memory, taken),
        sparse_lr=sparse_lr,
        batch_size=batch_size,
        tables=tables,
        exchange=exchange,
    )
    plan = _plan(planner, task)
    if environment.world_size == 1:
        _place(plan, environment.device)
    if sum(parameter.nbytes for parameter in task.parameters() if parameter.is_meta) > _COLLECTED_BYTES:
        gc.collect()  # a sharded model that is not used any more has circles of references, and may be as large as this
    if sharers < environment.world_size:
        return replicas(task, environment, plan, sharers, planner.sharders)
    return DistributedModelParallel(task, device=environment.device, plan=plan, sharders=planner.sharders)


def plan_record(model: DistributedModelParallel) -> dict[str, dict[str, Any]]:
    """The sharding plan: table -> rows, dim, sharding, kernel, dtype, and the ranks that have a part of it."""
    whole = {table_of(name): table.shape for name, table in replicated_tables(model).items()}
    dtypes = {table_of(name): str(x.dtype).removeprefix("torch.") for name, x in model.state_dict().items()}
    return {
        name: {
            "rows": whole[name][0] if name in whole else _extent(parameter, 0),
            "dim": whole[name][1] if name in whole else _extent(parameter, 1),
            "sharding": parameter.sharding_type,
            "kernel": parameter.compute_kernel,
            "dtype": dtypes[name],
            "ranks": parameter.ranks or [],
        }
        for module_plan in model.plan.plan.values()
        for name, parameter in sorted(cast(EmbeddingModuleShardingPlan, module_plan).items())
    }


def _extent(parameter: ParameterSharding, axis: int) -> int:
    """Rows (0) or columns (1) of a sharded table."""
    return max(shard.shard_offsets[axis] + shard.shard_sizes[axis] for shard in parameter.sharding_spec.shards)


def plan_table(model: DistributedModelParallel) -> Table:
    """The sharding plan for people: one line a table."""
    table = Table(title="Embedding tables", title_justify="left")
    for name in ("table", "rows x dim", "MiB", "sharding", "ranks"):
        table.add_column(name, overflow="fold")
    for name, found in plan_record(model).items():
        rows, dim, half = found["rows"], found["dim"], found["dtype"] == "float16"
        table.add_row(
            name,
            f"{rows:,} x {dim}" + (", float16" if half else ""),
            f"{TableSize(name, rows, dim, itemsize=2 if half else 4).bytes / 2**20:,.1f}",
            found["sharding"].replace("_", "-"),
            ", ".join(map(str, found["ranks"])),
        )
    return table


def _plan(planner: Planner, task: nn.Module) -> ShardingPlan:
    """Rank 0's plan on every rank. (TorchRec's `collective_plan` leaves the others waiting when rank 0 fails.)"""
    result: list[ShardingPlan | PlanError | None] = [None]
    if dist.get_rank() == 0:
        try:
            result = [planner.plan(task).plan]
        except PlanError as error:
            result = [error]
    dist.broadcast_object_list(result, src=0)
    if isinstance(result[0], PlanError):
        raise result[0]
    return cast(ShardingPlan, result[0])


def _place(plan: ShardingPlan, device: torch.device) -> None:
    """The planner numbers GPUs by rank; the only rank of a group may have another GPU than the first."""
    for module_plan in plan.plan.values():
        for parameter in cast(EmbeddingModuleShardingPlan, module_plan).values():
            for metadata in parameter.sharding_spec.shards:  # a single rank has no data-parallel table
                metadata.placement = _remote_device(f"rank:0/{device}")
