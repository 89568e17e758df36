"""kill -9 of a rank under torchrun: the job starts anew by itself, and ends with what an unbroken one ends with, to the
last bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from embedding_store import EmbeddingStore
from recsys.config import TrainConfig
from recsys.folders import store_folder
from recsys.jobs import run_ranks
from recsys.refresh.cycle import refresh_upstream
from recsys.upstream import train_upstream
from tests.recsys.refresh.example import CONFIG, write_log

ROOT = Path(__file__).parents[2]
TRAINING = TrainConfig(epochs=4, batch_size=4, log_every=1, checkpoint_every=2)
UPSTREAM = replace(CONFIG.upstreams[0], training=TRAINING, held_out=0.0)
REFRESH = replace(CONFIG.refresh_of(UPSTREAM))


def unbroken(data: Path, out: Path) -> None:
    train_upstream(UPSTREAM, data, out)
    refresh_upstream(REFRESH, data, out)


def left(out: Path) -> tuple[dict[str, Any], list[float], dict[str, list]]:
    """The result of a training, its losses step by step, and versions and vectors of every series."""
    folder = out / "upstream/ctr"
    losses = [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    store, found = EmbeddingStore(store_folder(out)), {}
    for name in store.list():
        snapshots = list(store.series(name).history())
        for snapshot in snapshots:
            snapshot.verify()
        table = snapshots[-1].load()
        ids = table.ids().sort().values
        found[name] = [[snapshot.version for snapshot in snapshots], ids.tolist(), table.lookup(ids)[0]]
    return json.loads((folder / "result.json").read_text()), losses, found


@pytest.mark.parametrize(
    ("ranks", "points"),
    [(2, ("save", "publish")), pytest.param(4, ("epoch", "save", "publish"), marks=pytest.mark.long)],
)
def test_a_job_whose_ranks_are_killed_ends_as_an_unbroken_one(
    tmp_path: Path, ranks: int, points: tuple[str, ...]
) -> None:
    data, out, whole = write_log(tmp_path / "data"), tmp_path / "out", tmp_path / "whole"
    (killed := tmp_path / "killed").mkdir()
    REFRESH.save(tmp_path / "refresh.toml")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks)]
    command += ["--max_restarts", str(len(points)), "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    command += ["-m", "tests.launchers.killed", ",".join(points), "refresh", "--config", str(tmp_path / "refresh.toml")]
    command += ["--data", str(data), "--out", str(out), "--train"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "KILLED": str(killed)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert {path.name for path in killed.iterdir()} == {str(attempt) for attempt in range(len(points))}, said
    assert said.count("continuing from") >= len(points) - 1, said
    run_ranks("whole", unbroken, (data, whole), ranks, tmp_path / "logs")
    (result, losses, series), (wanted, unbroken_losses, unbroken_series) = left(out), left(whole)
    assert result["steps"] == wanted["steps"] == len(losses) == len(unbroken_losses)
    assert losses == unbroken_losses
    assert series.keys() == unbroken_series.keys()
    for name, (versions, ids, vectors) in series.items():
        published = name in ("user_ctr", "item_ctr")  # what lies beside them may be written again before them
        assert versions == [1] if published else set(versions) <= {1, 2}
        assert ids == unbroken_series[name][1]
        assert torch.equal(vectors, unbroken_series[name][2])
    assert not list((out / "upstream").rglob("*.tmp"))
