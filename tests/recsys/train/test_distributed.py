import os
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from recsys.config import TrainConfig
from recsys.train import distributed
from recsys.train.distributed import (
    DeviceError,
    barrier,
    broadcast,
    control_group,
    current_environment,
    host_memory,
    peak_memory,
    process_group,
)
from recsys.train.trainer import fit
from tests.distributed import run_ranks
from tests.recsys.train.toy import TASKS, make_stream, make_task


def test_process_alone_is_the_only_rank():
    with process_group() as environment:
        assert (environment.rank, environment.world_size, environment.local_world_size) == (0, 1, 1)
        assert environment.is_main
        total = torch.ones(1, device=environment.device)
        dist.all_reduce(total)
        assert total.item() == 1.0
    assert not dist.is_initialized()


def test_a_rank_of_a_job_may_work_alone(monkeypatch: pytest.MonkeyPatch):
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "nowhere")
    config = TrainConfig(batch_size=32)
    with process_group(alone=True) as environment:
        assert (environment.rank, environment.world_size, environment.local_world_size) == (0, 1, 2)
        assert fit(make_task(), make_stream(2), config, environment, tasks=TASKS, title=None).steps == 2


def test_running_group_is_used_and_left_running():
    with process_group() as outer:
        with process_group() as inner:
            assert inner == outer
        assert dist.is_initialized()


def test_group_stops_after_an_error():
    with pytest.raises(KeyError), process_group():
        raise KeyError("x")
    assert not dist.is_initialized()


def test_environment_without_group_says_what_to_do():
    with pytest.raises(RuntimeError, match="process_group"):
        current_environment()


def test_memory_figures_are_bytes():
    before = peak_memory()
    block = torch.ones(8 << 20)  # 32 MiB, touched
    assert 32 << 20 < before < host_memory()
    assert peak_memory() >= before
    assert block.sum() > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="about CPU threads")
def test_one_thread_of_torch_elastic_is_undone(monkeypatch, tmp_path: Path):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(distributed, "CGROUP_CPUS", tmp_path / "cpu.max")
    environment = distributed.Environment(rank=0, world_size=4, local_world_size=2, device=torch.device("cpu"))
    for name, value in (("OMP_NUM_THREADS", "3"), ("OMP_NUM_THREADS", "1"), ("TORCHELASTIC_RUN_ID", "job")):
        monkeypatch.setenv(name, value)
        distributed._use_all_cores(environment)
    assert asked == [4]
    for quota, threads in (("max 100000", 4), ("600000 100000", 3), ("250000 100000", 1), ("9900000 100000", 4)):
        (tmp_path / "cpu.max").write_text(f"{quota}\n")  # a container may use so much of the machine's CPUs
        distributed._use_all_cores(environment)
        assert asked.pop() == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # a user's own choice stays
    distributed._use_all_cores(environment)
    assert asked == [4]


def test_gpus_that_were_asked_for_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("RECSYS_GPUS", "2")
    with pytest.raises(DeviceError, match="--gpu is 2, but torch finds 1 GPU on this machine"), process_group():
        pass


def wait_for_a_slow_disk() -> tuple[str, bool]:
    """Rank 0 works on files for longer than the training's collectives may take, twice."""
    environment = current_environment()
    barrier()
    if environment.is_main:
        time.sleep(6)
    found = broadcast("done" if environment.is_main else None, environment)
    if environment.is_main:
        time.sleep(6)
        return found, True
    try:
        dist.barrier()
    except RuntimeError:
        return found, True
    return found, False


def test_who_waits_for_a_disk_is_not_ended_by_the_trainings_timeout() -> None:
    """The group of the two ranks ends what takes 4 s; its control group does not."""
    assert run_ranks(wait_for_a_slow_disk, 2, collective_timeout=4) == [("done", True)] * 2


def test_the_control_group_is_one_a_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    found = []
    for _ in range(2):
        with process_group(alone=True):
            found.append(control_group())
            assert control_group() is found[-1]
            barrier()
    assert found[0] is not found[1]
