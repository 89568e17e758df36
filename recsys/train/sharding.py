"""How a single-device task is spread over ranks: TorchRec's planner, its sharders, DistributedModelParallel."""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from rich.table import Table
from torch import nn
from torch.distributed import _remote_device
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import KernelConfig, PlannerError, Topology, TopologyFactory, TrainerConfig
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ModuleSharder, ShardingPlan, ShardingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from recsys.train.distributed import Environment, host_memory

USABLE = 0.8
"""Share of a machine's or GPU's memory that tables may fill; the rest is for activations, batches and gradients."""
SPREAD_BYTES = 64 * 2**20
"""Tables of this size or more are spread over all ranks row by row."""


class PlanError(ValueError):
    """The embedding tables do not fit the ranks; the message names them, their bytes and what to do."""


@dataclass(frozen=True)
class TableSize:
    """One embedding table and the memory it takes while training."""

    name: str
    rows: int
    dim: int

    @property
    def bytes(self) -> int:
        """float32 weights, and the one float32 a row that row-wise Adagrad keeps."""
        return self.rows * (self.dim + 1) * 4


_COLLECTED_BYTES = 64 * 2**20
"""Tables of more than this are worth the tenths of a second in which the collector walks all objects."""


class _BagSharder(EmbeddingBagCollectionSharder):
    """TorchRec's, but for the sharding types: it offers row-wise on CUDA only, though gloo runs it."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return _sharding_types()

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        return [EmbeddingComputeKernel.FUSED.value]


class _SequenceSharder(EmbeddingCollectionSharder):
    def sharding_types(self, compute_device_type: str) -> list[str]:
        return _sharding_types()

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        return [EmbeddingComputeKernel.FUSED.value]


def shard(
    task: nn.Module,
    environment: Environment,
    *,
    sparse_lr: float,
    batch_size: int = 1024,
    sharding_types: Mapping[str, str] | None = None,
    memory: int | None = None,
) -> DistributedModelParallel:
    """Spread the embedding tables of `task` over the ranks and wrap the rest in data parallelism.

    Every table is trained by the fused row-wise Adagrad, on any number of ranks by the same rule: that is why tables
    are sharded table-wise or row-wise only (data-parallel tables would fall to the dense optimizer, and column-wise
    ones keep one accumulator a row *and shard*). A collective: every rank calls it. `task` is changed in place.

    No rank ever holds more than its shards: the tables are on "meta" before, and have memory but no weights to use
    afterwards. Draw them (`recsys.train.tables.draw_tables`) or load a checkpoint.

    Args:
        task: module whose tables are EmbeddingBagCollection and EmbeddingCollection, on "meta". Everything else must be
            the same on every rank.
        environment: this rank.
        sparse_lr: learning rate of the tables.
        batch_size: rows a rank and step, for the planner's estimates.
        sharding_types: table name -> "table_wise" or "row_wise", where the planner shall not choose.
        memory: bytes of table memory a rank may use; default: most of the GPU, or of the host's share of this rank.

    Raises:
        PlanError: the tables do not fit, or one that shall be row-wise has too few rows for that.
        ValueError: a table is not on "meta".
    """
    for path, module in task.named_modules():
        if isinstance(module, EmbeddingBagCollection | EmbeddingCollection) and module.device.type != "meta":
            raise ValueError(f'the tables of {path!r} are on {module.device}: build them on "meta"')
    fused = {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": sparse_lr, "eps": 1e-8}
    sharders = cast(list[ModuleSharder[nn.Module]], [_BagSharder(fused), _SequenceSharder(fused)])
    topology = _topology(environment, memory)
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=batch_size,
        # The heuristic reservation, the default, misjudges modules that are not on their device yet, and says so.
        storage_reservation=FixedPercentageStorageReservation(percentage=0.0),
        constraints=_constraints(task, environment, sharding_types or {}),
        debug=False,
    )
    plan = _plan(planner, task, sharders, topology)
    if environment.world_size == 1:
        _place(plan, environment.device)
    if sum(parameter.nbytes for parameter in task.parameters() if parameter.is_meta) > _COLLECTED_BYTES:
        gc.collect()  # a sharded model that is not used any more has circles of references, and may be as large as this
    return DistributedModelParallel(task, device=environment.device, plan=plan, sharders=sharders)


def plan_table(model: DistributedModelParallel) -> Table:
    """The sharding plan for people: one line a table."""
    table = Table(title="Embedding tables", title_justify="left")
    for name in ("table", "rows x dim", "MiB", "sharding", "ranks"):
        table.add_column(name, overflow="fold")
    for module_plan in model.plan.plan.values():
        for name, parameter in sorted(cast(EmbeddingModuleShardingPlan, module_plan).items()):
            shards = parameter.sharding_spec.shards
            rows = max(shard.shard_offsets[0] + shard.shard_sizes[0] for shard in shards)
            size = TableSize(name, rows, shards[0].shard_sizes[1])
            ranks = ", ".join(str(rank) for rank in parameter.ranks or [])
            table.add_row(
                name,
                f"{size.rows:,} x {size.dim}",
                f"{size.bytes / 2**20:,.1f}",
                parameter.sharding_type.replace("_", "-"),
                ranks,
            )
    return table


def table_sizes(task: nn.Module) -> list[TableSize]:
    """The embedding tables of a task that is not sharded yet, largest first."""
    sizes = []
    for module in task.modules():
        if isinstance(module, EmbeddingBagCollection):
            sizes += [TableSize(t.name, t.num_embeddings, t.embedding_dim) for t in module.embedding_bag_configs()]
        elif isinstance(module, EmbeddingCollection):
            sizes += [TableSize(t.name, t.num_embeddings, t.embedding_dim) for t in module.embedding_configs()]
    return sorted(sizes, key=lambda size: -size.bytes)


def _sharding_types() -> list[str]:
    """On one rank row-wise is table-wise with an extra pass over the ids."""
    alone = dist.get_world_size() == 1
    return [ShardingType.TABLE_WISE.value] + ([] if alone else [ShardingType.ROW_WISE.value])


def _constraints(
    task: nn.Module, environment: Environment, sharding_types: Mapping[str, str]
) -> dict[str, ParameterConstraints]:
    """Large tables are row-wise: table-wise, one rank would hold all of the largest, however many ranks there are.

    Row-wise gives every rank ceil(rows / ranks) rows while there are some; a rank left with none cannot look up.
    """
    chosen, ranks = dict(sharding_types), environment.world_size
    for size in table_sizes(task):
        if size.bytes >= SPREAD_BYTES and ranks > 1:
            chosen.setdefault(size.name, ShardingType.ROW_WISE.value)
        if size.rows > (ranks - 1) * math.ceil(size.rows / ranks):
            continue
        if chosen.setdefault(size.name, ShardingType.TABLE_WISE.value) == ShardingType.ROW_WISE.value:
            raise PlanError(
                f"table {size.name!r} has {size.rows} rows: row-wise over {ranks} ranks leaves a rank without any; "
                "shard it table_wise"
            )
    return {name: ParameterConstraints(sharding_types=[kind]) for name, kind in chosen.items()}


def rank_memory(environment: Environment) -> int:
    """Bytes of table memory that a rank may use: most of its GPU, or of the host's share of it."""
    if environment.device.type == "cuda":
        return int(USABLE * torch.cuda.get_device_properties(environment.device).total_memory)
    return int(USABLE * host_memory()) // environment.local_world_size


