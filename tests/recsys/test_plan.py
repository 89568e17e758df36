"""`recsys plan`, as its user meets it: what is printed, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from recsys import cli
from recsys.cluster import Cluster
from recsys.config import ConfigError, GraphConfig, TableConfig
from recsys.plan import jobs_of, plan
from recsys.train.planning import PlanError
from tests.recsys.refresh.example import CONFIG, write_log
from tests.recsys.refresh.test_kinds import graph_config


def test_a_cluster_is_planned_for_without_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, config = write_log(tmp_path / "data"), tmp_path / "upstream.toml"
    CONFIG.upstreams[0].save(config)
    cli.plan(config, data=data, cluster=Cluster(world_size=16))
    said = " ".join(capsys.readouterr().out.split())
    assert "upstream ctr" in said
    assert "A rank holds at most" in said
    assert "of it communication" in said


def test_what_a_row_reads_and_how_tiny_tables_lie_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, config = write_log(tmp_path / "data"), tmp_path / "upstream.toml"
    training = replace(CONFIG.upstreams[0].training, tables={"user_seen": TableConfig(dtype="float16")})
    replace(CONFIG.upstreams[0], training=training).save(config)
    cli.plan(config, data=data, cluster=Cluster(world_size=16))
    said = {words[0]: words for line in capsys.readouterr().out.splitlines() if (words := line.split())}
    assert said["user_seen"][1:6] == ["30", "x", "8,", "float16", "4"], "as many as `max_length`"
    assert said["user_user_id"][1:5] == ["51", "x", "8", "1"]
    assert "data-par" in " ".join(said["context_hour"])


def test_large_tables_are_spread_and_what_is_asked_for_is_done(tmp_path: Path) -> None:
    data = write_log(tmp_path / "data")
    graph = GraphConfig(**{**vars(graph_config().upstream.graph), "dim": 64})
    large = replace(graph, rows={"user": 450_000_000, "item": 1_000_000_000, "tag": 1_000})
    upstream = graph_config(large).upstream
    (job,) = jobs_of(upstream, data, None)
    with pytest.raises(PlanError, match=r"need 351\.\d\d GiB .* 2 ranks of 59.60 GiB each cannot hold them: node_item"):
        plan(job, Cluster(world_size=2))
    options = {x.name: x for x in plan(job, Cluster(world_size=64)).options}
    assert options["node_item"].sharding_type == "row_wise"
    assert len({shard.rank for shard in options["node_item"].shards}) == 64
    (job,) = jobs_of(replace(upstream, training=replace(upstream.training, group_ranks=8)), data, None)
    options = {x.name: x for x in plan(job, Cluster(world_size=64)).options}
    assert len({shard.rank for shard in options["node_item"].shards}) == 8, "of a group; each has all tables"
    with pytest.raises(PlanError, match="group_ranks is 8, but there are 12 ranks"):
        plan(job, Cluster(world_size=12))
    cached = TableConfig(sharding="row_wise", kernel="fused_uvm_caching", cached=0.1)
    training = replace(
        upstream.training, tables={"node_item": cached, "node_user": replace(cached, kernel="fused_uvm")}
    )
    (job,) = jobs_of(replace(upstream, training=training), data, None)
    options = {x.name: x for x in plan(job, Cluster(world_size=2, host_gb=2_000)).options}
    assert options["node_item"].compute_kernel == "fused_uvm_caching"
    held = [shard.storage for shard in options["node_item"].shards]
    assert all(each.hbm < 0.2 * each.ddr for each in held), "a tenth of the rows lies on the GPUs"


def test_what_a_gpu_holds_of_the_store_is_not_for_tables(tmp_path: Path) -> None:
    data = write_log(tmp_path / "data")
    rankers = replace(CONFIG.rankers, gpu_bytes=60 * 10**9)
    jobs = [list(jobs_of(replace(CONFIG, rankers=each), data, None))[-1] for each in (CONFIG.rankers, rankers)]
    assert [job.room(Cluster(world_size=1, hbm_gb=80)) for job in jobs] == [64 * 10**9, 4 * 10**9]
    with pytest.raises(PlanError, match=r"1 ranks of 0\.00 MiB each cannot hold them"):
        plan(jobs[1], Cluster(world_size=1, local_world_size=1, hbm_gb=75))


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    data, config = write_log(tmp_path / "data"), tmp_path / "upstream.toml"
    CONFIG.upstreams[0].save(config)
    with pytest.raises(PlanError, match="upstream ctr: the embedding tables need"):
        cli.plan(config, data=data, cluster=Cluster(world_size=1, local_world_size=1, hbm_gb=1e-6))
    with pytest.raises(ConfigError, match="--world-size is 12, --local-world-size 8: give whole machines"):
        cli.plan(config, data=data, cluster=Cluster(world_size=12))
    with pytest.raises(ConfigError, match="--hbm-gb is 0; use more than 0"):
        cli.plan(config, data=data, cluster=Cluster(world_size=8, hbm_gb=0))
