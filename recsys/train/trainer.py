"""The training loop: one for every model, on one rank or many, on CPU or GPU."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from recsys.atomic import write_json
from recsys.config import TrainConfig
from recsys.data.batch import Batch
from recsys.identity import flatten
from recsys.train.accumulation import Accumulation
from recsys.train.agreement import check_ranks_agree
from recsys.train.clock import Clock
from recsys.train.distributed import Environment
from recsys.train.interrupt import StopSignals
from recsys.train.log import RunLog
from recsys.train.optimizer import build_optimizer
from recsys.train.passes import Passes, Scores
from recsys.train.predict import Stream, device_batches, loss_forward
from recsys.train.replicas import average
from recsys.train.run import Run, TrainResult
from recsys.train.running_metrics import Metrics
from recsys.train.saving import Saver
from recsys.train.schedule import Schedule
from recsys.train.sharding import plan_record, plan_table, shard
from recsys.train.watch import Pulse, Watch

PLAN = "plan.json"
"""In the folder of a training: how its tables were spread when it was begun, or went on, last."""


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
    taken: int = 0,
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
        out: folder for `checkpoints/`, `metrics.jsonl`, `plan.json` and `tensorboard/`; None writes nothing.
        start: the checkpoint of another run to begin with its model, optimizer and random state, unless `out` has one.
        title: name of the run in the terminal; None: quiet.
        before: called with the model of `start` in evaluation mode, before anything of this run is trained; not where
            it goes on from a checkpoint of its own.
        begun: called once the model is what the training begins or goes on with, before the first batch is read.
        after_epoch: called with the model in evaluation mode after each epoch; returns a score, or several, one for
            each column of the logits, the same on every rank. `config.patience` epochs in a row that lower none are the
            last. The model of the newest one that was the best by any is returned, and is what the newest checkpoint in
            `out` holds; those of the others are kept beside it.
        score: what `after_epoch` returns, in a word.
        taken: bytes of a GPU's memory that the stream's batches need, and tables cannot have.

    Raises:
        PlanError: the tables do not fit the ranks.
        RanksDifferError: ranks were started with other configs, files or code.
        CheckpointError: the checkpoint in `out` is of other files or another config, or it or `start` belongs to
            another model; names what differs.
        LossError: the loss or a score is not finite; no checkpoint of it is written.
        Interrupted: SIGINT or SIGTERM; a checkpoint of the last step is written, if there is `out`. Also after the last
            step of all, since what comes next would not know of it.
        ValueError: the stream has no batch.
    """
    if stream.total_steps == 0:
        raise ValueError("the stream has no batch for this rank: give it a row for every rank, or use fewer ranks")
    check_ranks_agree({**(identity or {}), "training": flatten(asdict(config))}, environment)
    metrics = Metrics(tasks, environment.device, values)
    run = _prepare(task, stream, config, environment, metrics, identity or {}, out, score, taken)
    if out is not None and environment.is_main:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / PLAN, plan_record(run.model))
    with Pulse("the beginning of a training", environment):  # a checkpoint is read, or tables are drawn
        resumed = run.begin(start, before)
        if begun is not None:
            begun()
    passes = after_epoch and Passes(run.model, after_epoch, keeps=out is None, scores=run.scores)
    plan = None if start is not None else plan_table(run.model)  # it is the same as that of the run it starts from
    return _trained(run, stream, out, title, [x for x in (plan, resumed, stream.shortfall) if x], passes)


def _trained(
    run: Run, stream: Stream, out: Path | None, title: str | None, lines: Sequence[Table | str], passes: Passes | None
) -> TrainResult:
    """Train with a log, which begins with these lines."""
    with (
        RunLog(run.environment, title=title, total=run.last_step, out=out, step=run.step) as log,
        StopSignals() as stop,
    ):
        for line in lines:
            log.say(line)
        with run.saving(stop):
            clock = _loop(run, stream, log, stop, passes)
        if stop.agreed(run.environment.device):  # it came with the last step, or while the last pass was judged
            raise run.interrupted(stop)
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
    taken: int,
) -> Run:
    model = shard(
        task,
        environment,
        sparse_lr=config.sparse_lr,
        batch_size=config.batch_size,
        tables=config.tables,
        exchange=config.exchange,
        group_ranks=config.group_ranks,
        taken=taken,
    )
    torch.manual_seed(config.seed * 1009 + environment.rank)  # ranks differ in dropout
    return Run(
        config=config,
        environment=environment,
        saver=None if out is None else _saver(out, config, environment),
        model=model,
        optimizer=build_optimizer(
            model,
            dense_lr=config.dense_lr,
            sparse_lr=config.sparse_lr,
            weight_decay=config.weight_decay,
            clip_norm=config.clip_norm,
        ),
        metrics=metrics,
        stream=stream,
        identity=identity,
        steps_per_epoch=stream.steps_per_epoch,
        total_steps=stream.total_steps,
        score=score,
    )


