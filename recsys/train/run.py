"""A training run: where it stands, what of it is kept in checkpoints, and what it leaves behind."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.keyed import KeyedOptimizer

from recsys.config import TrainConfig
from recsys.data.rest import Place
from recsys.identity import code_version, differences
from recsys.train import checkpoint
from recsys.train.checkpoint import CheckpointError
from recsys.train.clock import Clock
from recsys.train.distributed import Environment
from recsys.train.interrupt import Interrupted, StopSignals
from recsys.train.optimizer import decay_accumulators
from recsys.train.passes import BestPasses, Passes, Scores, best_passes, is_settled, told
from recsys.train.predict import Stream
from recsys.train.running_metrics import Metrics
from recsys.train.saving import Saver
from recsys.train.tables import draw_tables
from recsys.train.watch import Pulse

_POLL_SECONDS = 0.05


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
class Run:
    """A training run and where it stands."""

    config: TrainConfig
    environment: Environment
    saver: Saver | None
    """None: nothing is written."""
    model: DistributedModelParallel
    optimizer: KeyedOptimizer
    metrics: Metrics
    stream: Stream
    steps_per_epoch: int
    total_steps: int
    identity: Mapping[str, Mapping[str, str]]
    """What the run is of: `files`, `config`, `quarantine`."""
    score: str
    """What `scores` are called."""
    step: int = 0
    """Steps done. Differs from `position` only after a resume on another number of ranks."""
    position: int = 0
    """Number of the stream's next batch."""
    record: dict[str, float] = field(default_factory=dict)
    """The last logged figures."""
    scores: list[Scores] = field(default_factory=list)
    """Of the passes that have been judged."""
    ends: list[int] = field(default_factory=list)
    """The steps after which they ended."""

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
        """Whether the last passes that were judged, as many as are waited for, are the best by no score."""
        return is_settled(self.scores, self.config.patience)

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
        path = None if self.saver is None else checkpoint.newest_good(self.saver.folder, self.environment)
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
            path, model=self.model, optimizer=self.optimizer, environment=self.environment, checked=True
        )
        self.metrics.load_state(sums, progress["parts"])
        self.step, self.record = progress["step"], progress["record"]
        self.scores, self.ends = [tuple(scores) for scores in progress["scores"]], progress["ends"]
        self.position = self.stream.resume(Place.of(progress["place"]))
        moved = progress["steps_per_epoch"] != self.steps_per_epoch
        note += f", now {self.steps_per_epoch} instead of {progress['steps_per_epoch']} batches a pass" if moved else ""
        return f"continuing from {path}{note}"

    def _check_identity(self, path: Path, progress: Mapping[str, Any]) -> str:
        """See that a checkpoint is of these files and this config; tell if other code wrote it."""
        parts = {name: differences(progress["identity"].get(name, {}), now) for name, now in self.identity.items()}
        found = [f"{name}: {difference}" for name, difference in parts.items() if difference]
        if "place" not in progress:
            found.append(
                f"version {progress['code']} of this package wrote it, which did not note what ranks have read"
            )
        if found:
            raise CheckpointError(
                f"{path} is of another training. {'. '.join(found)}. Give the files and the config it was begun with, "
                f"choose another output folder, or delete {path.parent} to train anew"
            )
        code, written = code_version(), progress["code"]
        return f" (warning: version {written} of this package wrote it, this is {code})" if written != code else ""

    def save(self, *, last: bool = False) -> None:
        """Write a checkpoint, beside the training unless it is to be the last one. The metrics must have been folded:
        that also checks that the losses are finite."""
        assert self.saver is not None
        progress = {
            "place": self.stream.place(self.position).record(),
            "steps_per_epoch": self.steps_per_epoch,
            "record": self.record,
            "scores": self.scores,
            "ends": self.ends,
            "parts": self.metrics.parts,
            "identity": self.identity,
            "code": code_version(),
        }
        self.saver.save(
            self.step,
            model=self.model,
            optimizer=self.optimizer,
            metrics=self.metrics.state(),
            progress=progress,
            last=last or self.finished,
        )

    @contextmanager
    def saving(self, stop: StopSignals) -> Iterator[None]:
        """The training: at its end, however it comes, a checkpoint that is still being written is waited for; after an
        error until SIGTERM comes, with which torch elastic says that a rank is gone without whom none will be."""
        saver = self.saver
        if saver is None:
            yield
            return
        try:
            yield
        except Exception:
            while saver.is_writing and stop.received is None:
                time.sleep(_POLL_SECONDS)
            raise
        except (Interrupted, KeyboardInterrupt):  # one more Ctrl-C, and it is not waited for
            saver.close()
            raise
        saver.close()

    def judge(self, passes: Passes) -> str:
        """Score the pass that has ended; what to say of it. After the last one the model is that of the newest best one
        again. Where checkpoints are kept, theirs are, and bring them back."""
        with Pulse("the validation of a pass", self.environment):
            improved = passes.evaluate()
        self.scores = list(passes.scores)
        self.ends.append(self.step)
        newest = max(best_passes(self.scores))
        back = self.finished and not improved
        if back and self.saver is None:
            passes.bring(newest)
        elif back and self.saver is not None:
            self.saver.wait()
            kept = checkpoint.at(self.saver.folder, self.ends[newest])
            checkpoint.restore(kept, model=self.model, optimizer=self.optimizer, environment=self.environment)
        if self.saver is not None:
            self.save()
        return told(self.scores, self.total_steps // self.steps_per_epoch, self.score, self.config.patience)

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
            best=BestPasses(best_passes(self.scores), self._bring if passes is None or self.saver else passes.bring),
            shortfall=shortfall,
        )

    def _bring(self, number: int) -> None:
        """Bring the model to what it was after one of the best passes, from its checkpoint. A collective."""
        assert self.saver is not None
        checkpoint.load_model(checkpoint.at(self.saver.folder, self.ends[number]), self.model)

    def interrupted(self, stop: StopSignals) -> Interrupted:
        """What to raise when a signal asked the run to stop; rank 0 says how to go on."""
        assert stop.received is not None
        if self.saver is not None:
            self.saver.wait()
        path = None if self.saver is None else checkpoint.latest(self.saver.folder)
        next_time = f"continues from {path}" if path else "starts anew: no checkpoint was written yet"
        message = (
            f"stopped by {stop.received.name} after step {self.step} of {self.last_step}; the same command {next_time}"
        )
        if self.environment.is_main:
            print(message, file=sys.stderr, flush=True)
        return Interrupted(stop.received, message)
