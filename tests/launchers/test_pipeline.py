"""A whole run as one job of two ranks, started by torchx."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from recsys.config import StudyConfig
from recsys.data.synthetic import prepare_synthetic
from recsys.refresh.records import Ledger
from tests.recsys import test_replay

ROOT = Path(__file__).parents[2]


def torchx(*arguments: object) -> subprocess.CompletedProcess:
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-m", "torchx.cli.main", "run", "-s", "local_cwd", *map(str, arguments)]
    environment = os.environ | {"PATH": tools, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.long
def test_days_are_refreshed_and_reported_on_by_ranks_that_stay(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    prepare_synthetic(data, users=100, items=100, days=6, events_per_day=300, upstream_days=2)
    study = test_replay.config()
    replace(study, ranks=7).save(tmp_path / "study.toml")  # of one machine; here those that are there
    job = ("launchers/pipeline.py:daily", "--study", tmp_path / "study.toml", "--data", data, "--out", out, "-j", "1x2")
    done = torchx(*job)
    assert done.returncode == 0, done.stderr
    assert "upstream-ctr: 2 ranks" in done.stdout + done.stderr
    assert [record.day for record in Ledger(out, "ctr").records()] == test_replay.DAYS
    stages = {path.stem for path in (out / "stages").glob("*.json")}
    assert stages == {"upstream-ctr.0", "refresh-ctr.0", "downstream-daily.0", "downstream-daily.1"}
    assert set(json.loads((out / "daily.json").read_text())["aggregation"]) == {
        "latest",
        "ma_0.2",
        "ma_0.5",
        "ma_0.8",
        "average",
    }
    assert StudyConfig.load(out / "config.toml").name == study.name
    assert not (out / "logs").exists(), "no job started ranks of its own"


def test_a_mistake_ends_the_job(tmp_path: Path) -> None:
    done = torchx("launchers/pipeline.py:run", "--study", "kitchen", "--out", tmp_path, "-j", "1x2")
    assert done.returncode == 1
    assert (done.stdout + done.stderr).count("recipe 'kitchen' is unknown") == 1
