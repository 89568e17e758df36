"""Models that are trained by the project's own code, on whatever device it chooses: world size 1, NCCL on a GPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from unittest import mock

from torch.profiler import ProfilerActivity, profile, schedule

from benchmarks import bundle, ranker_training, upstream_training
from benchmarks.gpu.settings import Settings
from recsys.data.synthetic import prepare_synthetic
from recsys.downstream.training import RankerTraining
from recsys.models.vocabulary import Vocabulary
from recsys.train import predict
from recsys.train.distributed import Environment, process_group
from recsys.train.run import TrainResult
from recsys.train.trainer import fit

__all__ = ["derm", "dlrm", "in_float32", "losses", "market", "process_group", "profiled"]

LOGS = 10  # of an upstream's training
PASSES = 4  # of a ranker's, forty steps each at full size
LOG_EVERY = 8  # of these: a line of the log waits for the GPU
WAIT, WARM, PROFILED = 10, 5, 15  # steps
FEWER = 4  # times fewer in a rehearsal

Step = Callable[[], Any]


class Stepped:
    """A stream that says when a batch is asked for."""

    def __init__(self, stream: Any, step: Step) -> None:
        self._stream = stream
        self._step = step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._stream:
            self._step()
            yield batch


@dataclass(frozen=True)
class SteppedTraining(RankerTraining):
    """A ranker's training that says when a batch of the training rows is asked for."""

    step: Step = lambda: None

    def stream(self, patterns: tuple[str, ...], vocabulary: Vocabulary, *, training: bool = False) -> Any:
        """As of any training."""
        stream = super().stream(patterns, vocabulary, training=training)
        return Stepped(stream, self.step) if training else stream


def market(settings: Settings, folder: Path) -> None:
    """The SYNTHETIC market and a store of random vectors of it, as `data` and `store` in the folder."""
    users, items, events = settings.market
    prepare_synthetic(folder / "data", users=users, items=items, events_per_day=events)
    bundle.publish(folder / "data", folder / "store", bundle.Options(entities=settings.entities))


def derm(settings: Settings, folder: Path, environment: Environment, out: Path | None, step: Step) -> TrainResult:
    """The demo's first upstream, for so many steps."""
    task, stream, training = upstream_training.prepare(
        environment, folder / "data", settings.steps, batch_size=settings.batch_size
    )
    training = replace(training, log_every=max(1, settings.steps // LOGS), checkpoint_every=0)
    tasks = task.loss.tasks
    return fit(task, Stepped(stream, step), training, environment, tasks=tasks, title=None, out=out)


def dlrm(settings: Settings, folder: Path, environment: Environment, out: Path | None, step: Step) -> TrainResult:
    """A ranker that reads two series of the store, for so many passes."""
    sizes = ranker_training.Options(batch_size=settings.batch_size)
    config = ranker_training.config_of("dlrm", sizes)
    by = FEWER if settings.rehearse else 1
    training = replace(config.training, epochs=PASSES // by, patience=PASSES // by, log_every=LOG_EVERY // by)
    # Checkpoints are written between passes, not beside the steps that are timed.
    config = replace(config, training=replace(training, checkpoint_every=0, save_beside=False))
    made = ranker_training.prepare(config, ranker_training.BOTH, folder / "store", folder / "data", environment)
    given = {field.name: getattr(made, field.name) for field in fields(made)}
    return SteppedTraining(**given, step=step).train(out).result


@contextmanager
def in_float32() -> Iterator[None]:
    """Trainings within compute in float32 alone."""
    with mock.patch.object(predict, "mixed_precision", return_value=nullcontext()):
        yield


def losses(out: Path) -> dict[int, float]:
    """Step -> the mean loss of the steps up to it, as a training wrote them into its folder."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return {record["step"]: record["loss"] for record in map(json.loads, lines)}


def profiled(train: Callable[[Step], Any], path: Path, *, rehearse: bool) -> None:
    """Train with some steps profiled, and write their trace, gzipped."""
    by = FEWER if rehearse else 1
    activities = [ProfilerActivity.CPU, *([] if rehearse else [ProfilerActivity.CUDA])]
    with profile(
        activities=activities,
        schedule=schedule(wait=WAIT // by, warmup=WARM // by, active=PROFILED // by, repeat=1),
        on_trace_ready=lambda profiler: profiler.export_chrome_trace(str(path)),
    ) as profiler:
        train(profiler.step)
