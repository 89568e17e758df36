"""What the ranks exchange on the control group, on the CPU: rows of a log, ids of entities, results, errors.

On that group since a rank may read and write files before it comes to an exchange, for as long as that takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from recsys.data.ranks import ALONE as NOBODY
from recsys.data.ranks import Ints, Ranks
from recsys.train.distributed import Environment, broadcast, control_group
from recsys.train.heartbeat import beat

ALONE = Environment(rank=0, world_size=1, local_world_size=1, device=torch.device("cpu"))
"""One process, without a process group."""

T = TypeVar("T")
S = TypeVar("S", bound=np.generic)


def ranks_of(environment: Environment | None) -> Ranks:
    """The ranks that read together; None: this process alone."""
    return NOBODY if environment is None or environment.world_size == 1 else _Group(environment)


class Route:
    """The way of rows to other ranks, and of answers back. A collective, as each of its methods is."""

    def __init__(
        self,
        to: Ints,  # int64 [n]: the rank that each row goes to
        world_size: int,
    ) -> None:
        self._alone = world_size == 1
        if self._alone:
            return
        self._group = control_group()
        self._order = np.argsort(to, kind="stable")
        self._sent = np.bincount(to, minlength=world_size).tolist()
        came = torch.empty(world_size, dtype=torch.int64)
        dist.all_to_all_single(came, torch.tensor(self._sent), group=self._group)
        self._came = came.tolist()

    def send(
        self,
        column: NDArray[S],  # [n]
    ) -> NDArray[S]:  # [m]
        """What came from all ranks, rank 0's first, the rows of one rank in their order."""
        return column if self._alone else self._travel(column[self._order], self._sent, self._came)

    def answer(
        self,
        answers: NDArray[S],  # [m], one for each row that came
    ) -> NDArray[S]:  # [n]
        """What the others answered to this rank's rows."""
        if self._alone:
            return answers
        found = np.empty(len(self._order), answers.dtype)
        found[self._order] = self._travel(answers, self._came, self._sent)
        return found

    def _travel(self, rows: NDArray[S], sent: list[int], came: list[int]) -> NDArray[S]:
        received = np.empty(sum(came), rows.dtype)
        ordered = torch.from_numpy(np.ascontiguousarray(rows))
        dist.all_to_all_single(torch.from_numpy(received), ordered, came, sent, group=self._group)
        beat()
        return received


class _Group:
    """`Ranks` on gloo."""

    def __init__(self, environment: Environment) -> None:
        self.rank, self.world_size = environment.rank, environment.world_size
        self._group = control_group()

    def exchange(self, columns: Sequence[Ints], to: Ints) -> list[Ints]:
        route = Route(to, self.world_size)
        return [route.send(column) for column in columns]

    def gather(self, columns: Sequence[Ints]) -> list[Ints]:
        everywhere = np.tile(np.arange(self.world_size), (len(columns[0]), 1)).ravel()
        return self.exchange([np.repeat(column, self.world_size) for column in columns], everywhere)

    def sum(self, values: Ints) -> Ints:
        total = torch.from_numpy(np.array(values))
        dist.all_reduce(total, group=self._group)
        beat()
        return total.numpy()

    def max(self, values: NDArray[np.float32] | Ints) -> NDArray[np.float32] | Ints:
        greatest = torch.from_numpy(np.array(values))
        dist.all_reduce(greatest, dist.ReduceOp.MAX, group=self._group)
        beat()
        return greatest.numpy()


def agreed(value: Callable[[], T], environment: Environment) -> T:
    """What it gives on rank 0, on every rank; what it raises there, too. A collective."""
    if environment.world_size == 1:
        return value()
    result, failed = broadcast(_tried(value) if environment.is_main else None, environment)
    if failed is not None:
        raise failed
    return result


def of_all(value: Callable[[], T], environment: Environment) -> list[T]:
    """What it gives on each rank, on every rank; what it raises on one, too. A collective."""
    if environment.world_size == 1:
        return [value()]
    found: list[Any] = [None] * environment.world_size
    dist.all_gather_object(found, _tried(value), group=control_group())
    beat()
    for _, failed in found:
        if failed is not None:
            raise failed
    return [result for result, _ in found]


def total(count: int, environment: Environment) -> int:
    """The sum of all ranks' counts. A collective."""
    return int(ranks_of(environment).sum(np.array([count], np.int64))[0])


def in_step(items: Iterator[T], environment: Environment) -> Iterator[T | None]:
    """The items, then None as long as another rank has some. A collective."""
    item = next(items, None)
    while total(item is not None, environment):
        yield item
        item = next(items, None)


def _tried(value: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """An error too is for every rank: else the others would wait for ever."""
    try:
        return value(), None
    except Exception as error:
        return None, error
