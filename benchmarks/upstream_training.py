"""Training speed of an upstream: TorchRec on 1 and 2 ranks beside the same model with plain nn.EmbeddingBag and DDP.

    python -m benchmarks.upstream_training --steps 60

The data are the SYNTHETIC market. Every variant starts its ranks anew, trains the demo's `ctr` upstream on batches that
are read as in training, and is timed from step 11 on. "plain" keeps each table whole on every rank, as an nn.Embedding
or nn.EmbeddingBag with dense gradients that DistributedDataParallel averages, and trains it with torch's Adagrad.
Samples are those of all ranks.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import tyro
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from benchmarks.ranks import Figures, in_rounds, on_ranks
from recsys.config import TrainConfig
from recsys.data.files import find_files
from recsys.data.stream import EventStream
from recsys.data.synthetic import prepare_synthetic
from recsys.models.derm import DERM
from recsys.models.losses import DermTask
from recsys.positives import count_positives
from recsys.recipes import synthetic
from recsys.source import upstream_schema
from recsys.study.environment import commit, hardware
from recsys.train.distributed import Environment
from recsys.train.predict import Stream
from recsys.train.tables import draw_tables
from recsys.train.trainer import fit

WARM_UP = 10


def measure(environment: Environment, variant: str, data: Path, steps: int) -> Figures:
    """The speed of one variant. A collective."""
    task, stream, training = prepare(environment, data, steps)
    if variant == "torchrec":
        training = replace(training, log_every=10**6)
        result = fit(task, stream, training, environment, tasks=task.loss.tasks, title=None)
        return {"samples_per_second": result.samples_per_second, "input_wait_fraction": result.input_wait_fraction}
    return {"samples_per_second": train_plain(draw_tables(task, 0), stream) * environment.world_size}


def prepare(
    environment: Environment, data: Path, steps: int, *, batch_size: int = 0
) -> tuple[DermTask, EventStream, TrainConfig]:
    """The demo's first upstream, and this rank's batches of it; `batch_size` 0: what its rows allow."""
    rank, ranks = environment.rank, environment.world_size
    upstream = synthetic().upstreams[0]
    schema = upstream_schema(upstream, data)
    files = find_files(data, upstream.source.events)
    tasks = [label.name for label in schema.labels]
    training = replace(upstream.training, batch_size=batch_size).sized(EventStream(files, schema, batch_size=1).rows)
    stream = EventStream(
        files,
        schema,
        batch_size=training.batch_size,
        rank=rank,
        world_size=ranks,
        shuffle_batches=64,
        epochs=8,
        workers=environment.input_threads,
        pin_memory=environment.device.type == "cuda",
    )
    stream.total_steps = steps
    torch.manual_seed(0)
    frequencies = count_positives(files, schema, tasks[:1])
    return DermTask(DERM(schema, upstream.model, tasks), upstream.loss, tasks, frequencies), stream, training


def train_plain(task: nn.Module, stream: Stream, *, tables: bool = True) -> float:
    """Samples a second of this rank with DistributedDataParallel and whole tables, which are trained or left alone."""
    whole = {
        p
        for m in task.modules()
        if isinstance(m, (EmbeddingBagCollection, EmbeddingCollection))
        for p in m.parameters()
    }
    optimizers: list[torch.optim.Optimizer] = [torch.optim.Adagrad(whole, lr=0.02)] if tables else []
    for table in whole:
        table.requires_grad_(tables)
    optimizers.append(torch.optim.AdamW([p for p in task.parameters() if p not in whole], lr=1e-3, fused=True))
    parallel = DistributedDataParallel(task)
    rows, start = 0, 0.0
    for step, batch in enumerate(stream):
        if step == WARM_UP:
            start = time.perf_counter()
        loss, _ = parallel(batch)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        rows += len(getattr(batch, "labels", ())) if step >= WARM_UP else 0
    return rows / (time.perf_counter() - start)


def main(steps: int = 60, repeats: int = 3) -> None:
    """Print one JSON line a variant.

    Args:
        steps: Steps of each run, the first ten of them not timed.
        repeats: Runs of each variant, interleaved; the median is printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        prepare_synthetic(Path(folder))
        variants = {
            (variant, ranks): partial(on_ranks, measure, ranks, variant, Path(folder), steps)
            for variant in ("torchrec", "plain")
            for ranks in (1, 2)
        }
        for (variant, ranks), figures in in_rounds(variants, repeats).items():
            speed = {"samples_per_second": round(figures.pop("samples_per_second"))}
            print(json.dumps({"variant": variant, "ranks": ranks, **speed, **figures}))
    print(json.dumps({"hardware": hardware(), "commit": commit(), "data": "SYNTHETIC market", "steps": steps}))


if __name__ == "__main__":
    tyro.cli(main)
