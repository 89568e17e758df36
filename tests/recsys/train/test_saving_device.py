"""Checkpoints of what is on a GPU, where there is none."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from recsys.train import saving
from recsys.train.distributed import Environment
from recsys.train.packing import packed, written
from recsys.train.saving import Saver, training_state
from tests.recsys.train.test_checkpoint import trained

GPU = torch.device("cuda", 1)
MIB = 2**20


def test_the_thread_that_writes_has_its_ranks_gpu(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch would have each rank's thread wait for the first GPU, and have memory there."""
    model, optimizer = trained(environment, steps=0)
    chosen: list[tuple[str, torch.device]] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda x: chosen.append((threading.current_thread().name, x)))
    saver = Saver(tmp_path, environment)
    state, layout = packed(training_state(model, optimizer, {}))
    work = saving._Checkpoint(tmp_path, 1, state, written(layout), {}, on(environment), 2)
    saving._in_thread(work, saver._own_group()).result()
    saver.close()
    assert chosen == [("checkpoint", GPU)]
    assert (tmp_path / "step-00000001").is_dir()


@pytest.mark.parametrize(("free", "fits"), [(8 * MIB + 16, True), (8 * MIB - 16, False)])
def test_copies_of_what_is_there_take_powers_of_two(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, free: int, fits: bool
) -> None:
    with FakeTensorMode():
        state = {"table": torch.empty(3 * MIB, dtype=torch.int8, device=GPU), "none": torch.empty(0, device=GPU)}
    monkeypatch.setattr(saving, "free_memory", lambda: free)
    assert saving._Copies(environment).fit(state) is fits


def test_page_locked_memory_is_given_back(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    monkeypatch.setattr(torch.accelerator, "empty_host_cache", lambda: given.append("new"), raising=False)
    monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: given.append("old"), raising=False)
    saving._Copies(environment).forget()
    saving._Copies(on(environment)).forget()
    monkeypatch.delattr(torch.accelerator, "empty_host_cache")
    saving._Copies(on(environment)).forget()
    assert given == ["new", "old"]


def on(environment: Environment) -> Environment:
    """The same ranks, each with a GPU."""
    numbers = {"rank": environment.rank, "world_size": environment.world_size}
    return Environment(**numbers, local_world_size=environment.local_world_size, device=GPU)
