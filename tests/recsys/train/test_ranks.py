"""What needs two ranks. Few calls of `run_ranks`, each with many checks: starting two processes takes seconds."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from recsys.config import TableConfig, TrainConfig
from recsys.train import checkpoint, pieces
from recsys.train.agreement import RanksDifferError
from recsys.train.checkpoint import CheckpointError
from recsys.train.distributed import Environment, current_environment
from recsys.train.interrupt import Interrupted
from recsys.train.optimizer import build_optimizer
from recsys.train.planning import PlanError
from recsys.train.predict import predict
from recsys.train.running_metrics import LossError
from recsys.train.sharding import shard
from recsys.train.trainer import fit
from tests.distributed import run_ranks
from tests.recsys.train.toy import DIM, ROWS, TASKS, ListStream, join, make_stream, make_task, plain_task, whole_state

CONFIG = TrainConfig(batch_size=32, log_every=1, checkpoint_every=3, sparse_lr=0.1, dense_lr=0.01)
IDENTITY = {"files": {"a.parquet": "1"}, "config": {"x": "y"}}
START = "one/checkpoints/step-00000003"
PLANS = {
    "t_user": TableConfig(sharding="row_wise"),
    "t_item": TableConfig(sharding="table_wise"),
    "t_seen": TableConfig(sharding="row_wise"),
}


def records(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "samples_per_second"} for line in lines]


def step(environment: Environment, model: torch.nn.Module, optimizer: Any) -> None:
    """One step on a global batch that is the same on any number of ranks."""
    model.eval()
    batches = make_stream(2, all_valid=True).batches
    batch = batches[environment.rank] if environment.world_size == 2 else join(*batches)
    optimizer.zero_grad()
    model(batch)[0].backward()
    optimizer.step()


def load_and_step(path: Path, environment: Environment, folder: Path) -> Path:
    """Load a checkpoint of another world size, save it again as step 1, take a step, save that as step 2."""
    two = environment.world_size == 2
    model = shard(make_task(seed=8), environment, sparse_lr=0.1, tables=PLANS if two else {})
    optimizer = build_optimizer(model, dense_lr=0.01, sparse_lr=0.1)
    checkpoint.restore(path, model=model, optimizer=optimizer, environment=environment)
    options = {"model": model, "optimizer": optimizer, "metrics": {}, "progress": {}, "environment": environment}
    with patch.object(pieces, "PIECE_BYTES", 3 * 4 * DIM):
        checkpoint.save(folder, 1, **options)
    step(environment, model, optimizer)
    return checkpoint.save(folder, 2, **options)


def on_two_ranks(folder: Path) -> dict[str, Any]:
    environment = current_environment()
    load_and_step(folder / START, environment, folder / "two")
    rank, found = environment.rank, {}

    def run(name: str, *, dropout: float = 0.2, **options: Any):
        out, stream = folder / name, make_stream(4, epochs=2, rank=rank, **options)
        task, options = make_task(dropout=dropout), {"tasks": TASKS, "identity": IDENTITY, "out": out, "title": None}
        return fit(task, stream, CONFIG, environment, **options)

    found["whole"] = run("whole").steps
    try:
        run("broken", stop_at=6 if rank == 1 else None)
    except Interrupted as interrupted:
        found["interrupted"] = str(interrupted)
    run("broken")
    run("parity", dropout=0.0, all_valid=True)
    poisoned = make_stream(3, rank=rank)
    poisoned.batches[1].dense["context"][:] = float("nan") if rank == 1 else 0.0
    with pytest.raises(LossError) as loss_error:
        fit(make_task(), poisoned, CONFIG, environment, tasks=TASKS, out=folder / "poisoned", title=None)
    strange = {**IDENTITY, "config": {"x": "yz"[rank]}}
    with pytest.raises(RanksDifferError) as other_config:
        fit(make_task(), make_stream(3, rank=rank), CONFIG, environment, tasks=TASKS, identity=strange, title=None)
    found["other config"] = str(other_config.value)
    own = replace(CONFIG, log_every=1 + rank)
    with pytest.raises(RanksDifferError, match="with other training than rank 0: log_every was 1, is 2 there"):
        fit(make_task(), make_stream(3, rank=rank), own, environment, tasks=TASKS, title=None)
    with pytest.raises(PlanError) as plan_error:
        shard(make_task(), environment, sparse_lr=0.1, memory=1000)
    with patch.dict(ROWS, seen=1, item=1):  # fewer rows than ranks
        options = {"tasks": TASKS, "out": folder / "small", "title": None}
        fit(make_task(), make_stream(2, rank=rank), CONFIG, environment, **options)
        found["small"] = fit(make_task(), make_stream(2, rank=rank), CONFIG, environment, **options).steps
        with pytest.raises(PlanError) as row_error:
            shard(make_task(), environment, sparse_lr=0.1, tables={"t_seen": TableConfig(sharding="row_wise")})
    found["errors"] = [str(loss_error.value), str(plan_error.value), str(row_error.value)]
    if rank == 0:  # a plain module is loaded without the other ranks
        checkpoint.load_model(folder / "parity/checkpoints", plain_task())
    model = shard(make_task(), environment, sparse_lr=0.1)
    checkpoint.load_model(folder / "parity/checkpoints", model)
    found["predicted"] = predict(model, make_stream(2 + rank, rank=rank, rows=5 + rank), environment)
    return found


@pytest.fixture(scope="module")
def trained(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder in which two ranks did all of `on_two_ranks`, and what they returned."""
    folder = tmp_path_factory.mktemp("ranks")
    config = replace(CONFIG, checkpoint_every=0)
    fit(make_task(), make_stream(3), config, environment, tasks=TASKS, out=folder / "one", title=None)
    return folder, run_ranks(on_two_ranks, 2, folder)


