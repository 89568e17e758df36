from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchrec.distributed import DistributedModelParallel
from torchrec.modules.hash_mc_modules import HashZchManagedCollisionModule
from torchrec.optim.keyed import KeyedOptimizer
from torchrec.sparse.jagged_tensor import JaggedTensor

from recsys.config import ConfigError, ContrastiveConfig, LossConfig, TableConfig
from recsys.dates import DAY_MS, HOUR_MS
from recsys.models.id_tables import IdTables
from recsys.models.losses import DermTask, ItemFrequencies
from recsys.models.managed_ids import EMPTY, PROBES, ROWLESS, ManagedRows, identities
from recsys.train import checkpoint
from recsys.train.distributed import current_environment
from recsys.train.optimizer import build_optimizer
from recsys.train.sharding import shard
from recsys.train.tables import draw_tables, renew_rows
from tests.distributed import run_ranks
from tests.recsys.models.test_hashed_ids import ENDS, INT64, SCHEMA, batch

MANAGED = ContrastiveConfig(dim=8, ids="managed", time_to_live_hours=48)
SPREAD = np.random.default_rng(0).integers(-(2**63), 2**63, 3000, dtype=np.int64)
NOBODY = np.empty(0, np.int64)


def find(table: ManagedRows, ids: np.ndarray | list[int]) -> np.ndarray:
    wanted = np.array(ids, np.int64)
    return table.find(wanted, wanted)


def filled(rows: int, ids: np.ndarray | list[int], **settings: int) -> ManagedRows:
    table = ManagedRows(rows, **settings)
    table.admit(np.array(ids, np.int64))
    return table


@settings(max_examples=40, deadline=None)
@given(ids=st.lists(INT64 | st.sampled_from(ENDS), max_size=40, unique=True), rows=st.integers(1, 60))
def test_every_id_has_a_row_of_its_own_while_there_is_room(ids: list[int], rows: int) -> None:
    table = filled(rows, ids)
    found = find(table, ids)
    own = found[found != rows]
    assert len(set(own.tolist())) == len(own) == min(len(ids) - (ROWLESS in ids), rows)
    assert (table.get_extra_state().numpy()[own, 0] == identities(np.array(ids, np.int64)[found != rows])).all()


def test_the_ends_of_int64_and_the_one_id_that_has_no_row() -> None:
    table = ManagedRows(8)
    assert (find(table, [*ENDS, ROWLESS]) == 8).all(), "a free row is nobody's, not that of -1"
    table.admit(np.array([*ENDS, ROWLESS]))
    found = find(table, ENDS)
    assert len({*found.tolist()} - {8}) == len(ENDS)
    assert find(table, [ROWLESS, 5, -2, 2**62]).tolist() == [8] * 4
    ids = np.array([*ENDS, ROWLESS])
    assert (identities(identities(ids)) == ids).all(), "no two ids have one identity"
    assert identities(ids)[ids == ROWLESS] == EMPTY


@pytest.mark.parametrize(("rows", "most"), [(4000, 0.0001), (3333, 0.01), (3000, 0.05)])
def test_few_find_no_row_in_a_table_that_is_nearly_full(rows: int, most: float) -> None:
    found = find(filled(rows, SPREAD), SPREAD)
    assert (found == rows).mean() <= most
    assert len(set(found.tolist()) - {rows}) == (found != rows).sum()


def test_their_order_is_no_matter() -> None:
    some = filled(2000, SPREAD).get_extra_state()
    for seed in range(3):
        mixed = np.random.default_rng(seed).permutation(SPREAD)
        assert torch.equal(filled(2000, mixed).get_extra_state(), some)
    assert torch.equal(filled(2000, np.repeat(SPREAD, 2)).get_extra_state(), some)


