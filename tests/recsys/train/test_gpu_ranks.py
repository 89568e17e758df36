"""Ranks that have GPUs, on a machine that has none: gloo in the place of NCCL."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from recsys.train.distributed import process_group


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine of two GPUs: those that a rank has chosen."""
    chosen: list[int] = []
    begin = dist.init_process_group

    def begun(backend: str, **options: object) -> None:
        assert backend == "nccl"
        assert chosen, "NCCL takes the GPU that is chosen when it begins"
        begin("gloo", **options)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(dist, "init_process_group", begun)
    monkeypatch.setenv("LOCAL_RANK", "1")
    return chosen


def test_float32_is_float32_on_a_gpu_too(chosen: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        with process_group(alone=True):
            assert torch.get_float32_matmul_precision() == before == "highest"
    finally:
        torch.set_float32_matmul_precision(before)
    assert chosen == [1]


@pytest.mark.parametrize(("ranks", "ends"), [(1, True), (2, False)])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_rank_that_failed_waits_for_no_other(
    chosen: list[int], monkeypatch: pytest.MonkeyPatch, ranks: int, ends: bool, error: type[BaseException]
) -> None:
    def fail() -> None:
        monkeypatch.setattr(dist, "get_world_size", lambda *_: ranks)
        raise error("x")

    try:
        with pytest.raises(error), process_group(alone=True):
            fail()
        assert dist.is_initialized() is not ends
    finally:
        monkeypatch.undo()
        if dist.is_initialized():
            dist.destroy_process_group()


def test_ranks_that_end_together_end_their_group(chosen: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    with process_group(alone=True):
        monkeypatch.setattr(dist, "get_world_size", lambda *_: 2)
    assert not dist.is_initialized()
