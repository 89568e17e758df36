"""How a task runs over a stream of batches, in training and for its predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.data.rest import Place
from recsys.train.distributed import Environment
from recsys.train.heartbeat import beat
from recsys.train.running_metrics import TaskOutput


class Batches(Protocol):
    """Batches that can be read again."""

    def seek(self, position: int) -> None:
        """Continue with the batch of this number."""

    def __iter__(self) -> Iterator[Batch]: ...


class Stream(Batches, Protocol):
    """What training needs of a stream; every rank has its own, with as many batches as the others'. A batch's
    number is counted over all passes."""

    @property
    def wait_seconds(self) -> float:
        """Time the reader of the stream has waited for a batch so far."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one pass over the events."""

    @property
    def total_steps(self) -> int:
        """Batches of all passes."""

    def place(self, position: int) -> Place:
        """Where a training stands before the batch of this number, for any number of ranks."""

    def resume(self, place: Place) -> int:
        """Go on there, which another number of ranks may have said; the number of the next batch."""

    @property
    def shortfall(self) -> str:
        """What became of events that are less than a batch of every rank; empty: they are more."""


def loss_forward(
    model: nn.Module, environment: Environment
) -> Callable[[Any], tuple[Tensor, tuple[Tensor, TaskOutput]]]:
    """The model's forward, which also hands out the loss."""

    def forward(batch: Any) -> tuple[Tensor, tuple[Tensor, TaskOutput]]:
        with mixed_precision(environment.device):
            loss, output = model(batch)
        return loss, (loss.detach(), output)

    return forward


def mixed_precision(device: torch.device) -> AbstractContextManager[Any]:
    """What a forward runs in: bfloat16 where the device gains from it, but for what is distances or similarities."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def device_batches(stream: Batches, environment: Environment) -> Iterator[Batch]:
    """The stream's batches, in page-locked memory where they are to be copied to a GPU beside its computing; a stream
    that has its own thread puts them there before they are asked for, and nothing is copied here."""
    if environment.device.type == "cuda":
        return (batch.pin_memory() for batch in stream)
    return iter(stream)


Said = tuple[Tensor, Tensor, Tensor, Tensor]
"""Logits float32 [N, T], labels float32 [N, T], mask bool [N, T] and user ids int64 [N], on the CPU."""


def predict(model: nn.Module, stream: Batches, environment: Environment) -> Said:
    """Run a task over every batch of this rank's stream, without training. A collective: every rank calls it, and keeps
    what is said of its own rows. `recsys.shared_figures` measures them together.

    Args:
        model: a task, sharded or not. Its forward may be a collective: a rank whose batches are fewer joins in with its
            last one, which nobody keeps.
        stream: this rank's batches, read from the first on.
        environment: this rank.

    Raises:
        ValueError: the stream has no batch.
    """
    was_training = model.training
    model.eval()
    forward, parts = loss_forward(model, environment), []
    stream.seek(0)
    with torch.no_grad():
        for batch, kept in in_step(stream, environment):
            _, (_, output) = forward(batch)
            if kept:
                parts.append((output.logits.float(), output.labels, output.mask, batch.user_ids))
    model.train(was_training)
    mine = [torch.cat(column) for column in zip(*parts, strict=True)] if parts else _nothing(output, batch.user_ids)
    logits, labels, mask, users = (x.cpu() for x in mine)
    return logits, labels, mask, users


def _nothing(output: TaskOutput, users: Tensor) -> list[Tensor]:
    """No row, of the shapes of others."""
    return [x[:0] for x in (output.logits.float(), output.labels, output.mask, users)]


def in_step(stream: Batches, environment: Environment) -> Iterator[tuple[Batch, bool]]:
    """The rank's batches, on its device, and whether they count: the last one again until no rank has another."""
    batches, batch = device_batches(stream, environment), None
    while True:
        found = next(batches, None)
        left = torch.tensor([found is not None], dtype=torch.int32, device=environment.device)
        if environment.world_size > 1:
            dist.all_reduce(left)
        if not bool(left):
            break
        beat()
        batch = batch if found is None else found.to(environment.device, non_blocking=True)
        if batch is None:
            break
        yield batch, found is not None
    if batch is None:
        raise ValueError("the stream to predict on has no batch: give it files with at least one row")