def _topology(environment: Environment, memory: int | None) -> Topology:
    host = memory if memory is not None else int(USABLE * host_memory()) // environment.local_world_size
    gpu = None
    if environment.device.type == "cuda":
        gpu = memory if memory is not None else rank_memory(environment)
    return TopologyFactory.create_topology(
        TrainerConfig(
            world_size=environment.world_size,
            local_world_size=min(environment.local_world_size, environment.world_size),
            hbm_cap_bytes=gpu,
            ddr_cap_bytes=host,
        ),
        kernel_config=KernelConfig(compute_device=environment.device.type),
    )


def _plan(
    planner: EmbeddingShardingPlanner,
    task: nn.Module,
    sharders: list[ModuleSharder[nn.Module]],
    topology: Topology,
) -> ShardingPlan:
    """Rank 0's plan on every rank. (TorchRec's `collective_plan` leaves the others waiting when rank 0 fails.)"""
    result: list[ShardingPlan | PlanError | None] = [None]
    if dist.get_rank() == 0:
        try:
            result = [planner.plan(task, sharders)]
        except PlannerError:
            result = [_too_large(task, topology)]
    dist.broadcast_object_list(result, src=0)
    if isinstance(result[0], PlanError):
        raise result[0]
    return cast(ShardingPlan, result[0])


def _place(plan: ShardingPlan, device: torch.device) -> None:
    """The planner numbers GPUs by rank; the only rank of a group may have another GPU than the first."""
    for module_plan in plan.plan.values():
        for parameter in cast(EmbeddingModuleShardingPlan, module_plan).values():
            for metadata in parameter.sharding_spec.shards:
                metadata.placement = _remote_device(f"rank:0/{device}")


def _too_large(task: nn.Module, topology: Topology) -> PlanError:
    sizes = table_sizes(task)
    storage = topology.devices[0].storage
    room = storage.hbm if topology.compute_device == "cuda" else storage.ddr
    listed = "; ".join(f"{size.name} {size.rows:,} x {size.dim} = {_gib(size.bytes)}" for size in sizes[:8])
    more = f"; and {len(sizes) - 8} more" if len(sizes) > 8 else ""
    return PlanError(
        f"the embedding tables need {_gib(sum(size.bytes for size in sizes))} with their optimizer state, but "
        f"{topology.world_size} ranks of {_gib(room)} each cannot hold them: {listed}{more}. "
        "Use more ranks or machines, fewer `rows` in the schema or the graph, or narrower tables"
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.2f} MiB"
