"""A rank that hangs is found: every rank prints where it stands, one is named, and the job ends, to be started anew.

In a step every rank waits for every other; the process group's own timeout would end those that wait, with no word of
whom they waited for, or where that one was. Beside the steps, where ranks read and write files, they wait much longer
(`FILE_TIMEOUT`), and may, as long as one of them still moves on.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from torch.distributed import distributed_c10d

from recsys.telling import first_to_tell
from recsys.train.clock import Clock
from recsys.train.distributed import Environment, collective_timeout
from recsys.train.heartbeat import Signs, tell

HUNG = 1
"""Exit code of a job in which a rank hung: a failure, which torch elastic answers by starting all ranks anew."""
_POLL_SECONDS = 1.0
_STDERR = 2
"""As a file descriptor: Python's watchdog writes to it without the interpreter."""
_GRACE_SECONDS = 10.0
"""For which ranks wait for the others' word; one that has said nothing by then is frozen, or gone."""

Begun = tuple[int, ...]
"""Collectives that a rank has begun: of the steps' group, and of all groups. The first counts before the second: a
checkpoint that is written beside the steps has collectives too, and a rank may stand in one where another is at a step.
"""


class _Watching(ABC):
    """Ends this process where its ranks stand still for `collective_timeout()` within its context.

    A thread looks. It prints the stacks of all threads, as does Python's own watchdog where a thread keeps the
    interpreter from running this one. Then ranks compare how many collectives each has begun: who has begun fewest did
    not come.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Self:
        if self._environment.world_size > 1:
            # Of its own: that of the group may be held by a thread that waits for a key.
            store: Any = distributed_c10d._get_default_store()
            self._store = store.clone()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._environment.world_size > 1:
            self._ended.set()
            self._thread.join(_GRACE_SECONDS)  # the store's machine may be gone
            faulthandler.cancel_dump_traceback_later()

    @abstractmethod
    def _still(self) -> float:
        """For how many seconds nothing has moved on."""

    @property
    @abstractmethod
    def _what(self) -> str:
        """What was not done."""

    def _run(self) -> None:
        while not self._ended.wait(_POLL_SECONDS):
            seconds = collective_timeout().total_seconds()
            faulthandler.dump_traceback_later(seconds + _GRACE_SECONDS, file=_STDERR)
            if self._still() > seconds:
                self._end(f"{self._what} for {seconds:g} s")

    def _end(self, what: str) -> None:
        print(f"rank {self._environment.rank}: {what}; its stacks:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=_STDERR)
        try:
            said = (
                f"{_who(self._asked(), self._environment.world_size)}: {what}. The stacks of all ranks "
                "are above, or in their logs; RECSYS_COLLECTIVE_TIMEOUT is how long a step may take"
            )
            if first_to_tell(said):
                print(f"error: {said}", file=sys.stderr, flush=True)
        except Exception as error:  # the store is gone
            print(f"error: {what}; for whom is not known: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(HUNG)

    def _asked(self) -> dict[int, Begun]:
        """Rank -> collectives that it has begun, of all that say so in time."""
        store, ranks = self._store, range(self._environment.world_size)
        store.set(f"hung/{self._environment.rank}", json.dumps(_begun()))
        end = time.monotonic() + _GRACE_SECONDS
        while time.monotonic() < end and not store.check([f"hung/{rank}" for rank in ranks]):
            time.sleep(0.1)
        keys = {rank: f"hung/{rank}" for rank in ranks}
        return {rank: tuple(json.loads(store.get(key))) for rank, key in keys.items() if store.check([key])}


class Watch(_Watching):
    """Of a training, in which one step after another is to be done. Its clock does not run while checkpoints are
    written and passes are judged.

    Args:
        clock: of the training.
        environment: this rank.
    """

    _what = "no step was done"

    def __init__(self, clock: Clock, environment: Environment) -> None:
        super().__init__(environment)
        self._clock = clock

    def _still(self) -> float:
        return self._clock.since_step()


class Pulse(_Watching):
    """Of work in which ranks have more or less to do, and some wait for others: a checkpoint, a publication, a survey.
    As long as any of them gives signs of life (`recsys.train.heartbeat`), even one that has not come yet, the others
    wait.

    Args:
        work: what it is, in the message.
        environment: this rank.
    """

    def __init__(self, work: str, environment: Environment) -> None:
        super().__init__(environment)
        self._work, self._signs = work, Signs()
        self._seen, self._since = -1, time.monotonic()
        self._looked = self._since

    @property
    def _what(self) -> str:
        return f"no rank moved on with {self._work}"

    def _still(self) -> float:
        now = time.monotonic()
        slept, self._looked = now - self._looked > 10 * _POLL_SECONDS, now
        seen = tell(self._store, self._signs)
        if seen != self._seen or slept:  # a machine that was suspended looks as if the others had been
            self._seen, self._since = seen, now
        return now - self._since


def _begun() -> Begun:
    group: Any = distributed_c10d._get_default_group()
    groups: list[Any] = list(distributed_c10d._world.pg_map)
    return group._get_sequence_number_for_group(), sum(each._get_sequence_number_for_group() for each in groups)


def _who(begun: Mapping[int, Begun], world_size: int) -> str:
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
