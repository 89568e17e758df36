import gc
import weakref

import pytest
import torch
from rich.console import Console

from recsys.train.distributed import Environment
from recsys.train.optimizer import build_optimizer
from recsys.train.sharding import PlanError, plan_table, shard, table_sizes
from tests.recsys.train.toy import ROWS, ToyTask, make_stream, make_task, whole_state


def test_tables_that_do_not_fit_are_named_with_their_bytes(environment: Environment):
    task = make_task(rows={"user": 3_000_000, "item": 64, "seen": 50}, device=torch.device("meta"))
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
    plain, rate = make_task(dropout=0.0), 0.1
    adamw = torch.optim.AdamW(plain.over.parameters(), lr=0.01, weight_decay=0.1)
    tables = {name: value for name, value in plain.named_parameters() if "embedding" in name}
    model = shard(make_task(dropout=0.0), environment, sparse_lr=rate)
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


def test_tables_may_start_on_the_meta_device(environment: Environment):
    model = shard(make_task(device=torch.device("meta")), environment, sparse_lr=0.1)
    for name, rows in ROWS.items():
        collection = "sequences.embeddings" if name == "seen" else "bags.embedding_bags"
        table = whole_state(model)[f"{collection}.t_{name}.weight"]
        assert table.shape == (rows, 8)
        assert table.std() > 0
    assert model(next(iter(make_stream(1))))[0].isfinite()


def test_frozen_parameters_stay(environment: Environment):
    task = make_task()
    task.over.net[0].requires_grad_(False)
    optimizer = build_optimizer(shard(task, environment, sparse_lr=0.1), dense_lr=0.01)
    assert not any("over.net.0" in name for name in optimizer.params)
    assert any("over.net.3" in name for name in optimizer.params)


def test_unsharded_tables_are_freed(environment: Environment):
    task = make_task()
    table = weakref.ref(task.bags.embedding_bags["t_user"].weight)
    model = shard(task, environment, sparse_lr=0.1)
    gc.collect()
    assert table() is None
    assert "t_user" in str(model.plan)