def _saver(out: Path, config: TrainConfig, environment: Environment) -> Saver:
    return Saver(out / "checkpoints", environment, keep=config.keep_checkpoints, beside=config.save_beside)


def _loop(run: Run, stream: Stream, log: RunLog, stop: StopSignals, passes: Passes | None) -> Clock:
    """Train until the stream ends, or `patience` epochs do not improve on the best; raises Interrupted."""
    try:
        return _passes(run, stream, log, stop, passes)
    except Exception:
        if stop.received is not None:  # another rank was stopped first, and this one missed it in a collective
            with suppress(Exception):  # without that rank no checkpoint comes to its end
                if run.saver is not None:
                    run.saver.wait()
            raise run.interrupted(stop) from None
        raise


def _passes(run: Run, stream: Stream, log: RunLog, stop: StopSignals, passes: Passes | None) -> Clock:
    """Train pass by pass."""
    accumulation = Accumulation(run.config.accumulate, run.steps_per_epoch)
    pipeline = TrainPipelineSparseDist(
        run.model,
        run.optimizer,
        run.environment.device,
        execute_all_batches=True,
        dmp_collection_sync_interval_batches=None,  # it counts anew after a restart
        custom_model_fwd=accumulation.scaled(loss_forward(run.model, run.environment)),
    )
    accumulation.wrap(pipeline, run.optimizer, run.model)
    run.model.train()
    stream.seek(run.position)
    batches, clock = device_batches(stream, run.environment), Clock(stream)
    schedule = Schedule(run.model, run.optimizer, run.config, run.total_steps)
    with Watch(clock, run.environment):
        while not run.finished or (passes is not None and run.unjudged):
            if passes is None or not run.unjudged:  # else it was stopped between the last step of a pass and its score
                step = partial(accumulation.progress, pipeline)
                _pass(run, step, accumulation, batches, schedule, clock, log, stop, judged=passes is not None)
            if passes is not None:
                pipeline.detach()  # give the model its own forward back
                with clock.paused():
                    log.say(run.judge(passes))
    pipeline.detach()
    return clock


def _pass(
    run: Run,
    step: Callable[[Iterator[Batch], int], Any],
    accumulation: Accumulation,
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
    owed = asks = False
    for left in reversed(range(run.left_in_epoch)):
        schedule.begin(run.position)
        loss, output = step(epoch, run.position)
        run.step, run.position = run.step + 1, run.position + 1
        run.metrics.update(run.step, loss, output)
        clock.tick(output.logits.shape[0] * run.environment.world_size)
        logs = run.due(run.config.log_every)
        whole = accumulation.is_whole(run.position)  # what waits for its step is in no checkpoint
        owed = owed or run.due(run.config.checkpoint_every)
        saves = run.saver is not None and (left > 0 or not judged) and owed and whole
        if saves or not left or run.position % run.config.sync_every == 0:
            average(run.model)
        if logs or saves or (judged and not left):
            run.metrics.fold()
        if logs:
            run.record = {"epoch": run.position / run.steps_per_epoch, **run.metrics.take_window(clock.window())}
            log.write(run.step, run.record)
        if saves:
            owed = False
            with clock.paused():
                run.save()
        # On a GPU what ranks agree on is waited for; a log line waits anyway.
        asks = asks or logs or saves or run.environment.device.type == "cpu"
        asked = asks and whole and stop.agreed(run.environment.device)
        asks = asks and not whole
        if asked and not run.finished:
            with clock.paused():  # until all is written, that which was begun before included
                if run.saver is not None and not saves:
                    average(run.model)
                    run.metrics.fold()
                    run.save(last=True)
                raise run.interrupted(stop)
