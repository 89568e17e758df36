import pytest
import torch
from rich.console import Console

from recsys.config import TableConfig
from recsys.train.distributed import Environment, current_environment
from recsys.train.optimizer import build_optimizer
from recsys.train.planning import PlanError
from recsys.train.sharding import plan_table, shard
from recsys.train.table_sizes import table_sizes
from recsys.train.tables import draw_tables
from tests.distributed import run_ranks
from tests.recsys.train.toy import ToyTask, make_stream, make_task, plain_task, whole_state


def test_tables_that_do_not_fit_are_named_with_their_bytes(environment: Environment):
    task = make_task(rows={"user": 3_000_000, "item": 64, "seen": 50})
    with pytest.raises(PlanError) as caught:
        shard(task, environment, sparse_lr=0.1, memory=50 << 20)
    message = str(caught.value)
    assert "t_user 3,000,000 x 8 = 103.00 MiB" in message
    assert "1 ranks of 50.00 MiB each cannot hold them" in message
    assert "more ranks" in message


def test_sizes_are_largest_first():
    sizes = table_sizes(ToyTask())
    assert [(size.name, size.rows, size.bytes) for size in sizes] == [
        ("t_user", 101, 101 * 9 * 4),
        ("t_item", 64, 64 * 9 * 4),
        ("t_seen", 50, 50 * 9 * 4),
    ]


def test_plan_is_a_small_table(environment: Environment):
    model = shard(ToyTask(), environment, sparse_lr=0.1)
    console = Console(width=100)
    with console.capture() as captured:
        console.print(plan_table(model))
    assert "t_user" in captured.get()
    assert "101 x 8" in captured.get()


def test_one_step_is_row_wise_adagrad_and_adamw(environment: Environment):
    batch = next(iter(make_stream(1)))
    plain, rate = plain_task(dropout=0.0), 0.1
    adamw = torch.optim.AdamW(plain.over.parameters(), lr=0.01, weight_decay=0.1)
    tables = {name: value for name, value in plain.named_parameters() if "embedding" in name}
    model = draw_tables(shard(make_task(dropout=0.0), environment, sparse_lr=rate), 0)
    optimizer = build_optimizer(model, dense_lr=0.01, weight_decay=0.1)
    before = {name: value.clone() for name, value in whole_state(model).items()}
    for name, value in plain.state_dict().items():
        assert torch.equal(value, before[name]), name  # same weights, untouched by building the optimizer
    accumulated = {name: torch.zeros(len(value)) for name, value in tables.items()}
    for _ in range(2):
        for loss, step in ((plain(batch)[0], adamw), (model(batch)[0], optimizer)):
            step.zero_grad()
            loss.backward()
            step.step()
        for name, value in tables.items():
            accumulated[name] += value.grad.square().mean(1)
            value.data -= rate * value.grad / (accumulated[name].sqrt() + 1e-8).unsqueeze(1)
            value.grad = None
    after = whole_state(model)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(after[name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert not torch.equal(after["bags.embedding_bags.t_user.weight"], before["bags.embedding_bags.t_user.weight"])


def test_frozen_parameters_stay(environment: Environment):
    task = make_task()
    task.over.net[0].requires_grad_(False)
    optimizer = build_optimizer(shard(task, environment, sparse_lr=0.1), dense_lr=0.01)
    assert not any("over.net.0" in name for name in optimizer.params)
    assert any("over.net.3" in name for name in optimizer.params)


def test_whole_tables_are_refused(environment: Environment):
    with pytest.raises(ValueError, match=r"the tables of 'bags' are on cpu: build them on \"meta\""):
        shard(plain_task(), environment, sparse_lr=0.1)


def drawn(ranks: int) -> dict[str, torch.Tensor]:
    """Every table that this rank has rows of -> the rows, row-wise and table-wise."""
    kinds = {"t_user": "row_wise", "t_item": "table_wise", "t_seen": "row_wise"} if ranks > 1 else {}
    plans = {name: TableConfig(sharding=kind) for name, kind in kinds.items()}
    rows = {"user": 10_001, "item": 64, "seen": 50}  # more than the rows of one random stream
    model = draw_tables(shard(make_task(rows=rows), current_environment(), sparse_lr=0.1, tables=plans), 7)
    tables = {name: value for name, value in model.state_dict().items() if "embedding" in name}
    return {
        name: torch.cat([x.tensor for x in value.local_shards()])
        for name, value in tables.items()
        if value.local_shards()
    }


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_number_of_ranks_draws_the_same_tables(ranks: int):
    parts = run_ranks(drawn, ranks, ranks)
    plain = draw_tables(make_task(rows={"user": 10_001, "item": 64, "seen": 50}), 7).state_dict()
    tables = {name: value for name, value in plain.items() if "embedding" in name}
    assert len(tables) == 3
    for name, table in tables.items():
        assert torch.equal(torch.cat([part[name] for part in parts if name in part]), table), name
        bound = len(table) ** -0.5
        assert -bound <= table.min() < -0.9 * bound
        assert 0.9 * bound < table.max() <= bound
        assert table.unique().numel() > 0.9 * table.numel()
    other = draw_tables(make_task(), 8).state_dict()
    assert not torch.equal(other["bags.embedding_bags.t_item.weight"], plain["bags.embedding_bags.t_item.weight"])
