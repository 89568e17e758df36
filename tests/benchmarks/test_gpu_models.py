"""Trainings of benchmarks/gpu as they would be on a GPU, where there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import upstream_training
from benchmarks.gpu import models
from benchmarks.gpu.settings import Settings
from recsys.config import RankerConfig
from recsys.data.synthetic import prepare_synthetic
from recsys.train.distributed import Environment

GPU = Environment(rank=0, world_size=1, local_world_size=1, device=torch.device("cuda", 0))


def test_batches_are_read_as_in_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a GPU would wait for them, and nothing else would be measured."""
    monkeypatch.setattr(Environment, "input_threads", 3)
    prepare_synthetic(tmp_path, users=100, items=100, events_per_day=100)
    _, stream, _ = upstream_training.prepare(GPU, tmp_path, 3)
    assert (stream._workers, stream._pin_memory) == (3, True)
    _, stream, _ = upstream_training.prepare(replace(GPU, device=torch.device("cpu")), tmp_path, 3)
    assert not stream._pin_memory


def test_a_ranker_is_not_made_to_wait(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is logged is summed up on the GPU and read from there."""
    asked: list[RankerConfig] = []

    class AskedError(Exception):
        pass

    def prepare(config: RankerConfig, *_: Any) -> None:
        asked.append(config)
        raise AskedError

    monkeypatch.setattr(models.ranker_training, "prepare", prepare)
    for rehearse in (True, False):
        with pytest.raises(AskedError):
            models.dlrm(replace(settings, rehearse=rehearse), settings.out, GPU, None, lambda: None)
    rehearsed, measured = (config.training for config in asked)
    assert measured.log_every >= 8
    assert measured.patience == measured.epochs > rehearsed.epochs == 1
