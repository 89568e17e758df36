"""A training that goes on from a checkpoint is the unbroken one to the last bit, on more than two ranks as well."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchrec.modules.embedding_configs import PoolingType

from recsys.config import TableConfig, TrainConfig
from recsys.train.distributed import current_environment
from recsys.train.interrupt import Interrupted
from recsys.train.rounding import average_in_order, data_parallel
from recsys.train.sharding import shard
from recsys.train.shards import local_parts
from recsys.train.trainer import fit
from tests.distributed import run_ranks
from tests.recsys.train.toy import TASKS, make_stream, make_task

CONFIG = TrainConfig(batch_size=32, log_every=1, checkpoint_every=0, sparse_lr=0.1, dense_lr=0.01)
REPLICATED = {name: TableConfig(sharding="data_parallel") for name in ("t_user", "t_item")}
OF_TWO = replace(CONFIG, accumulate=2)
STOP_AT = 3
"""It is read ahead: the training stops after two steps, in the middle of the first pass."""


def trained(out: Path, config: TrainConfig, stop_at: int | None = None) -> dict[str, Tensor]:
    """This rank's part of the model; its tables are pooled in two ways, and so are two parameters where replicated."""
    environment = current_environment()
    stream = make_stream(4, epochs=2, rank=environment.rank, stop_at=stop_at)
    task = make_task(items=PoolingType.MEAN)
    model = fit(task, stream, config, environment, tasks=TASKS, out=out, title=None).model
    parts = {name: local_parts(value) for name, value in model.state_dict().items()}
    return {f"{name} {at}": part.clone() for name, found in parts.items() for part, at in found}


def broken_and_not(folder: Path, config: TrainConfig) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    whole = trained(folder / "whole", config)
    with pytest.raises(Interrupted):
        trained(folder / "broken", config, stop_at=STOP_AT)
    return whole, trained(folder / "broken", config)


@pytest.mark.parametrize(
    ("ranks", "config"),
    [
        (3, replace(CONFIG, tables=REPLICATED)),
        (2, OF_TWO),
        pytest.param(3, replace(OF_TWO, tables=REPLICATED), marks=pytest.mark.long),
        pytest.param(4, CONFIG, marks=pytest.mark.long),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, ranks: int, config: TrainConfig) -> None:
    for whole, resumed in run_ranks(broken_and_not, ranks, tmp_path, config):
        assert whole.keys() == resumed.keys()
        assert [name for name, value in whole.items() if not torch.equal(resumed[name], value)] == []
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "broken")]
    assert len(lines[0]) == len(lines[1]) == 8


def averaged() -> tuple[list[Tensor], list[Tensor], list[Tensor], int]:
    """This rank's own gradients of a network whose parameters no number of ranks divides; DistributedDataParallel's
    mean of them and the one here; and how many parts of a model with replicated tables have theirs averaged."""
    environment, network = current_environment(), nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1))
    torch.manual_seed(environment.rank)
    rows, found = torch.randn(11, 5), []
    with torch.no_grad():
        for parameter in network.parameters():
            dist.broadcast(parameter, src=0)
    for model in (network, DistributedDataParallel(network)):
        model(rows).square().sum().backward()
        found.append([x.grad.clone() for x in network.parameters()])
        network.zero_grad()
    model = DistributedDataParallel(network)
    averaging = average_in_order(model, waiting=True)
    for averaging.waits in (True, False):  # the first pass adds to the second what each rank has kept
        model(rows).square().sum().backward()
    found.append([x.grad / 2 for x in network.parameters()])
    task = shard(make_task(items=PoolingType.MEAN), environment, sparse_lr=0.1, tables=REPLICATED)
    return (*found, len(data_parallel(task)))


@pytest.mark.parametrize("ranks", [3, pytest.param(4, marks=pytest.mark.long)])
def test_the_mean_is_the_mean(ranks: int) -> None:
    results = run_ranks(averaged, ranks)
    own = [torch.stack(x) for x in zip(*(mine for mine, *_ in results), strict=True)]
    for _, others, ours, parts in results:
        assert parts == 2
        for each, other, mean, first in zip(own, others, ours, results[0][2], strict=True):
            torch.testing.assert_close(other, each.mean(0))
            torch.testing.assert_close(mean, each.mean(0))
            assert torch.equal(mean, first), "ranks agree"
