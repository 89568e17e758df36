"""Groups of ranks through the training loop: checkpoints that anybody reads, and a training that goes on."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from recsys.config import ConfigError, TableConfig, TrainConfig
from recsys.train.checkpoint import load_model
from recsys.train.distributed import current_environment
from recsys.train.tables import allocate
from recsys.train.trainer import fit
from tests.distributed import run_ranks
from tests.recsys.train.test_shardings import whole
from tests.recsys.train.toy import TASKS, make_stream, make_task

CONFIG = TrainConfig(
    sparse_lr=0.3,
    dense_lr=0.05,
    log_every=1,
    checkpoint_every=2,
    group_ranks=2,
    tables={"t_user": TableConfig(sharding="row_wise"), "t_item": TableConfig(sharding="table_wise")},
)


def trained(folder: Path) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """The tables of a whole training, of one that goes on after half of it, and of one with fewer means; what a plain
    model reads of the first's checkpoint."""
    environment, found = current_environment(), []
    for name, config in (("whole", CONFIG), ("again", CONFIG), ("rarely", replace(CONFIG, sync_every=3))):
        if name == "again" and environment.is_main:
            kept = folder / "whole/checkpoints/step-00000002"
            shutil.copytree(kept, folder / "again/checkpoints" / kept.name)
        torch.distributed.barrier()
        stream = make_stream(4, rank=environment.rank, rows=8)
        task = make_task(dropout=0.0)
        model = fit(task, stream, config, environment, tasks=TASKS, title=None, out=folder / name).model
        found.append({name: whole(value).clone() for name, value in model.state_dict().items()})
    plain = allocate(make_task())
    load_model(folder / "whole/checkpoints", plain)
    return found, plain.state_dict()


def test_groups_go_on_from_a_checkpoint_that_a_plain_model_reads(tmp_path: Path) -> None:
    results = run_ranks(trained, 4, tmp_path)
    (wanted, again, rarely), plain = results[0]
    assert len(wanted) == 7
    for name, value in wanted.items():
        torch.testing.assert_close(again[name], value)
        torch.testing.assert_close(plain[name], value)
        for others, _ in results[1:]:
            assert torch.equal(others[0][name], value), "all groups have the same"
            assert torch.equal(others[2][name], rarely[name]), "also at the end of those that mean rarely"
    assert any(not torch.equal(rarely[name], value) for name, value in wanted.items())


def test_settings_that_cannot_work() -> None:
    with pytest.raises(ConfigError, match="sync_every is 0; use 1 or more"):
        TrainConfig(sync_every=0)
    with pytest.raises(ConfigError, match="group_ranks is -1; use 0 or more"):
        TrainConfig(group_ranks=-1)
