"""A whole run on ranks that a launcher has started: rank 0 goes through the stages, and all ranks run each job.

On one machine `recsys run` starts the ranks of each of its jobs (recsys/jobs.py). On a cluster the scheduler has placed
the ranks, as one job of its own, and they stay until the run is done: rank 0 tells the others the command line of each
job by the store that they found each other with, and no process group waits while rank 0 is between two jobs.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

_POLL_SECONDS = 0.1


def on_ranks() -> bool:
    """Whether a launcher has started this process as one of its ranks."""
    return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ


def is_led() -> bool:
    """Whether the jobs of this process are run by ranks that are there, itself among them."""
    return _led is not None


@contextmanager
def leading(run: Callable[[Sequence[str]], None]) -> Iterator[bool]:
    """Whether this process goes through the stages: it is alone, or rank 0 of those that a launcher has started.

    The others run the jobs that rank 0 comes to within the block, and leave it when rank 0 does. A rank that ends with
    an error takes the others with it: its launcher sees to that, and starts all of them anew.

    Args:
        run: runs a command line of `recsys`, without that word, in this process.
    """
    global _led
    if not on_ranks():
        yield True
        return
    _led = _Led(run)
    try:
        if _led.rank == 0:
            yield True
            _led.tell(None)
        else:
            yield False
            _led.follow()
    finally:
        _led = None


def run_led(arguments: Sequence[str]) -> None:
    """Run a job on all ranks; called by rank 0, within `leading()`. Returns when each of them is done."""
    assert _led is not None
    _led.lead(arguments)


class _Led:
    """One of the ranks that are led by rank 0, which tells them what to do by numbered keys of a store."""

    def __init__(self, run: Callable[[Sequence[str]], None]) -> None:
        from torch.distributed import PrefixStore

        from recsys.train.distributed import found_ranks

        store, self.rank, self._world_size = found_ranks()
        self._run, self._numbers, self._store = run, itertools.count(), PrefixStore("led", store)

    def tell(self, arguments: Sequence[str] | None) -> int:
        """The number of the job, which is now known to all; None: there is none any more."""
        number = next(self._numbers)
        self._store.set(f"job {number}", json.dumps(arguments))
        return number

    def lead(self, arguments: Sequence[str]) -> None:
        number = self.tell(arguments)
        self._work(arguments, number)
        for rank in range(self._world_size):
            self._wait_for(f"job {number} rank {rank}")

    def follow(self) -> None:
        for number in self._numbers:
            arguments = json.loads(self._wait_for(f"job {number}"))
            if arguments is None:
                return
            self._work(arguments, number)

    def _work(self, arguments: Sequence[str], number: int) -> None:
        import torch

        self._run(arguments)
        gc.collect()  # models have circles of references; the next job needs their memory
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._store.set(f"job {number} rank {self.rank}", "done")

    def _wait_for(self, key: str) -> bytes:
        """A key's value, however long it takes: a wait of the store's own would keep signals from being handled."""
        while not self._store.check([key]):
            time.sleep(_POLL_SECONDS)
        return self._store.get(key)


_led: _Led | None = None
"""What this process is within `leading()`, where a launcher has started it."""
