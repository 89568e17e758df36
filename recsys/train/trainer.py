"""The training loop: one for every model, on one rank or many, on CPU or GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.optim.keyed import KeyedOptimizer

from recsys.config import TrainConfig
from recsys.data.batch import Batch
from recsys.identity import code_version, differences
from recsys.train import checkpoint
from recsys.train.checkpoint import CheckpointError
from recsys.train.clock import Clock
from recsys.train.distributed import Environment
from recsys.train.interrupt import Interrupted, StopSignals
from recsys.train.log import RunLog
from recsys.train.optimizer import build_optimizer, decay_accumulators
from recsys.train.passes import BestPasses, Passes, Scores, best_passes, is_settled, told
from recsys.train.predict import Stream, device_batches, loss_forward
from recsys.train.running_metrics import Metrics
from recsys.train.schedule import Schedule
from recsys.train.sharding import plan_table, shard
from recsys.train.tables import draw_tables


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a training run leaves behind."""

    model: DistributedModelParallel = field(repr=False)
    """The trained task."""
    steps: int
    """Steps done, those before a resume included."""
    samples_per_second: float
    """Rows a second of all ranks, without the first step, which sets things up, and without checkpoints."""
    input_wait_fraction: float
    """Share of that time in which this rank waited for input."""
    metrics: dict[str, float]
    """The last logged figures; keys as in `recsys.train.running_metrics.Metrics.take_window`."""
    scores: tuple[Scores, ...]
    """What `after_epoch` returned, epoch by epoch, those before a resume included."""
    ends: tuple[int, ...]
    """The steps after which these epochs ended."""
    best: BestPasses = field(repr=False)
    """The best of these passes; `model` is that of the newest of them."""
    shortfall: str
    """What became of events that were less than a batch of every rank; empty: they were more."""


