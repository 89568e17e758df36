"""Which table lies where: TorchRec's planner, by this project's rules, for the ranks at hand or for any others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    HardwareConfig,
    KernelConfig,
    PlannerError,
    ShardingOption,
    Stats,
    Topology,
    TopologyFactory,
    TrainerConfig,
)
from torchrec.distributed.types import CacheParams, ModuleSharder, QuantizedCommCodecs, ShardingPlan, ShardingType

from recsys.config import TableConfig
from recsys.mistakes import meant
from recsys.train.distributed import Environment, host_memory
from recsys.train.replicated import ADAGRAD_EPS
from recsys.train.table_sizes import TableSize, sizes_of, table_sizes

GRADIENT_SCALE = 1024.0
"""Gradients of a mean over a batch are near the smallest float16; so much they grow before they cross, and shrink
after."""
USABLE = 0.8
"""Share of a machine's or GPU's memory that tables may fill; the rest is for activations, batches and gradients."""
SPREAD_BYTES = 64 * 2**20
"""Tables of this size or more are spread over all ranks row by row."""
TINY_BYTES = 64 * 2**10
"""Tables of one collection that are no larger than this altogether are data-parallel: averaging their gradients is one
exchange, of fewer bytes than the rows of a batch in four."""
_REPLICATED = ShardingType.DATA_PARALLEL.value
"""Of pooled tables: TorchRec 1.8 miscounts the ids of others."""
_ELEMENTWISE = (ShardingType.TABLE_WISE.value, ShardingType.ROW_WISE.value, ShardingType.COLUMN_WISE.value)
"""What TorchRec has for tables whose rows are not pooled."""
_BY_COLUMNS = (
    ShardingType.COLUMN_WISE.value,
    ShardingType.TABLE_COLUMN_WISE.value,
    ShardingType.GRID_SHARD.value,
)
_KINDS = [kind.value for kind in ShardingType]
_PLANNED = (ShardingType.TABLE_WISE.value, ShardingType.ROW_WISE.value)
"""What the planner chooses from by itself: these train alike on any number of ranks."""


class PlanError(ValueError):
    """The embedding tables do not fit the ranks; the message names them, their bytes and what to do."""


class _BagSharder(EmbeddingBagCollectionSharder):
    """TorchRec's, but for the sharding types: it offers row-wise on CUDA only, though gloo runs it."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return _KINDS

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        return _kernels(sharding_type, compute_device_type)


class _SequenceSharder(EmbeddingCollectionSharder):
    def sharding_types(self, compute_device_type: str) -> list[str]:
        return list(_ELEMENTWISE)

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        return _kernels(sharding_type, compute_device_type)


def _codecs(exchange: str, device: str) -> dict[str, QuantizedCommCodecs] | None:
    if exchange == "float32":
        return None
    if exchange == "bfloat16" and device == "cpu":
        raise PlanError(
            "training.exchange is 'bfloat16', which gloo does not carry: on a CPU use 'float16' or 'float32'"
        )
    precision = CommType.FP16 if exchange == "float16" else CommType.BF16
    scale = GRADIENT_SCALE if exchange == "float16" else None
    config = QCommsConfig(forward_precision=precision, backward_precision=precision, backward_loss_scale=scale)
    return get_qcomm_codecs_registry(config, device=torch.device(device))


def _kernels(sharding_type: str, compute_device_type: str) -> list[str]:
    """Constraints choose one of them for each table. A gradient that ranks average is a dense one."""
    here = EmbeddingComputeKernel
    if sharding_type == _REPLICATED:
        return [here.DENSE.value]
    far = [here.FUSED_UVM_CACHING.value, here.FUSED_UVM.value] if compute_device_type == "cuda" else []
    return [here.FUSED.value, *far]


@dataclass
class Planned:
    """A plan, and what the planner expects of it."""

    plan: ShardingPlan
    options: list[ShardingOption] = field(default_factory=list)
    """One a table: its shards, with their ranks, storage and milliseconds."""