def test_those_without_a_row_are_a_loops() -> None:
    """Ids that came when all of their rows had owners, most of a table with fewer rows than ids."""
    table = filled(400, SPREAD[:380])
    before = find(table, SPREAD[:380])
    table.admit(SPREAD[:600])
    assert (find(table, SPREAD[:380]) == before).all(), "who is there keeps its row"
    found = find(table, SPREAD[:600])
    lost = 0
    owners = table.get_extra_state()[:, 0].tolist()
    for number, row in enumerate(found.tolist()):
        assert (row == 400) == (int(SPREAD[number]) not in owners)
        lost += row == 400
    vocabulary = IdTables(SCHEMA, MANAGED, ["click"]).vocabulary
    vocabulary.admit({"user": NOBODY, "item": SPREAD[:30]})
    assert lost >= 200
    assert vocabulary.without_row({"user": NOBODY, "item": SPREAD[:30]}) == {"user": 0.0, "item": 10 / 30}


def test_torchrecs_own_module_finds_the_same_rows() -> None:
    table = filled(4000, SPREAD)
    module = HashZchManagedCollisionModule(
        zch_size=4000, device=torch.device("cpu"), total_num_buckets=1, max_probe=PROBES
    ).eval()
    module._hash_zch_identities.data.copy_(table.get_extra_state()[:, :1])
    ids = torch.from_numpy(SPREAD)
    mapped = module({"id": JaggedTensor(values=ids, lengths=torch.ones(len(ids), dtype=torch.int64))})["id"]
    assert mapped.values().tolist() == find(table, SPREAD).tolist()


def test_ids_that_were_not_seen_for_too_long_give_their_rows_back() -> None:
    table = ManagedRows(10, time_to_live_hours=24)
    old, kept, new = SPREAD[:5], SPREAD[5:10], SPREAD[10:15]
    assert not len(table.admit(np.concatenate([old, kept]), 10 * DAY_MS))
    rows = find(table, old)
    assert not len(table.admit(np.concatenate([kept, new]), 11 * DAY_MS)), "just not too long ago"
    assert (find(table, new) == 10).all(), "no row is free"
    assert (find(table, old) == rows).all()
    assert table.admit(new, 11 * DAY_MS + HOUR_MS).tolist() == sorted(rows)
    assert (find(table, old) == 10).all()
    assert sorted(find(table, new)) == sorted(rows)
    state = table.get_extra_state().clone()
    assert not len(table.admit(new, 11 * DAY_MS + HOUR_MS)), "a training that goes on from its checkpoint"
    assert torch.equal(table.get_extra_state(), state)
    assert not len(table.admit(new, 9 * DAY_MS)), "an older day takes nothing"
    forever = filled(10, old)
    assert not len(forever.admit(new, 10**6 * DAY_MS))


def started() -> tuple[DermTask, DistributedModelParallel, KeyedOptimizer]:
    """A task whose user table is row-wise where there are ranks, drawn from seed 3."""
    torch.manual_seed(0)
    environment = current_environment()
    frequencies = ItemFrequencies.from_counts(torch.arange(9), torch.arange(1, 10))
    task = DermTask(IdTables(SCHEMA, MANAGED, ["click"]), LossConfig(), ["click"], frequencies)
    plan = {"user_user_id": TableConfig(sharding="row_wise")} if environment.world_size > 1 else {}
    model = draw_tables(shard(task, environment, sparse_lr=0.1, tables=plan), 3)
    return task, model, build_optimizer(model, dense_lr=0.1, sparse_lr=0.1)


def user_table(model: DistributedModelParallel, optimizer: KeyedOptimizer) -> tuple[Tensor, Tensor]:
    """Weights [51, 8] and sums of squares [51], whole; zeros where another rank has the rows."""
    weights, sums = torch.zeros(51, 8), torch.zeros(51)
    name = "model.user.own.embeddings.user_user_id.weight"
    (state,) = optimizer.state_dict()["state"][name].values()
    for whole, part in ((weights, model.state_dict()[name]), (sums, state)):
        for local in part.local_shards():
            first = local.metadata.shard_offsets[0]
            whole[first : first + len(local.tensor)] = local.tensor
    return weights, sums


