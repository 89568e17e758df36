"""A training that goes on from a checkpoint is the unbroken one to the last bit, on more than two ranks as well."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from recsys.config import TrainConfig
from recsys.train.distributed import current_environment
from recsys.train.interrupt import Interrupted
from recsys.train.shards import local_parts
from recsys.train.trainer import fit
from tests.distributed import run_ranks
from tests.recsys.train.toy import TASKS, make_stream, make_task

CONFIG = TrainConfig(batch_size=32, log_every=1, checkpoint_every=0, sparse_lr=0.1, dense_lr=0.01)


def trained(out: Path, stop_at: int | None = None) -> dict[str, Tensor]:
    """This rank's part of the model."""
    environment = current_environment()
    stream = make_stream(4, epochs=2, rank=environment.rank, stop_at=stop_at)
    model = fit(make_task(), stream, CONFIG, environment, tasks=TASKS, out=out, title=None).model
    parts = {name: local_parts(value) for name, value in model.state_dict().items()}
    return {f"{name} {at}": part.clone() for name, found in parts.items() for part, at in found}


def broken_and_not(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    whole = trained(folder / "whole")
    with pytest.raises(Interrupted):
        trained(folder / "broken", stop_at=3)
    return whole, trained(folder / "broken")


@pytest.mark.parametrize("ranks", [3, pytest.param(4, marks=pytest.mark.long)])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, ranks: int) -> None:
    for whole, resumed in run_ranks(broken_and_not, ranks, tmp_path):
        assert whole.keys() == resumed.keys()
        assert [name for name, value in whole.items() if not torch.equal(resumed[name], value)] == []
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "broken")]
    assert len(lines[0]) == len(lines[1]) == 8
