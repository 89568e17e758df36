"""`recsys plan`: how a config's models would lie on a cluster that need not be there, and what does not fit.

The models are those that the config trains, on "meta"; the plan is what training there would choose, by the same rules
(`recsys.train.planning`). Times are TorchRec's estimates of the tables' part of a step, from bytes and bandwidths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import nn
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.planner.types import HardwareConfig, Shard, ShardingOption

from recsys.cluster import Cluster
from recsys.config import (
    Config,
    ConfigError,
    RankerConfig,
    RankerSettings,
    RefreshConfig,
    StudyConfig,
    TrainConfig,
    UpstreamConfig,
)
from recsys.data.files import find_files
from recsys.data.quarantine import NOTHING
from recsys.data.sizes import Tables, key_of, unsized, with_tables
from recsys.data.tables import count_tables
from recsys.downstream.training import counted_tables
from recsys.graph_upstream import count_nodes
from recsys.models.kinds import build_upstream
from recsys.models.rankers import build_ranker
from recsys.source import ranker_schema, sized_upstream, upstream_schema
from recsys.train.planning import USABLE, PlanError, Planned, Planner, gib, topology
from recsys.train.replicas import check_groups
from recsys.train.table_sizes import halve, table_sizes

_DENSE_BYTES = 16
"""Of a dense parameter: itself, its gradient, and two of AdamW."""
_GB = 10**9
_SHOWN = 20
"""Tables that are listed."""


@dataclass(frozen=True)
class Job:
    """A model that a config trains."""

    name: str
    task: nn.Module
    """Its tables on "meta"."""
    training: TrainConfig
    taken: int = 0
    """Bytes of a GPU's memory that are not for tables: `rankers.gpu_bytes`."""

    def room(self, cluster: Cluster) -> int:
        """Bytes of a GPU's memory that are."""
        return max(int(USABLE * cluster.hbm_gb * _GB) - self.taken, 0)


def print_plan(config: Config, data: Path, out: Path | None, cluster: Cluster, console: Console | None = None) -> None:
    """Plan every model that a config trains, and print where its tables would lie.

    Args:
        config: a study, an upstream, a refresh, or rankers.
        data: folder that its paths are relative to; ids are counted there where a schema gives no rows.
        out: folder of a run whose tables were counted before; None: they are counted now.
        cluster: to plan for.
        console: to print on; None: the terminal.

    Raises:
        PlanError: tables do not fit; what does is printed first.
        ConfigError: the config trains no model that is sharded, or there can be no such cluster.
        DataError, SchemaError: as their rooms say.
    """
    cluster.check()
    console, refused = console or Console(), list[str]()
    for job in jobs_of(config, data, out):
        try:
            planned = plan(job, cluster)
        except PlanError as error:
            refused.append(f"{job.name}: {error}")
            continue
        console.print(tables_of(job, planned), _ranks_of(job, planned, cluster))
    if refused:
        raise PlanError("; ".join(refused))


def plan(job: Job, cluster: Cluster) -> Planned:
    """Where the tables of a job would lie: of one of its groups, where ranks share them in groups. Raises PlanError."""
    local, sharers = min(cluster.local_world_size, cluster.world_size), _sharers(job, cluster)
    check_groups(job.training.group_ranks, cluster.world_size)
    ranks = topology(
        sharers,
        min(local, sharers),
        host=int(USABLE * cluster.host_gb * _GB) // local,
        gpu=job.room(cluster),
        hardware=HardwareConfig(
            hbm_mem_bw=cluster.hbm_gb_s * _GB / 1000,  # bytes a millisecond
            intra_host_bw=cluster.link_gb_s * _GB / 1000,
            inter_host_bw=cluster.network_gb_s * _GB / 1000,
        ),
    )
    training = job.training
    halve(job.task, [name for name, how in training.tables.items() if how.dtype == "float16"])
    planner = Planner(
        ranks,
        sparse_lr=training.sparse_lr,
        batch_size=training.batch_size or training.LARGEST,
        tables=training.tables,
        exchange=training.exchange,
    )
    return planner.plan(job.task)


def jobs_of(config: Config, data: Path, out: Path | None) -> Iterator[Job]:
    """The models that a config trains. Raises ConfigError if it trains none."""
    if isinstance(config, StudyConfig):
        yield from (_upstream(upstream, data, out) for upstream in config.upstreams)
        yield _ranker("rankers", config.rankers, data)
    elif isinstance(config, UpstreamConfig):
        yield _upstream(config, data, out)
    elif isinstance(config, RefreshConfig):
        yield _upstream(config.upstream, data, out)
    elif isinstance(config, RankerConfig):
        yield _ranker(f"rankers {config.name}", config, data)
    else:
        raise ConfigError("plan takes the config of a study, an upstream, a refresh or of rankers")