def learn(task: DermTask, model: DistributedModelParallel, optimizer: KeyedOptimizer, users: list[int]) -> None:
    """A step by which these users like the items 0, 1, ..."""
    rows = batch(users, list(range(len(users))))
    rows = replace(rows, labels=torch.ones(len(users), 1))
    optimizer.zero_grad()
    model(task.model.vocabulary.resolve(rows))[0].backward()
    optimizer.step()


OLD, KEPT, NEW = [-(2**63), -1, 0], [2**63 - 1, 7], [2**40, 2**41, 2**42, 5]
ITEMS = np.arange(9)


def train_and_save(folder: Path) -> tuple[Tensor, Tensor]:
    """Two steps of old and kept users, in the first days."""
    task, model, optimizer = started()
    task.model.vocabulary.admit({"user": np.array([*OLD, *KEPT]), "item": ITEMS}, 10 * DAY_MS)
    for _ in range(2):
        learn(task, model, optimizer, [*OLD, *KEPT])
    checkpoint.save(
        folder, 2, model=model, optimizer=optimizer, metrics={}, progress={}, environment=current_environment()
    )
    return user_table(model, optimizer)


def go_on(folder: Path) -> tuple[list[np.ndarray], list[tuple[Tensor, Tensor]], Tensor]:
    """Later: the rows of the three groups of users and those freed; the table as restored, renewed, and after a step;
    the owners."""
    task, model, optimizer = started()
    drawn = user_table(model, optimizer)
    path = checkpoint.latest(folder)
    assert path is not None
    checkpoint.restore(path, model=model, optimizer=optimizer, environment=current_environment())
    vocabulary = task.model.vocabulary
    table = vocabulary.tables["user"]
    assert isinstance(table, ManagedRows)
    rows, tables = [find(table, OLD), find(table, KEPT)], [drawn, user_table(model, optimizer)]
    freed = vocabulary.admit({"user": np.array([*NEW, *KEPT]), "item": ITEMS}, 13 * DAY_MS)
    renew_rows(task.model.own_table("user"), freed["user"], 3)
    tables.append(user_table(model, optimizer))
    learn(task, model, optimizer, NEW)
    tables.append(user_table(model, optimizer))
    return [*rows, find(table, NEW), freed["user"]], tables, table.get_extra_state()


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_rows_that_are_given_back_begin_anew_on_any_number_of_ranks(tmp_path: Path, before: int, after: int) -> None:
    saved = [sum(parts) for parts in zip(*run_ranks(train_and_save, before, tmp_path), strict=True)]
    found = run_ranks(go_on, after, tmp_path)
    (old, kept, new, freed), _, owners = found[0]
    for other in found[1:]:
        assert all((a == b).all() for a, b in zip(other[0], found[0][0], strict=True))
        assert torch.equal(other[2], owners), "ranks agree on who owns what"
    tables = zip(*(each[1] for each in found), strict=True)
    drawn, restored, renewed, learned = ([sum(parts) for parts in zip(*each, strict=True)] for each in tables)
    for whole, part in zip(saved, restored, strict=True):
        assert torch.equal(whole, part), "the checkpoint"
    assert len({*old.tolist(), *kept.tolist()} - {50}) == 5
    assert freed.tolist() == sorted(old)
    assert (saved[1][old] > 0).all()
    assert (saved[0][old] != drawn[0][old]).any(1).all()
    assert torch.equal(renewed[0][freed], drawn[0][freed])
    assert (renewed[1][freed] == 0).all()
    others = np.setdiff1d(np.arange(51), freed)
    for was, now in zip(restored, renewed, strict=True):
        assert torch.equal(was[others], now[others]), "nobody else's"
    assert len(set(new.tolist()) - {50, *kept.tolist()}) == len(NEW)
    assert (learned[1][new] > 0).all(), "and they are learned"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"time_to_live_hours": -1, "ids": "managed"}, "time_to_live_hours is -1; use 0 for ever, or 1 or more"),
        ({"time_to_live_hours": 24}, "time_to_live_hours is 24; only ids = 'managed' have one"),
    ],
)
def test_settings_that_cannot_work(given: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        ContrastiveConfig(**given)  # type: ignore[arg-type]
