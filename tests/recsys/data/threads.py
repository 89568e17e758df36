"""Ranks that are threads of this process: real exchanges, at the price of none, for tests that draw many cases."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from recsys.data.ranks import Ints, Ranks


class _Table:
    """Where threads lay down what the others take."""

    def __init__(self, world_size: int) -> None:
        self.barrier, self.laid = threading.Barrier(world_size), [None] * world_size


class _Thread:
    def __init__(self, rank: int, world_size: int, table: _Table) -> None:
        self.rank, self.world_size, self._table = rank, world_size, table

    def _all(self, mine: Any) -> list[Any]:
        self._table.laid[self.rank] = mine
        self._table.barrier.wait(600)
        found = list(self._table.laid)
        self._table.barrier.wait(600)
        return found

    def exchange(self, columns: Sequence[Ints], to: Ints) -> list[Ints]:
        sent = self._all(([np.array(column) for column in columns], to))
        return [
            np.concatenate([theirs[at][where == self.rank] for theirs, where in sent]) for at in range(len(columns))
        ]

    def gather(self, columns: Sequence[Ints]) -> list[Ints]:
        return [np.concatenate(column) for column in zip(*self._all(list(columns)), strict=True)]

    def sum(self, values: Ints) -> Ints:
        return np.sum(self._all(values), axis=0)

    def max(self, values: Any) -> Any:
        return np.max(self._all(values), axis=0)


def run_threads(function: Callable[[Ranks], Any], world_size: int) -> list[Any]:
    """Call `function(ranks)` on so many ranks; what each returns, rank 0's first."""
    table = _Table(world_size)

    def run(rank: int) -> Any:
        try:
            return function(_Thread(rank, world_size, table))
        except BaseException:
            table.barrier.abort()  # who fails is not waited for
            raise

    with ThreadPoolExecutor(world_size) as pool:
        done = [pool.submit(run, rank) for rank in range(world_size)]
    errors = [error for error in (each.exception() for each in done) if error is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return [each.result() for each in done]
