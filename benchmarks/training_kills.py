"""A training and its publication under torchrun, of which random ranks are killed at random times.

    python -m benchmarks.training_kills --kills 20 --ranks 4

The data are the SYNTHETIC market. torch elastic starts all ranks anew after each kill, nobody else does anything. At
the end the job is held against one that nobody disturbs: as many steps, the same losses, the same vectors of every
series, one version of users and items each (priors and activities lie beside them, and may be written again). Where
nothing is lost, kills cost the time of the starts and of the steps since a checkpoint, and no more.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from embedding_store import EmbeddingStore
from recsys.data.synthetic import prepare_synthetic
from recsys.folders import store_folder, upstream_folder
from recsys.recipes import synthetic
from recsys.study.environment import commit, hardware

_POLL_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Options:
    """How often, and of what."""

    kills: int = 20
    ranks: int = 4
    within: float = 30.0
    """A kill comes so many seconds after the ranks were started, at most."""
    epochs: int = 4
    every: int = 10
    """Steps between checkpoints."""
    batch_size: int = 64
    seed: int = 0


def start(config: Path, data: Path, out: Path, options: Options) -> subprocess.Popen:
    """The job: a training, then its first refresh."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(options.ranks)]
    command += ["--max_restarts", str(options.kills), "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    command += ["-m", "recsys.cli", "refresh", "--config", str(config), "--data", str(data), "--out", str(out)]
    out.mkdir()
    with (out / "output.txt").open("w") as file:
        return subprocess.Popen([*command, "--train"], stdout=file, stderr=subprocess.STDOUT)


def disturb(job: subprocess.Popen, options: Options) -> int:
    """Kill ranks until there were enough kills, or the job has ended; how many there were."""
    draws, killed, seen = random.Random(options.seed), 0, set[int]()
    while killed < options.kills and job.poll() is None:
        ranks = _ranks(job.pid)
        if len(ranks) < options.ranks or seen & ranks:  # those that elastic is ending
            time.sleep(_POLL_SECONDS)
            continue
        time.sleep(draws.uniform(0, options.within))
        try:
            os.kill(draws.choice(sorted(ranks)), signal.SIGKILL)
        except ProcessLookupError:  # the job has ended
            continue
        killed, seen = killed + 1, seen | ranks
    return killed


def left(out: Path) -> dict[str, Any]:
    """Steps, losses, and every series' versions and vectors."""
    folder, store = upstream_folder(out, "ctr"), EmbeddingStore(store_folder(out))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    series = {}
    for name in store.list():
        history = list(store.series(name).history())
        for snapshot in history:
            snapshot.verify()
        table = history[-1].load()
        series[name] = ([snapshot.version for snapshot in history], table.ids(), table.lookup(table.ids())[0])
    steps = json.loads((folder / "result.json").read_text())["steps"]
    return {"steps": steps, "losses": [line["loss"] for line in lines], "series": series}


def compare(found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """How far what a disturbed job leaves is from what an undisturbed one does."""
    pairs = [(found["series"][name], wanted["series"][name]) for name in wanted["series"]]
    return {
        "steps": [found["steps"], wanted["steps"]],
        "largest_difference_of_losses": max(
            abs(mine - other) for mine, other in zip(found["losses"], wanted["losses"], strict=True)
        ),
        "versions": {name: found["series"][name][0] for name in wanted["series"]},
        "same_ids": all(torch.equal(mine[1], other[1]) for mine, other in pairs),
        "largest_difference_of_vectors": max(float((mine[2] - other[2]).abs().max()) for mine, other in pairs),
    }


def main(options: Options) -> dict[str, Any]:
    """Both jobs."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        prepare_synthetic(data, users=500, items=300, events_per_day=2000)
        study = synthetic()
        training = replace(
            study.upstreams[0].training,
            epochs=options.epochs,
            batch_size=options.batch_size,
            checkpoint_every=options.every,
            log_every=1,
        )
        upstream = replace(study.upstreams[0], training=training)
        study.refresh_of(upstream).save(Path(folder, "refresh.toml"))
        seconds, killed, results = {}, 0, {}
        for name in ("killed", "undisturbed"):
            begun, out = time.monotonic(), Path(folder, name)
            job = start(Path(folder, "refresh.toml"), data, out, options)
            killed += disturb(job, options) if name == "killed" else 0
            if job.wait():
                raise SystemExit((out / "output.txt").read_text()[-5000:])
            seconds[name], results[name] = time.monotonic() - begun, left(out)
        compared = compare(results["killed"], results["undisturbed"])
    facts = {"hardware": hardware(), "commit": commit(), "options": asdict(options)}
    return {**facts, "kills": killed, "seconds": seconds, **compared}


def _ranks(agent: int) -> set[int]:
    """Processes of the ranks that run."""
    try:
        children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    except OSError:
        return set()
    return {int(child) for child in children if b"recsys.cli" in _command(child)}


def _command(process: str) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


if __name__ == "__main__":
    print(json.dumps(main(tyro.cli(Options)), indent=2))