class _Kept(Stats):
    """Keeps what the planner would print."""

    def __init__(self) -> None:
        self.options: list[ShardingOption] = []

    def log(self, *_: Any, **told: Any) -> None:
        self.options = told["best_plan"]


class Planner:
    """Plans for ranks that need not be there.

    Args:
        topology: the ranks and their memory, from `topology_of`.
        sparse_lr: learning rate of the tables.
        batch_size: rows a rank and step, for the estimates.
        tables: table name -> how it is spread, where the planner shall not choose.
        exchange: what rows and their gradients cross between ranks in, see `TrainConfig`.

    Raises:
        PlanError: gloo does not carry bfloat16.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        sparse_lr: float,
        batch_size: int,
        tables: Mapping[str, TableConfig],
        exchange: str = "float32",
    ) -> None:
        fused = {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": sparse_lr, "eps": ADAGRAD_EPS}
        codecs = _codecs(exchange, topology.compute_device)
        sharders = [kind(fused, qcomm_codecs_registry=codecs) for kind in (_BagSharder, _SequenceSharder)]
        self.sharders = cast(list[ModuleSharder[nn.Module]], sharders)
        self._topology, self._batch_size, self._tables = topology, batch_size, tables

    def plan(self, task: nn.Module) -> Planned:
        """The plan of a task whose tables are on "meta".

        Raises:
            PlanError: the tables do not fit, `tables` names one that is not there, or asks for what it cannot have.
        """
        kept = _Kept()
        planner = EmbeddingShardingPlanner(
            topology=self._topology,
            batch_size=self._batch_size,
            # The heuristic reservation, the default, misjudges modules that are not on their device yet, and says so.
            storage_reservation=FixedPercentageStorageReservation(percentage=0.0),
            constraints=constraints(task, self._topology, self._tables),
            stats=kept,
            debug=False,
        )
        try:
            plan = planner.plan(task, self.sharders)
        except PlannerError:
            raise _too_large(task, self._topology) from None
        return Planned(plan, kept.options)


def constraints(
    task: nn.Module, topology: Topology, tables: Mapping[str, TableConfig]
) -> dict[str, ParameterConstraints]:
    """How each table may be spread.

    Large ones are row-wise: table-wise, one rank would hold all of the largest, however many ranks there are. Row-wise
    gives every rank ceil(rows / ranks) rows while there are some; a rank left with none cannot look up.

    Raises:
        PlanError: `tables` names one that is not there, or asks for what it cannot have.
    """
    sizes = table_sizes(task)
    known = [size.name for size in sizes]
    for name in tables:
        if name not in known:
            raise PlanError(
                f"training.tables names {name!r}, which the model lacks{meant(name, known)}; its tables are "
                f"{', '.join(known)}"
            )
    tiny = set() if topology.world_size == 1 else _tiny(task) - tables.keys()
    wanted = {name: TableConfig(sharding=_REPLICATED) for name in tiny} | dict(tables)
    return {size.name: _constraint(size, topology, wanted.get(size.name, TableConfig())) for size in sizes}


def _tiny(task: nn.Module) -> set[str]:
    """The tables of collections that are small altogether. One that keeps a larger table has to exchange ids anyway."""
    found: set[str] = set()
    for module in task.modules():
        sizes = sizes_of(module)
        if all(size.pooled for size in sizes) and sum(size.bytes for size in sizes) <= TINY_BYTES:
            found |= {size.name for size in sizes}
    return found


def _constraint(size: TableSize, topology: Topology, wanted: TableConfig) -> ParameterConstraints:
    ranks, kind = topology.world_size, wanted.sharding
    row_wise, table_wise = ShardingType.ROW_WISE.value, ShardingType.TABLE_WISE.value
    if kind and not size.pooled and kind not in _ELEMENTWISE:
        raise PlanError(
            f"training.tables.{size.name}.sharding is {kind!r}, but its rows are not pooled: use one of "
            f"{', '.join(_ELEMENTWISE)}"
        )
    spreads = size.rows > (ranks - 1) * math.ceil(size.rows / ranks)
    if kind == row_wise and not spreads:
        raise PlanError(
            f"table {size.name!r} has {size.rows} rows: row-wise over {ranks} ranks leaves a rank without any; "
            "shard it table_wise"
        )
    if ranks == 1 and kind == _REPLICATED:
        kind = table_wise
    elif ranks == 1:  # columns keep the accumulators of their shards
        kind = ShardingType.COLUMN_WISE.value if kind in _BY_COLUMNS else table_wise
    elif not kind and not spreads:
        kind = table_wise
    elif not kind and size.bytes >= SPREAD_BYTES:
        kind = row_wise
    if wanted.kernel != EmbeddingComputeKernel.FUSED.value and topology.compute_device != "cuda":
        raise PlanError(
            f"training.tables.{size.name}.kernel is {wanted.kernel!r}, but the ranks have no GPU whose memory a table "
            "could lie outside of: leave it out"
        )
    if kind == _REPLICATED:
        kernel, kinds = EmbeddingComputeKernel.DENSE.value, [kind]
    else:
        kernel, kinds = wanted.kernel, [kind] if kind else list(_PLANNED)
    caching = kernel == EmbeddingComputeKernel.FUSED_UVM_CACHING.value
    return ParameterConstraints(
        sharding_types=kinds,
        compute_kernels=[kernel],
        min_partition=wanted.columns or None,
        cache_params=CacheParams(load_factor=wanted.cached) if caching else None,
        pooling_factors=list(size.ids_a_row),
    )


def rank_memory(environment: Environment) -> int:
    """Bytes of table memory that a rank may use: most of its GPU, or of the host's share of it."""
    if environment.device.type == "cuda":
        return int(USABLE * torch.cuda.get_device_properties(environment.device).total_memory)
    return int(USABLE * host_memory()) // environment.local_world_size


