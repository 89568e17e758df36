"""SIGTERM at the command: it saves, and its exit code says that the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from recsys.config import TrainConfig
from recsys.data.synthetic import prepare_synthetic
from recsys.train.checkpoint import latest
from tests.recsys import test_replay
from tests.recsys.refresh.example import CONFIG, write_log

ROOT = Path(__file__).parents[2]
LONG = TrainConfig(epochs=100_000, batch_size=8, log_every=1, checkpoint_every=0)
"""Trains until it is stopped."""


def stopped(folder: Path, *arguments: object, sent: Callable[[subprocess.Popen], None]) -> tuple[int, str]:
    """Exit code and output of a command that is stopped once its upstream is trained."""
    out, metrics = folder / "output.txt", folder / "out/upstream/ctr/metrics.jsonl"
    metrics.unlink(missing_ok=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "recsys.cli", *map(str, arguments), "--out", str(folder / "out")]
    with out.open("w") as file:
        job = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 600
        while not (metrics.exists() and metrics.stat().st_size):
            assert job.poll() is None, out.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        sent(job)
        return job.wait(600), out.read_text()


def terminated(job: subprocess.Popen) -> None:
    job.send_signal(signal.SIGTERM)


def terminated_twice(job: subprocess.Popen) -> None:
    """By the scheduler, and by torch elastic's agent."""
    job.send_signal(signal.SIGTERM)
    time.sleep(0.01)
    job.send_signal(signal.SIGTERM)


def interrupted(job: subprocess.Popen) -> None:
    job.send_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("command", "sent", "code"),
    [("upstream", interrupted, 130), ("refresh", terminated_twice, 75)],
)
def test_a_rank_saves_and_says_that_it_goes_on(
    tmp_path: Path, command: str, sent: Callable[[subprocess.Popen], None], code: int
) -> None:
    data = write_log(tmp_path / "data")
    upstream = replace(CONFIG.upstreams[0], training=LONG, held_out=0.0)
    (upstream if command == "upstream" else replace(CONFIG.refresh_of(upstream))).save(tmp_path / "c.toml")
    options = ("--config", tmp_path / "c.toml", "--data", data, *(["--train"] if command == "refresh" else []))
    for again in (False, True):
        found, said = stopped(tmp_path, command, *options, sent=sent)
        assert found == code, said
        assert "the same command continues from" in said
        assert ("continuing from" in said) is again
        assert latest(tmp_path / "out/upstream/ctr/checkpoints") is not None
        assert "Traceback" not in said


def test_a_run_of_several_jobs_says_so_too(tmp_path: Path) -> None:
    prepare_synthetic(tmp_path / "data", users=100, items=100, days=6, events_per_day=300, upstream_days=2)
    study = test_replay.config()
    upstream = replace(study.upstreams[0], training=replace(LONG, batch_size=64), held_out=0.0)
    replace(study, upstreams=(upstream,), ranks=2).save(tmp_path / "study.toml")
    found, said = stopped(tmp_path, "daily", tmp_path / "study.toml", "--data", tmp_path / "data", sent=terminated)
    assert found == 75, said
    assert "Traceback" not in said
    assert latest(tmp_path / "out/upstream/ctr/checkpoints") is not None
