"""Steps of several batches: the dense parameters are those of larger batches, also after a stop in between."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.config import ConfigError, TableConfig, TrainConfig
from recsys.data.batch import Batch
from recsys.train.accumulation import Accumulation
from recsys.train.distributed import Environment, current_environment
from recsys.train.interrupt import Interrupted
from recsys.train.trainer import fit
from tests.distributed import run_ranks
from tests.recsys.train.toy import TASKS, ListStream, join, make_stream, make_task

PARTS = 5
"""Of a pass: two steps of two, and one of one."""
LARGE = TrainConfig(sparse_lr=1e-9, dense_lr=0.05, weight_decay=0.1, log_every=1, checkpoint_every=0)
SMALL = replace(LARGE, accumulate=2)


def parts(rank: int = 0) -> list[Batch]:
    return make_stream(PARTS, rank=rank, rows=8, all_valid=True).batches


def joined(parts: list[Batch]) -> list[Batch]:
    return [join(parts[0], parts[1]), join(parts[2], parts[3]), parts[4]]


def trained(batches: list[Batch], config: TrainConfig, *, passes: int = 2) -> dict[str, Tensor]:
    """What is no sharded table, after two passes."""
    stream = ListStream(batches, passes)
    model = fit(make_task(dropout=0.0), stream, config, current_environment(), tasks=TASKS, title=None).model
    state = model.state_dict()
    return {name: value.clone() for name, value in state.items() if not isinstance(value, ShardedTensor)}


def test_steps_are_those_of_larger_batches(environment: Environment) -> None:
    wanted, found = trained(joined(parts()), LARGE), trained(parts(), SMALL)
    assert len(found) == 4
    begun = make_task(dropout=0.0).state_dict()
    for name, value in wanted.items():
        assert not torch.allclose(value, begun[name], atol=0.01), "it was trained"
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def both(tables: dict[str, TableConfig]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """With larger batches and with smaller ones on this rank."""
    mine = [unseen(batch) for batch in parts(current_environment().rank)]
    large, small = (replace(x, tables=tables, sparse_lr=0.3) for x in (LARGE, SMALL))
    return trained(joined(mine), large), trained(mine, small)


def unseen(batch: Batch) -> Batch:
    """The batch without a sequence, whose table cannot be replicated."""
    kept = batch.sparse.to_dict()
    none = torch.zeros(len(batch), dtype=torch.int32)
    sparse = KeyedJaggedTensor(
        keys=["user", "item", "seen"],
        values=torch.cat([kept[key].values() for key in ("user", "item")]),
        lengths=torch.cat([*(kept[key].lengths() for key in ("user", "item")), none]),
    )
    return replace(batch, sparse=sparse)


def test_replicated_tables_accumulate_as_well() -> None:
    tables = {name: TableConfig(sharding="data_parallel") for name in ("t_user", "t_item")}
    results = run_ranks(both, 2, tables)
    assert len(results[0][0]) == 6
    for wanted, found in results:
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
            assert torch.equal(found[name], results[0][1][name]), "the ranks agree"


def test_a_stop_waits_for_a_whole_step(environment: Environment, tmp_path: Path) -> None:
    options = {"tasks": TASKS, "title": None}
    whole = trained(parts(), SMALL)
    stopped = ListStream(parts(), 2, stop_at=2)  # read ahead: during the first batches
    with pytest.raises(Interrupted):
        fit(make_task(dropout=0.0), stopped, SMALL, environment, out=tmp_path, **options)
    assert [int(path.name[5:]) % PARTS % 2 for path in (tmp_path / "checkpoints").glob("step-*")] == [0]
    result = fit(make_task(dropout=0.0), ListStream(parts(), 2), SMALL, environment, out=tmp_path, **options)
    assert result.steps == 2 * PARTS
    for name, value in whole.items():
        torch.testing.assert_close(result.model.state_dict()[name], value)


@pytest.mark.parametrize(
    ("begun", "shares"), [(0, [4, 4, 4, 4, 4, 4, 4, 4, 2, 2]), (7, [1, 2, 2]), (4, [4, 4, 4, 4, 2, 2]), (9, [1])]
)
def test_what_others_left_of_a_pass_may_begin_within_a_step(begun: int, shares: list[int]) -> None:
    """Two passes of ten batches: each has its share of as many as make its step."""
    accumulation, found = Accumulation(4, 10), []
    pipeline = SimpleNamespace(progress=lambda _: found.append(round(1 / accumulation._share)))
    optimizer = SimpleNamespace(step=lambda: None, zero_grad=lambda **_: None)
    accumulation.wrap(cast(Any, pipeline), cast(Any, optimizer), torch.nn.Linear(1, 1))
    for position in range(begun, 20):
        accumulation.progress(cast(Any, pipeline), iter(()), position)
    assert found == [*shares, *[4] * 8, 2, 2]


def test_less_than_one_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match="accumulate is 0; use 1 or more"):
        TrainConfig(accumulate=0)