def topology_of(environment: Environment, memory: int | None = None, taken: int = 0) -> Topology:
    """The ranks of this job.

    Args:
        environment: this rank.
        memory: bytes of table memory a rank may use; default: most of the GPU, or of the host's share of this rank.
        taken: bytes of the GPU that are not for tables, of the default.
    """
    host = memory if memory is not None else int(USABLE * host_memory()) // environment.local_world_size
    gpu = None
    if environment.device.type == "cuda":
        gpu = memory if memory is not None else max(rank_memory(environment) - taken, 0)
    local = min(environment.local_world_size, environment.world_size)
    return topology(environment.world_size, local, host=host, gpu=gpu)


def topology(
    world_size: int, local_world_size: int, *, host: int, gpu: int | None, hardware: HardwareConfig | None = None
) -> Topology:
    """Ranks and what each has.

    Args:
        world_size: of all machines.
        local_world_size: of one.
        host: bytes of host memory for a rank's tables.
        gpu: bytes of GPU memory for them; None: ranks on CPUs.
        hardware: bandwidths; default: TorchRec's own.
    """
    return TopologyFactory.create_topology(
        TrainerConfig(world_size=world_size, local_world_size=local_world_size, hbm_cap_bytes=gpu, ddr_cap_bytes=host),
        hardware_config=hardware,
        kernel_config=KernelConfig(compute_device="cpu" if gpu is None else "cuda"),
    )


def _too_large(task: nn.Module, topology: Topology) -> PlanError:
    sizes = table_sizes(task)
    storage = topology.devices[0].storage
    room = storage.hbm if topology.compute_device == "cuda" else storage.ddr
    listed = "; ".join(f"{size.name} {size.rows:,} x {size.dim} = {gib(size.bytes)}" for size in sizes[:8])
    more = f"; and {len(sizes) - 8} more" if len(sizes) > 8 else ""
    return PlanError(
        f"the embedding tables need {gib(sum(size.bytes for size in sizes))} with their optimizer state, but "
        f"{topology.world_size} ranks of {gib(room)} each cannot hold them: {listed}{more}. "
        "Use more ranks or machines, fewer `rows` in the schema or the graph, or narrower tables"
    )


def gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.2f} MiB"
