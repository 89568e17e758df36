"""The share of a training's time that its checkpoints take: written while it waits, and beside it.

    python -m benchmarks.checkpoint_stall --rows 2000000 --steps 400 --every 100

The data are the SYNTHETIC market, the model the demo's `ctr` upstream with tables of users and items of `rows` rows
each. A training without checkpoints, one that waits for them and one that does not are timed from step 11 on, in turns.
`stall` is what the training's own thread spends in saving and in waiting for the save before, a share of its time; the
last checkpoint, which every training waits for, is left out (`last_seconds`). What the writing thread takes from the
steps beside it, of cores or of the disk, is in `slower`: all of the time above that of the training without
checkpoints.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import tyro

from benchmarks.ranks import Figures, in_rounds, on_ranks
from recsys.data.files import find_files
from recsys.data.stream import EventStream
from recsys.data.synthetic import prepare_synthetic
from recsys.models.derm import DERM
from recsys.models.losses import DermTask
from recsys.positives import count_positives
from recsys.recipes import synthetic
from recsys.source import upstream_schema
from recsys.study.environment import commit, hardware
from recsys.train import checkpoint
from recsys.train.distributed import Environment
from recsys.train.running_metrics import Metrics
from recsys.train.saving import Saver
from recsys.train.trainer import fit

WARM_UP = 10
NONE, WAITING, BESIDE = "none", "waiting", "beside"


@dataclass(frozen=True, kw_only=True)
class Options:
    """How large, how long, how often."""

    ranks: int = 2
    rows: int = 2_000_000
    """Of the tables of users and items, each."""
    steps: int = 400
    """At least; whole passes are trained."""
    every: int = 100
    """Steps between checkpoints."""
    batch_size: int = 1024
    """Rows a rank and step."""
    rounds: int = 3


@dataclass
class _Times:
    """What a rank's training thread does, by the clock."""

    begun: float = 0.0
    ended: float = 0.0
    saves: list[float] = field(default_factory=list)
    """Seconds of each call of `Saver.save`."""


def measure(environment: Environment, variant: str, data: Path, options: Options) -> Figures:
    """One training. A collective."""
    upstream = synthetic().upstreams[0]
    schema = upstream_schema(upstream, data)
    sized = tuple(replace(x, rows=options.rows) if x.name in ("user_id", "item_id") else x for x in schema.features)
    schema = replace(schema, features=sized)
    files, tasks = find_files(data, upstream.source.events), [label.name for label in schema.labels]
    training = replace(
        upstream.training,
        batch_size=options.batch_size,
        log_every=10**6,
        checkpoint_every=0 if variant == NONE else options.every,
        save_beside=variant == BESIDE,
    )
    stream = EventStream(
        files,
        schema,
        batch_size=options.batch_size,
        rank=environment.rank,
        world_size=environment.world_size,
        shuffle_batches=8,
        epochs=10**6,
    )
    passes = -(-options.steps // stream.steps_per_epoch)
    stream.total_steps = passes * stream.steps_per_epoch  # whole ones: after the last step every step is saved
    torch.manual_seed(0)
    task = DermTask(
        DERM(schema, upstream.model, tasks), upstream.loss, tasks, count_positives(files, schema, tasks[:1])
    )
    times = _timed()
    out = data / variant
    fit(task, stream, training, environment, tasks=tasks, title=None, out=out)
    newest = checkpoint.latest(out / "checkpoints")
    assert newest is not None
    size = sum(file.stat().st_size for file in newest.iterdir())
    dist.barrier()
    if environment.is_main:
        shutil.rmtree(out)
    seconds, (*saves, last) = times.ended - times.begun, times.saves
    return {
        "steps_per_second": (stream.total_steps - WARM_UP) / seconds,
        "seconds": seconds,
        "saves": len(saves),
        "stall_seconds": sum(saves),
        "stall": sum(saves) / seconds,
        "last_seconds": last,
        "checkpoint_bytes": size,
    }


def _timed() -> _Times:
    """Note the steps and the saves of this process from now on; it has one training."""
    times, save, update = _Times(), Saver.save, Metrics.update

    def timed_save(self: Saver, *arguments: Any, **named: Any) -> None:
        start = time.perf_counter()
        save(self, *arguments, **named)
        times.saves.append(time.perf_counter() - start)

    def timed_update(self: Metrics, step: int, *arguments: Any) -> None:
        update(self, step, *arguments)
        times.ended = time.perf_counter()
        if step == WARM_UP:
            times.begun = times.ended

    Saver.save, Metrics.update = timed_save, timed_update  # type: ignore[method-assign, assignment]
    return times


def main(options: Options) -> dict[str, Any]:
    """All variants."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        prepare_synthetic(data)
        found = in_rounds(
            {
                variant: partial(on_ranks, measure, options.ranks, variant, data, options)
                for variant in (NONE, WAITING, BESIDE)
            },
            options.rounds,
        )
    for figures in found.values():
        figures["slower"] = figures["seconds"] / found[NONE]["seconds"] - 1
    return {"hardware": hardware(), "commit": commit(), "options": vars(options), "variants": found}


if __name__ == "__main__":
    print(json.dumps(main(tyro.cli(Options)), indent=2))