@dataclass(kw_only=True)
class _Run:
    """A training run and where it stands."""

    config: TrainConfig
    environment: Environment
    out: Path | None
    model: DistributedModelParallel
    optimizer: KeyedOptimizer
    metrics: Metrics
    steps_per_epoch: int
    total_steps: int
    identity: Mapping[str, Mapping[str, str]]
    """What the run is of: `files`, `config`, `quarantine`."""
    score: str
    """What `scores` are called."""
    step: int = 0
    """Steps done. Differs from `position` only after a resume on another number of ranks."""
    position: int = 0
    """Batches of the stream consumed."""
    record: dict[str, float] = field(default_factory=dict)
    """The last logged figures."""
    scores: list[Scores] = field(default_factory=list)
    """Of the passes that have been judged."""
    ends: list[int] = field(default_factory=list)
    """The steps after which they ended."""

    @property
    def checkpoints(self) -> Path | None:
        return None if self.out is None else self.out / "checkpoints"

    @property
    def finished(self) -> bool:
        return self.settled or self.position >= self.total_steps

    @property
    def left_in_epoch(self) -> int:
        return self.steps_per_epoch - self.position % self.steps_per_epoch

    @property
    def last_step(self) -> int:
        return self.step if self.settled else self.step + self.total_steps - self.position

    @property
    def settled(self) -> bool:
        """Whether the last pass that was judged is the best by no score."""
        return is_settled(self.scores)

    @property
    def unjudged(self) -> bool:
        """Whether a pass has ended that has no score yet."""
        return not self.settled and len(self.scores) < self.position // self.steps_per_epoch

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps, and at the end, happens now."""
        return self.finished or (every > 0 and self.step % every == 0)

    def begin(self, start: Path | None, before: Callable[[nn.Module], None] | None) -> str:
        """Continue from the newest checkpoint, if there is one, and say so; or begin with the model of another run.

        With neither, the tables are drawn.
        """
        path = None if self.checkpoints is None else checkpoint.latest(self.checkpoints)
        if path is None and start is not None:
            checkpoint.restore(start, model=self.model, optimizer=self.optimizer, environment=self.environment)
            decay_accumulators(self.model, self.config.keep_accumulators)
            if before is not None:
                self.model.eval()
                before(self.model)
        elif path is None:
            draw_tables(self.model, self.config.seed)
        if path is None:
            return ""
        note = self._check_identity(path, checkpoint.read_progress(path))
        progress, sums = checkpoint.restore(
            path, model=self.model, optimizer=self.optimizer, environment=self.environment
        )
        self.metrics.load_state(sums, progress["parts"])
        self.step, self.record = progress["step"], progress["record"]
        self.scores, self.ends = [tuple(scores) for scores in progress["scores"]], progress["ends"]
        # The same share of the passes, where another number of ranks cuts the events into other batches.
        self.position = round(progress["position"] * self.steps_per_epoch / progress["steps_per_epoch"])
        moved = progress["steps_per_epoch"] != self.steps_per_epoch
        note += f", now {self.steps_per_epoch} instead of {progress['steps_per_epoch']} batches a pass" if moved else ""
        return f"continuing from {path}{note}"

    def _check_identity(self, path: Path, progress: Mapping[str, Any]) -> str:
        """See that a checkpoint is of these files and this config; tell if other code wrote it."""
        parts = {name: differences(progress["identity"].get(name, {}), now) for name, now in self.identity.items()}
        found = [f"{name}: {difference}" for name, difference in parts.items() if difference]
        if "ends" not in progress:
            found.append(f"version {progress['code']} of this package wrote it, which knew no best pass of each task")
        if found:
            raise CheckpointError(
                f"{path} is of another training. {'. '.join(found)}. Give the files and the config it was begun with, "
                f"choose another output folder, or delete {path.parent} to train anew"
            )
        code, written = code_version(), progress["code"]
        return f" (warning: version {written} of this package wrote it, this is {code})" if written != code else ""

    def save(self) -> None:
        """Write a checkpoint. The metrics must have been folded: that also checks that the losses are finite."""
        assert self.checkpoints is not None
        progress = {
            "position": self.position,
            "steps_per_epoch": self.steps_per_epoch,
            "record": self.record,
            "scores": self.scores,
            "ends": self.ends,
            "parts": self.metrics.parts,
            "identity": self.identity,
            "code": code_version(),
        }
        checkpoint.save(
            self.checkpoints,
            self.step,
            model=self.model,
            optimizer=self.optimizer,
            metrics=self.metrics.state(),
            progress=progress,
            environment=self.environment,
            protected={self.ends[number] for number in best_passes(self.scores)},
        )

    def judge(self, passes: Passes) -> str:
        """Score the pass that has ended; what to say of it. The first one that is the best by no score is the last: the
        model is that of the newest best one again. Where checkpoints are kept, theirs are, and bring them back."""
        improved = passes.evaluate()
        self.scores = list(passes.scores)
        self.ends.append(self.step)
        newest = max(best_passes(self.scores))
        if not improved and self.checkpoints is None:
            passes.bring(newest)
        elif not improved and self.checkpoints is not None:
            kept = checkpoint.at(self.checkpoints, self.ends[newest])
            checkpoint.restore(kept, model=self.model, optimizer=self.optimizer, environment=self.environment)
        if self.checkpoints is not None:
            self.save()
        return told(self.scores, self.total_steps // self.steps_per_epoch, self.score)

    def result(self, clock: Clock, shortfall: str, passes: Passes | None) -> TrainResult:
        """What the run leaves behind."""
        return TrainResult(
            model=self.model,
            steps=self.step,
            samples_per_second=clock.samples_per_second,
            input_wait_fraction=clock.input_wait_fraction,
            metrics=self.record,
            scores=tuple(self.scores),
            ends=tuple(self.ends),
            best=BestPasses(best_passes(self.scores), self._bring if passes is None or self.out else passes.bring),
            shortfall=shortfall,
        )

    def _bring(self, number: int) -> None:
        """Bring the model to what it was after one of the best passes, from its checkpoint. A collective."""
        assert self.checkpoints is not None
        checkpoint.load_model(checkpoint.at(self.checkpoints, self.ends[number]), self.model)

    def interrupted(self, stop: StopSignals) -> Interrupted:
        """What to raise when a signal asked the run to stop; rank 0 says how to go on."""
        assert stop.received is not None
        path = None if self.checkpoints is None else checkpoint.latest(self.checkpoints)
        next_time = f"continues from {path}" if path else "starts anew: no checkpoint was written yet"
        message = (
            f"stopped by {stop.received.name} after step {self.step} of {self.last_step}; the same command {next_time}"
        )
        if self.environment.is_main:
            print(message, file=sys.stderr, flush=True)
        return Interrupted(stop.received, message)


def fit(
    task: nn.Module,
    stream: Stream,
    config: TrainConfig,
    environment: Environment,
    *,
    tasks: Sequence[str],
    values: Collection[str] = (),
    identity: Mapping[str, Mapping[str, str]] | None = None,
    out: Path | None = None,
    start: Path | None = None,
    title: str | None = "train",
    before: Callable[[nn.Module], None] | None = None,
    begun: Callable[[], object] | None = None,
    after_epoch: Callable[[nn.Module], Scores] | None = None,
    score: str = "ne",
) -> TrainResult:
    """Train `task` on `stream`; where `out` has a checkpoint, continue from it to the same losses as if never stopped.

    A collective: every rank calls it, with its own stream.

    Args:
        task: forward(batch) -> (loss, TaskOutput), its tables on "meta", all else the same on every rank; changed in
            place.
        stream: this rank's batches, of events or of what else the task reads; how many passes and how many rows a batch
            is the stream's to say.
        config: learning rates, seed, steps between log lines and between checkpoints.
        environment: this rank.
        tasks: names of the T columns of the task's logits; none where its losses are all there is to log.
        values: those of them whose labels are values, not 0 and 1.
        identity: what the run is of, `files`, `config` and the rows in `quarantine`, as name -> value; a checkpoint of
            something else is refused. The number of ranks is no part of it.
        out: folder for `checkpoints/`, `metrics.jsonl` and `tensorboard/`; None writes nothing.
        start: the checkpoint of another run to begin with its model, optimizer and random state, unless `out` has one.
        title: name of the run in the terminal; None: quiet.
        before: called with the model of `start` in evaluation mode, before anything of this run is trained; not where
            it goes on from a checkpoint of its own.
        begun: called once the model is what the training begins or goes on with, before the first batch is read.
        after_epoch: called with the model in evaluation mode after each epoch; returns a score, or several, one for
            each column of the logits, the same on every rank. The first epoch that lowers none is the last. The model
            of the newest one that was the best by any is returned, and is what the newest checkpoint in `out` holds;
            those of the others are kept beside it.
        score: what `after_epoch` returns, in a word.

    Raises:
        PlanError: the tables do not fit the ranks.
        CheckpointError: the checkpoint in `out` is of other files or another config, or it or `start` belongs to
            another model; names what differs.
        LossError: the loss or a score is not finite; no checkpoint of it is written.
        Interrupted: SIGINT or SIGTERM; a checkpoint of the last step is written, if there is `out`.
        ValueError: the stream has no batch.
    """
    if stream.total_steps == 0:
        raise ValueError("the stream has no batch for this rank: give it a row for every rank, or use fewer ranks")
    metrics = Metrics(tasks, environment.device, values)
    run = _prepare(task, stream, config, environment, metrics, identity or {}, out, score)
    resumed = run.begin(start, before)
    if begun is not None:
        begun()
    passes = after_epoch and Passes(run.model, after_epoch, keeps=out is None, scores=run.scores)
    plan = None if start is not None else plan_table(run.model)  # it is the same as that of the run it starts from
    return _trained(run, stream, title, [x for x in (plan, resumed, stream.shortfall) if x], passes)


def _trained(
    run: _Run, stream: Stream, title: str | None, lines: Sequence[Table | str], passes: Passes | None
) -> TrainResult:
    """Train with a log, which begins with these lines."""
    with (
        RunLog(run.environment, title=title, total=run.last_step, out=run.out, step=run.step) as log,
        StopSignals() as stop,
    ):
        for line in lines:
            log.say(line)
        clock = _loop(run, stream, log, stop, passes)
    return run.result(clock, stream.shortfall, passes)


def _prepare(
    task: nn.Module,
    stream: Stream,
    config: TrainConfig,
    environment: Environment,
    metrics: Metrics,
    identity: Mapping[str, Mapping[str, str]],
    out: Path | None,
    score: str,
) -> _Run:
    model = shard(task, environment, sparse_lr=config.sparse_lr, batch_size=config.batch_size)
    torch.manual_seed(config.seed * 1009 + environment.rank)  # ranks differ in dropout
    return _Run(
        config=config,
        environment=environment,
        out=out,
        model=model,
        optimizer=build_optimizer(
            model, dense_lr=config.dense_lr, weight_decay=config.weight_decay, clip_norm=config.clip_norm
        ),
        metrics=metrics,
        identity=identity,
        steps_per_epoch=stream.steps_per_epoch,
        total_steps=stream.total_steps,
        score=score,
    )


def _loop(run: _Run, stream: Stream, log: RunLog, stop: StopSignals, passes: Passes | None) -> Clock:
    """Train until the stream ends, or an epoch does not improve on the best; raises Interrupted."""
    try:
        return _passes(run, stream, log, stop, passes)
    except Exception:
        if stop.received is not None:  # another rank was stopped first, and this one missed it in a collective
            raise run.interrupted(stop) from None
        raise


def _passes(run: _Run, stream: Stream, log: RunLog, stop: StopSignals, passes: Passes | None) -> Clock:
    """Train pass by pass."""
    pipeline = TrainPipelineSparseDist(
        run.model,
        run.optimizer,
        run.environment.device,
        execute_all_batches=True,
        custom_model_fwd=loss_forward(run.model, run.environment),
    )
    run.model.train()
    stream.seek(run.position)
    batches, clock = device_batches(stream, run.environment), Clock(stream)
    schedule = Schedule(run.model, run.optimizer, run.config, run.total_steps)
    while not run.finished or (passes is not None and run.unjudged):
        if passes is None or not run.unjudged:  # else it was stopped between the last step of a pass and its score
            _pass(run, pipeline, batches, schedule, clock, log, stop, judged=passes is not None)
        if passes is not None:
            pipeline.detach()  # give the model its own forward back
            with clock.paused():
                log.say(run.judge(passes))
    pipeline.detach()
    return clock


def _pass(
    run: _Run,
    pipeline: TrainPipelineSparseDist,
    batches: Iterator[Batch],
    schedule: Schedule,
    clock: Clock,
    log: RunLog,
    stop: StopSignals,
    *,
    judged: bool,
) -> None:
    """Train what is left of a pass. The checkpoint at the end of one that is `judged` is not written here."""
    epoch = islice(batches, run.left_in_epoch)  # the pipeline reads ahead, but not beyond the epoch
    for left in reversed(range(run.left_in_epoch)):
        schedule.begin(run.position)
        loss, output = pipeline.progress(epoch)
        run.step, run.position = run.step + 1, run.position + 1
        run.metrics.update(run.step, loss, output)
        clock.tick(output.logits.shape[0] * run.environment.world_size)
        logs = run.due(run.config.log_every)
        saves = run.out is not None and (left > 0 or not judged) and run.due(run.config.checkpoint_every)
        if logs or saves or (judged and not left):
            run.metrics.fold()
        if logs:
            run.record = {"epoch": run.position / run.steps_per_epoch, **run.metrics.take_window(clock.window())}
            log.write(run.step, run.record)
        if saves:
            with clock.paused():
                run.save()
        # On a GPU what ranks agree on is waited for; a log line waits anyway.
        asked = (logs or saves or run.environment.device.type == "cpu") and stop.agreed(run.environment.device)
        if asked and not run.finished:
            if run.out is not None and not saves:
                run.metrics.fold()
                run.save()
            raise run.interrupted(stop)
