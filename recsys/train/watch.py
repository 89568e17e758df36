"""A rank that hangs is found: every rank prints where it stands, one is named, and the job ends, to be started anew.

In a step every rank waits for every other; the process group's own timeout would end those that wait, with no word of
whom they waited for, or where that one was.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from torch.distributed import distributed_c10d

from recsys.telling import first_to_tell
from recsys.train.clock import Clock
from recsys.train.distributed import Environment, collective_timeout

HUNG = 1
"""Exit code of a job in which a rank hung: a failure, which torch elastic answers by starting all ranks anew."""
_POLL_SECONDS = 1.0
_STDERR = 2
"""As a file descriptor: Python's watchdog writes to it without the interpreter."""
_GRACE_SECONDS = 10.0
"""For which ranks wait for the others' word; one that has said nothing by then is frozen, or gone."""


class Watch:
    """Ends this process where no step is done for `collective_timeout()`, while within its context one is to be done.

    A thread looks at the clock, which does not run while checkpoints are written and passes are judged. It prints the
    stacks of all threads, as does Python's own watchdog where a thread keeps the interpreter from running this one.
    Then ranks compare how many collectives each has begun: who has begun fewest did not come.

    Args:
        clock: of the training.
        environment: this rank.
    """

    def __init__(self, clock: Clock, environment: Environment) -> None:
        self._clock, self._environment = clock, environment
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        if self._environment.world_size > 1:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._environment.world_size > 1:
            self._ended.set()
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def _run(self) -> None:
        while not self._ended.wait(_POLL_SECONDS):
            seconds = collective_timeout().total_seconds()
            faulthandler.dump_traceback_later(seconds + _GRACE_SECONDS, file=_STDERR)
            if self._clock.since_step() > seconds:
                self._end(seconds)

    def _end(self, seconds: float) -> None:
        rank = self._environment.rank
        print(f"rank {rank}: no step was done for {seconds:g} s; its stacks:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=_STDERR)
        group: Any = distributed_c10d._get_default_group()
        found = self._asked(group._get_sequence_number_for_group())
        said = (
            f"{_who(found, self._environment.world_size)}: no step was done for {seconds:g} s. The stacks of all ranks "
            "are above, or in their logs; RECSYS_COLLECTIVE_TIMEOUT is how long a step may take"
        )
        if first_to_tell(said):
            print(f"error: {said}", file=sys.stderr, flush=True)
        os._exit(HUNG)

    def _asked(self, begun: int) -> dict[int, int]:
        """Rank -> collectives that it has begun, of all that say so in time."""
        store, ranks = distributed_c10d._get_default_store(), range(self._environment.world_size)
        store.set(f"hung/{self._environment.rank}", str(begun))
        end = time.monotonic() + _GRACE_SECONDS
        while time.monotonic() < end and not store.check([f"hung/{rank}" for rank in ranks]):
            time.sleep(0.1)
        keys = {rank: f"hung/{rank}" for rank in ranks}
        return {rank: int(store.get(key)) for rank, key in keys.items() if store.check([key])}


def _who(begun: Mapping[int, int], world_size: int) -> str:
    """Which ranks the others wait for."""
    silent = [rank for rank in range(world_size) if rank not in begun]
    behind = [rank for rank, count in begun.items() if count < max(begun.values())]
    if silent:
        return f"{_ranks(silent)} did not answer"
    if behind:
        return f"{_ranks(behind)} did not come to the collective that the others wait in"
    return "all ranks hang, none behind the others"


def _ranks(numbers: list[int]) -> str:
    return f"rank{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