def _upstream(upstream: UpstreamConfig, data: Path, out: Path | None) -> Job:
    schema, files = upstream_schema(upstream, data, out), find_files(data, upstream.source.events)
    if out is not None:
        upstream = sized_upstream(upstream, out)
    elif upstream.kind == "graph":  # without what anchors may add
        rows = count_nodes(replace(upstream.graph, anchors={}), data, files, "")
        upstream = replace(upstream, graph=replace(upstream.graph, rows=dict(rows)))
    if upstream.kind == "graph":
        counted: Tables = {key_of(feature): 1 for feature in unsized(schema)}
    else:
        counted = count_tables(files, schema, NOTHING) if unsized(schema) else {}
    task = nn.ModuleDict({"model": build_upstream(upstream, with_tables(schema, counted))})
    return Job(f"upstream {upstream.name}", task, upstream.training)


def _ranker(name: str, rankers: RankerSettings, data: Path) -> Job:
    """One without vectors: what its arms read of the store lies in the store, but for what `gpu_bytes` gives it. What a
    training gives it where nothing is said, an eighth of a GPU at the most, is not known without the store."""
    labels = tuple(rankers.tasks.values())
    schema = ranker_schema(rankers, data, labels)
    if unsized(schema):
        schema = with_tables(schema, counted_tables(rankers, data, NOTHING, told=False))
    task = nn.ModuleDict({"model": build_ranker(schema, rankers.network, tasks=len(labels))})
    return Job(name, task, rankers.training, rankers.gpu_bytes)


def tables_of(job: Job, planned: Planned) -> Table:
    """A line a table, of the largest, for people."""
    sizes = table_sizes(job.task)
    rest = sizes[_SHOWN:]
    shown = Table(title=job.name, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("table", "rows x dim"):
        shown.add_column(name, no_wrap=True)
    for name in ("ids a row", "memory", "sharding", "ranks", "largest shard"):
        shown.add_column(name, overflow="fold")
    options = {option.name: option for option in planned.options}
    for size in sizes[:_SHOWN]:
        option = options[size.name]
        fused = option.compute_kernel == EmbeddingComputeKernel.FUSED.value
        shard = max(option.shards, key=lambda x: x.size[0] * x.size[1])
        shown.add_row(
            size.name,
            f"{size.rows:,} x {size.dim}" + ("" if size.itemsize == 4 else ", float16"),
            f"{sum(size.ids_a_row):g}",
            gib(size.bytes),
            option.sharding_type.replace("_", "-") + ("" if fused else f", {option.compute_kernel}"),
            f"{len({x.rank for x in option.shards}):,}",
            gib(shard.size[0] * (shard.size[1] * size.itemsize + 4)),
        )
    if rest:
        shown.caption = f"and {len(rest)} smaller ones, {gib(sum(size.bytes for size in rest))} together"
    return shown


def _ranks_of(job: Job, planned: Planned, cluster: Cluster) -> str:
    """What a rank holds, and the estimate of a step, in two sentences."""
    dense = sum(x.numel() for name, x in job.task.named_parameters() if not x.is_meta) * _DENSE_BYTES
    options, ranks = planned.options, _sharers(job, cluster)
    hbm = _per_rank(options, ranks, lambda shard: shard.storage.hbm)
    host = _per_rank(options, ranks, lambda shard: shard.storage.ddr)
    compute = _per_rank(options, ranks, lambda x: x.perf.fwd_compute + x.perf.bwd_compute)
    talk = _per_rank(options, ranks, lambda x: x.perf.fwd_comms + x.perf.bwd_comms + x.perf.input_dist_comms)
    batch = job.training.batch_size or job.training.LARGEST
    step = (compute + talk).max()
    share = talk.max() / step if step else 0.0
    return (
        f"A rank holds at most {gib(int(hbm.max()))} of tables and their buffers on its GPU (in the mean "
        f"{gib(int(hbm.mean()))}), {gib(int(host.max()))} in host memory, and {gib(dense)} of dense parameters with "
        f"gradients and AdamW; it may use {gib(job.room(cluster))}.\n"
        f"A step of {batch:,} rows a rank: the tables' part is estimated at {step:.3f} ms on the slowest rank, "
        f"{share:.0%} of it communication.\n"
    )


def _sharers(job: Job, cluster: Cluster) -> int:
    """Ranks that have all tables together."""
    return min(job.training.group_ranks or cluster.world_size, cluster.world_size)


def _per_rank(options: Sequence[ShardingOption], ranks: int, of: Callable[[Shard], float]) -> np.ndarray:
    """Sums over each rank's shards, float64 [ranks]."""
    total = np.zeros(ranks)
    for option in options:
        for shard in option.shards:
            total[shard.rank] += of(shard)
    return total
