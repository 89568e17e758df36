"""Every sharding type of TorchRec that trains by the fused optimizer: the same losses and tables as on one rank."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer

from recsys.config import ConfigError, TableConfig, TrainConfig
from recsys.data.batch import Batch
from recsys.train.checkpoint import load_model, restore, save
from recsys.train.distributed import Environment, current_environment
from recsys.train.optimizer import build_optimizer
from recsys.train.planning import PlanError
from recsys.train.replicas import average
from recsys.train.sharding import plan_record, shard
from recsys.train.shards import is_sharded, local_parts
from recsys.train.tables import allocate, draw_tables
from tests.distributed import run_ranks
from tests.recsys.train.toy import join, make_stream, make_task

STEPS, PARTS = 4, 4


def tables_of(kind: str, columns: int) -> dict[str, TableConfig]:
    """Of bags the kind, of the sequence the one that comes nearest."""
    near = "column_wise" if columns else "row_wise"
    settings = {"t_user": kind, "t_item": kind, "t_seen": near}
    return {name: TableConfig(sharding=x, columns=columns) for name, x in settings.items()}


def trained(
    tables: dict[str, TableConfig],
    local: int | None = None,
    exchange: str = "float32",
    group_ranks: int = 0,
    shared: int = 0,
) -> tuple[list[float], dict[str, Tensor], set[str]]:
    """The mean losses of some steps on one log, however many ranks share it; the whole tables after it; their kinds."""
    if local:
        os.environ["LOCAL_WORLD_SIZE"] = str(local)  # as if there were several machines
    environment = current_environment()
    sharers = shared or environment.world_size  # as many ranks share the log, others have it again
    mine = range(environment.rank % sharers, PARTS, sharers)
    parts = [make_stream(STEPS, rank=part, rows=8, all_valid=True).batches for part in mine]
    model = draw_tables(
        shard(
            make_task(dropout=0.0),
            environment,
            sparse_lr=0.3,
            tables=tables,
            exchange=exchange,
            group_ranks=group_ranks,
        ),
        0,
    )
    optimizer, losses = build_optimizer(model, dense_lr=0.01, sparse_lr=0.3), []
    for step in range(STEPS):
        batch = parts[0][step]
        for part in parts[1:]:
            batch = join(batch, part[step])
        optimizer.zero_grad()
        loss, _ = model(batch)
        loss.backward()
        optimizer.step()
        average(model)
        total = loss.detach().clone()
        dist.all_reduce(total)
        losses.append(float(total) / environment.world_size)
    kinds = {x.sharding_type for plan in model.plan.plan.values() for x in plan.values()}
    return losses, {name: whole(value) for name, value in model.state_dict().items() if "embedding" in name}, kinds


def whole(value: Tensor) -> Tensor:
    """All of a table, on every rank."""
    if not is_sharded(value):
        return value
    rows, seen = torch.zeros(2, *value.size())  # of float16 as well
    for local, (row, column) in local_parts(value):
        at = slice(row, row + local.shape[0]), slice(column, column + local.shape[1])
        rows[at], seen[at] = local, 1
    dist.all_reduce(rows)
    dist.all_reduce(seen)  # 2D: as many ranks have it as there are groups
    return rows / seen


@pytest.mark.parametrize(
    ("kind", "ranks", "local", "columns"),
    [
        ("table_wise", 2, None, 0),
        ("data_parallel", 2, None, 0),
        ("data_parallel", 4, None, 0),
        ("row_wise", 4, None, 0),
        ("column_wise", 2, None, 4),
        ("table_row_wise", 4, 2, 0),
        ("table_column_wise", 4, 2, 4),
        ("grid_shard", 4, 2, 4),
    ],
)
def test_losses_and_tables_are_those_of_one_rank(kind: str, ranks: int, local: int | None, columns: int) -> None:
    tables = tables_of(kind, columns)
    ((expected, states, _),) = run_ranks(trained, 1, tables)
    results = run_ranks(trained, ranks, tables, local)
    for losses, found, kinds in results:
        assert kind in kinds
        torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
        for name, table in states.items():
            torch.testing.assert_close(found[name], table, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["table_wise", "row_wise", "data_parallel"])
def test_groups_with_the_same_rows_are_one_rank(kind: str) -> None:
    """Two groups of two ranks. Where both see the same rows their mean is what each has, and exact."""
    tables = tables_of(kind, 0)
    ((expected, states, _),) = run_ranks(trained, 1, tables)
    for losses, found, kinds in run_ranks(trained, 4, tables, None, "float32", 2, 2):
        assert kind in kinds
        torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
        for name, table in states.items():
            torch.testing.assert_close(found[name], table, rtol=1e-4, atol=1e-5)


def test_groups_with_their_own_rows_learn_much_the_same() -> None:
    """What they have is the mean of their steps, not the step of one rank with all rows."""
    tables = tables_of("row_wise", 0)
    ((expected, states, _),) = run_ranks(trained, 1, tables)
    results = run_ranks(trained, 4, tables, None, "float32", 2)
    for losses, found, _ in results:
        assert losses[0] == pytest.approx(expected[0], rel=1e-5), "nothing was learned yet"
        torch.testing.assert_close(losses, expected, rtol=0.1, atol=0.0)
        differs = [(found[name] - table).abs().max() for name, table in states.items()]
        assert max(differs) > 1e-3
        for name in states:
            assert torch.equal(found[name], results[0][1][name])


@pytest.mark.parametrize("kind", ["table_wise", "row_wise"])
def test_rows_may_cross_as_float16(kind: str) -> None:
    tables = tables_of(kind, 0)
    ((expected, states, _),) = run_ranks(trained, 1, tables)
    for losses, found, _ in run_ranks(trained, 2, tables, None, "float16"):
        assert losses != expected
        torch.testing.assert_close(losses, expected, rtol=1e-3, atol=1e-3)
        for name, table in states.items():
            torch.testing.assert_close(found[name], table, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("kind", ["table_wise", "row_wise"])
def test_tables_may_be_float16(kind: str) -> None:
    """Half as large; what they learn is that of float32 but for their rounding, on any number of ranks."""
    tables = tables_of(kind, 0)
    ((expected, states, _),) = run_ranks(trained, 1, tables)
    small = {name: replace(table, dtype="float16") for name, table in tables.items()}
    for ranks in (1, 2):
        for losses, found, _ in run_ranks(trained, ranks, small):
            assert losses != expected
            torch.testing.assert_close(losses, expected, rtol=2e-3, atol=2e-3)
            for name, table in states.items():
                torch.testing.assert_close(found[name], table, rtol=1e-2, atol=1e-2)


def test_a_float16_table_is_saved_and_read(environment: Environment, tmp_path: Path) -> None:
    half = {"t_user": TableConfig(dtype="float16")}
    model = draw_tables(shard(make_task(), environment, sparse_lr=0.1, tables=half), 3)
    optimizer = build_optimizer(model, dense_lr=0.1)
    assert plan_record(model)["t_user"]["dtype"] == "float16"
    assert plan_record(model)["t_item"]["dtype"] == "float32"
    step(model, optimizer, make_stream(1).batches[0])
    saved = {"model": model, "optimizer": optimizer, "metrics": {}, "progress": {}, "environment": environment}
    path = save(tmp_path, 1, **saved)
    name = "bags.embedding_bags.t_user.weight"
    wanted = model.state_dict()[name].local_shards()[0].tensor
    assert wanted.dtype == torch.float16
    plain = allocate(make_task())
    load_model(path, plain)
    assert torch.equal(plain.state_dict()[name], wanted.float())
    other = shard(make_task(), environment, sparse_lr=0.1)
    restore(path, model=other, optimizer=build_optimizer(other, dense_lr=0.1), environment=environment)
    assert torch.equal(other.state_dict()[name].local_shards()[0].tensor, wanted.float())


def test_what_a_table_cannot_have_is_told(environment: Environment) -> None:
    with pytest.raises(PlanError, match=r"tables names 't_usr', which the model lacks \(did you mean 't_user'\?\)"):
        shard(make_task(), environment, sparse_lr=0.1, tables={"t_usr": TableConfig()})
    with pytest.raises(PlanError, match="group_ranks is 2, but there are 1 ranks: use a divisor of them"):
        shard(make_task(), environment, sparse_lr=0.1, group_ranks=2)
    with pytest.raises(PlanError, match="exchange is 'bfloat16', which gloo does not carry: on a CPU use 'float16'"):
        shard(make_task(), environment, sparse_lr=0.1, exchange="bfloat16")
    with pytest.raises(ConfigError, match=r"exchange is 'float61' \(did you mean 'float16'\?\); use one of float32"):
        TrainConfig(exchange="float61")
    grid = TableConfig(sharding="grid_shard")
    with pytest.raises(PlanError, match=r"t_seen.sharding is 'grid_shard', but its rows are not pooled: use one of"):
        shard(make_task(), environment, sparse_lr=0.1, tables={"t_seen": grid})
    with pytest.raises(PlanError, match=r"t_seen.sharding is 'data_parallel', but its rows are not pooled"):
        shard(make_task(), environment, sparse_lr=0.1, tables={"t_seen": TableConfig(sharding="data_parallel")})
    with pytest.raises(PlanError, match=r"t_user.kernel is 'fused_uvm', but the ranks have no GPU"):
        shard(make_task(), environment, sparse_lr=0.1, tables={"t_user": TableConfig(kernel="fused_uvm")})
    with pytest.raises(ConfigError, match="dtype is 'float16', but sharding is 'data_parallel', whose steps"):
        TableConfig(sharding="data_parallel", dtype="float16")
    with pytest.raises(ConfigError, match=r"dtype is 'half'; use one of float32, float16"):
        TableConfig(dtype="half")
    with pytest.raises(ConfigError, match="kernel is 'fused_uvm', but sharding is 'data_parallel'"):
        TableConfig(sharding="data_parallel", kernel="fused_uvm")
    with pytest.raises(ConfigError, match=r"sharding is 'row_wize' \(did you mean 'row_wise'\?\); use one of"):
        TableConfig(sharding="row_wize")
    with pytest.raises(ConfigError, match="columns is 8, but sharding is 'row_wise'; use 0"):
        TableConfig(sharding="row_wise", columns=8)


def continued(folder: str) -> list[tuple[list[str], dict[str, Tensor]]]:
    """The kinds and tables of a model that was trained with replicated tables, saved, and goes on: with the same, with
    others, and back again."""
    environment, found = current_environment(), []
    batches = make_stream(6, rank=environment.rank, rows=8, all_valid=True).batches
    begun, own = None, [TableConfig(sharding=kind) for kind in ("data_parallel", "row_wise", "data_parallel")]
    for turn, how in enumerate(own):
        model = shard(make_task(dropout=0.0), environment, sparse_lr=0.3, tables={"t_user": how, "t_item": how})
        optimizer = build_optimizer(draw_tables(model, 0), dense_lr=0.01, sparse_lr=0.3)
        if begun is not None:
            restore(begun, model=model, optimizer=optimizer, environment=environment)
        for batch in batches[:3] if turn == 0 else ():
            step(model, optimizer, batch)
        paths = {"model": model, "optimizer": optimizer, "metrics": {}, "progress": {}, "environment": environment}
        begun = save(Path(folder), turn + 1, **paths)
        for batch in batches[3:]:
            step(model, optimizer, batch)
        tables = {name: whole(value) for name, value in model.state_dict().items() if "embedding" in name}
        found.append((sorted(x["sharding"] for x in plan_record(model).values()), tables))
    return found


def step(model: DistributedModelParallel, optimizer: CombinedOptimizer, batch: Batch) -> None:
    optimizer.zero_grad()
    model(batch)[0].backward()
    optimizer.step()


def test_a_checkpoint_of_replicated_tables_goes_on_with_others(tmp_path: Path) -> None:
    for same, other, back in run_ranks(continued, 2, str(tmp_path)):
        assert [x[0].count("data_parallel") for x in (same, other, back)] == [2, 0, 2]
        for name, table in same[1].items():
            torch.testing.assert_close(other[1][name], table, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(back[1][name], table, rtol=1e-4, atol=1e-5)


def tiny() -> set[str]:
    """The tables that the planner replicates by itself."""
    model = shard(make_task(), current_environment(), sparse_lr=0.1)
    with pytest.raises(ValueError, match=r"bags.t_user.weight.* are data-parallel: give sparse_lr"):
        build_optimizer(model, dense_lr=0.1)
    return {name for name, x in plan_record(model).items() if x["sharding"] == "data_parallel"}


def test_tiny_tables_are_replicated() -> None:
    assert run_ranks(tiny, 2) == [{"t_user", "t_item"}] * 2
