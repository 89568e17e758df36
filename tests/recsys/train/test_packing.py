"""Small tensors of a checkpoint lie together; what is read is what was written, by any number of ranks."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchrec.distributed import DistributedModelParallel

from recsys.config import TableConfig
from recsys.train import checkpoint, packing, saving
from recsys.train.distributed import Environment, current_environment
from recsys.train.good import PROGRESS, sealed
from recsys.train.optimizer import build_optimizer
from recsys.train.packing import LAYOUT, packed, read, shapes, unpacked, written
from recsys.train.sharding import shard
from recsys.train.tables import draw_tables
from tests.distributed import run_ranks
from tests.recsys.train.toy import make_task, plain_task, whole_state

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool)
SHAPES = st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)), max_size=12)


def drawn(dtype: torch.dtype, shape: list[int], seed: int) -> Tensor:
    return torch.randint(-9, 9, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@given(SHAPES, st.integers(0, 64))
def test_tensors_of_any_shape_come_back(wanted: list[tuple[torch.dtype, list[int]]], small: int) -> None:
    """Scalars, empty ones, those that are not contiguous, of every dtype, and beside them those that are too large."""
    values = {f"{number}.weight": drawn(*each, number) for number, each in enumerate(wanted)}
    values |= {f"{name}.turned": value.mT for name, value in values.items() if value.dim() > 1}
    state = {"model": values, "optimizer": {"layer": {"step": torch.tensor(3.0)}}, "rng": {"0": {"cpu": torch.ones(2)}}}
    with patch.object(packing, "SMALL_BYTES", small):
        saved, layout = packed(state)
    layout = read(written(layout))
    assert saved["rng"] == state["rng"]
    assert shapes(layout).keys() == {
        *(f"model.{name}" for name, value in values.items() if value.nbytes <= small),
        *(["optimizer.layer.step"] if small >= 4 else []),
    }
    found = {"model": {name: torch.empty_like(value) for name, value in values.items()}}
    found |= {"optimizer": {"layer": {"step": torch.tensor(0.0)}}}

    def load(into: dict) -> None:
        for part, entries in into.items():
            for key, value in entries.items():
                source = saved[part][key]
                (value["step"] if key == "layer" else value).copy_(source["step"] if key == "layer" else source)

    unpacked(found, layout, load)
    assert found["optimizer"]["layer"]["step"] == 3
    for name, value in values.items():
        assert torch.equal(found["model"][name], value), name


def save(folder: Path, environment: Environment, how: str = "") -> DistributedModelParallel:
    """A checkpoint of the toy task, whose model this is."""
    tables = {name: TableConfig(sharding=how) for name in ("t_user", "t_item")} if how else {}
    model = draw_tables(shard(make_task(), environment, sparse_lr=0.1, tables=tables), 0)
    optimizer = build_optimizer(model, dense_lr=0.01, sparse_lr=0.1)
    checkpoint.save(folder, 1, model=model, optimizer=optimizer, metrics={}, progress={}, environment=environment)
    return model


def test_a_checkpoint_has_few_tensors_by_name(environment: Environment, tmp_path: Path) -> None:
    wanted = whole_state(save(tmp_path, environment))
    path = checkpoint.at(tmp_path, 1)
    named = set(dcp.FileSystemReader(path).read_metadata().state_dict_metadata)
    together = shapes(read((path / LAYOUT).read_text()))
    tables = {name for name in wanted if "embedding" in name}
    assert {name for name in named if name.startswith("model.")} == {f"model.{name}" for name in tables}
    assert {f"model.{name}" for name in wanted.keys() - tables} < together.keys()
    assert len([name for name in together if name.startswith("optimizer.")]) == 3 * len(wanted.keys() - tables)
    assert {name.removeprefix("packed.") for name in named if name.startswith("packed.")} == {
        "model.float32",
        "optimizer.float32",
    }


def test_only_what_is_asked_for_is_read(environment: Environment, tmp_path: Path) -> None:
    """A model to embed with has no use for the optimizer's state."""
    save(tmp_path, environment)
    with patch.object(checkpoint.dcp, "load", wraps=dcp.load) as load:
        checkpoint.load_model(tmp_path, plain_task(seed=9))
    ((state,), _) = load.call_args
    assert list(state["packed"]) == ["model.float32"]


def test_a_checkpoint_of_before_is_read(environment: Environment, tmp_path: Path) -> None:
    """Every tensor of it has its name, and there is no layout."""
    with patch.object(packing, "SMALL_BYTES", -1):
        wanted = whole_state(save(tmp_path, environment))
    path = checkpoint.at(tmp_path, 1)
    progress = checkpoint.read_progress(path)
    files = progress.pop("files")
    assert files.pop(LAYOUT)
    (path / LAYOUT).unlink()
    (path / PROGRESS).write_text(sealed(progress, files))
    assert checkpoint.newest_good(tmp_path, environment) == path
    model = shard(make_task(seed=5), environment, sparse_lr=0.1)
    optimizer = build_optimizer(model, dense_lr=0.01)
    checkpoint.restore(path, model=model, optimizer=optimizer, environment=environment)
    for name, value in whole_state(model).items():
        assert torch.equal(value, wanted[name]), name


def replicated_save(folder: Path) -> None:
    save(folder, current_environment(), "data_parallel")


def read_by_rows(folder: Path) -> dict[str, list[tuple[Tensor, list[int]]]]:
    """The parts of the tables that this rank has, and where each begins."""
    environment = current_environment()
    tables = {name: TableConfig(sharding="row_wise") for name in ("t_user", "t_item")}
    model = shard(make_task(seed=5), environment, sparse_lr=0.1, tables=tables)
    checkpoint.load_model(folder, model)
    state = model.state_dict()
    return {
        name: [(x.tensor.clone(), x.metadata.shard_offsets) for x in state[name].local_shards()]
        for name in state
        if "embedding_bags" in name
    }


def test_a_packed_table_is_read_by_ranks_that_have_a_part_of_it_each(tmp_path: Path) -> None:
    run_ranks(replicated_save, 2, tmp_path)
    path = checkpoint.at(tmp_path, 1)
    assert "model.bags.embedding_bags.t_user.weight" in shapes(read((path / LAYOUT).read_text()))
    wanted, parts = whole_state(plain_task()), run_ranks(read_by_rows, 2, tmp_path)
    for name in parts[0]:
        found = torch.full_like(wanted[name], torch.nan)
        for part, (first, _) in (each for rank in parts for each in rank[name]):
            found[first : first + len(part)] = part
        assert torch.equal(found, wanted[name]), name


def save_what_differs(folder: Path) -> str:
    environment = current_environment()

    def other(state: dict) -> tuple[dict, packing.Layout]:
        if environment.rank:
            state["model"]["of this rank alone"] = torch.ones(2)
        return packed(state)

    with patch.object(saving, "packed", other), pytest.raises(AssertionError) as error:
        save(folder, environment)
    return str(error.value)


def test_ranks_of_other_tensors_write_no_checkpoint(tmp_path: Path) -> None:
    """That of one rank would be read by the names of another."""
    for told in run_ranks(save_what_differs, 2, tmp_path):
        assert "ranks have other small tensors" in told
    assert checkpoint.latest(tmp_path) is None