def test_resumed_run_is_the_uninterrupted_one(trained: tuple[Path, list[dict[str, Any]]]):
    folder, (first, second) = trained
    assert first["whole"] == second["whole"] == 8
    assert "stopped by SIGTERM after step 5 of 8" in first["interrupted"]
    assert "step-00000005" in first["interrupted"]
    assert records(folder / "broken") == records(folder / "whole")
    assert [record["step"] for record in records(folder / "whole")] == list(range(1, 9))


def test_ranks_of_other_configs_are_told(trained: tuple[Path, list[dict[str, Any]]]):
    told = {found["other config"] for found in trained[1]}
    assert told == {
        "rank 1 was started with other config than rank 0: x was y, is z there. Give all machines the same config, "
        "data folder and version of this package"
    }


def test_two_ranks_train_as_one(trained: tuple[Path, list[dict[str, Any]]], environment: Environment):
    folder, _ = trained
    streams = [make_stream(4, rank=rank, all_valid=True) for rank in (0, 1)]
    batches = [join(*pair) for pair in zip(*(stream.batches for stream in streams), strict=True)]
    alone = fit(make_task(dropout=0.0), ListStream(batches, 2), CONFIG, environment, tasks=TASKS, title=None)
    together = plain_task(seed=4)
    assert checkpoint.load_model(folder / "parity/checkpoints", together).step == 8
    for name, value in whole_state(alone.model).items():
        torch.testing.assert_close(together.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)
    last = records(folder / "parity")[-1]
    for key in ("loss", "ne/ctr", "lifetime_auc/cvr"):
        assert last[key] == pytest.approx(alone.metrics[key], rel=1e-4)


def test_one_ranks_trouble_is_every_ranks(trained: tuple[Path, list[dict[str, Any]]]):
    folder, (first, second) = trained
    assert first["errors"] == second["errors"]
    assert "not finite at step 2" in first["errors"][0]
    assert "2 ranks of" in first["errors"][1]
    assert "table 't_seen' has 1 rows: row-wise over 2 ranks" in first["errors"][2]
    assert not (folder / "poisoned/checkpoints").exists()


def test_tables_with_fewer_rows_than_ranks(trained: tuple[Path, list[dict[str, Any]]]):
    _, (first, second) = trained
    assert first["small"] == second["small"] == 2


def test_each_rank_keeps_what_is_predicted_of_its_rows(
    trained: tuple[Path, list[dict[str, Any]]], environment: Environment
):
    """Of one that has a batch less than the other as well: a forward of sharded tables is a collective."""
    folder, results = trained
    task = plain_task()
    checkpoint.load_model(folder / "parity/checkpoints", task)
    for rank, result in enumerate(results):
        expected = predict(task, make_stream(2 + rank, rank=rank, rows=5 + rank), environment)
        for found, wanted in zip(result["predicted"], expected, strict=True):
            torch.testing.assert_close(found, wanted)


def all_tensors(path: Path, environment: Environment) -> dict[str, torch.Tensor]:
    """Model and optimizer of a checkpoint as whole tensors."""
    model = shard(make_task(seed=1), environment, sparse_lr=0.1)
    optimizer = build_optimizer(model, dense_lr=0.01, sparse_lr=0.1)
    checkpoint.restore(path, model=model, optimizer=optimizer, environment=environment)
    tensors = dict(whole_state(model))
    for name, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            local = value.local_shards()[0].tensor if hasattr(value, "local_shards") else value
            tensors[f"{name}/{key}"] = local
    return {name: tensor.clone() for name, tensor in tensors.items()}


def test_checkpoints_move_between_world_sizes(trained: tuple[Path, list[dict[str, Any]]], environment: Environment):
    folder, _ = trained
    start, two, back = folder / START, folder / "two", folder / "back"
    load_and_step(two / "step-00000001", environment, back)
    wanted = all_tensors(start, environment)
    assert any("momentum1" in name and tensor.abs().sum() > 0 for name, tensor in wanted.items())
    for copy in (two / "step-00000001", back / "step-00000001"):  # 1 -> 2 ranks, 1 -> 2 -> 1
        found = all_tensors(copy, environment)
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert torch.equal(found[name], tensor), name
    on_two, on_one = (all_tensors(folder / "step-00000002", environment) for folder in (two, back))
    for name, tensor in on_one.items():  # and both go on alike
        torch.testing.assert_close(on_two[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_a_run_goes_on_with_fewer_ranks(trained: tuple[Path, list[dict[str, Any]]], environment: Environment):
    folder, _ = trained
    (newest := folder / "broken/checkpoints/step-00000008").rename(newest.with_name("set-aside"))
    stream = make_stream(8, epochs=2)  # half the ranks: twice the batches of the same events
    options = {"tasks": TASKS, "out": folder / "broken", "title": None}
    with pytest.raises(CheckpointError, match=r"files: a.parquet was 1, is 2"):
        fit(make_task(), stream, CONFIG, environment, identity={"files": {"a.parquet": "2"}}, **options)
    result = fit(make_task(), stream, CONFIG, environment, identity=IDENTITY, **options)
    assert result.steps == 6 + 16 - 12
    assert result.metrics["epoch"] == 2.0
