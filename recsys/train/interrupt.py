"""Stopping a training run from outside, by Ctrl-C or SIGTERM, without losing what it has learned."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

import torch
import torch.distributed as dist

from recsys.stopping import code_after


class Interrupted(SystemExit):
    """Training was stopped by a signal. Ends the process with `recsys.stopping.code_after` it, without a traceback."""

    def __init__(self, received: signal.Signals, message: str) -> None:
        super().__init__(code_after(received))
        self.message = message

    def __str__(self) -> str:
        return self.message


class StopSignals:
    """Within its context the first SIGINT or SIGTERM only sets `received`; a second one acts as usual.

    But SIGTERM comes from the scheduler and from torch elastic's agent, and SIGKILL when they wait no longer: after
    one, a second does nothing.

    Stopping between two steps, not in the middle of a collective or of writing a checkpoint, leaves every rank at a
    clean end. Outside the main thread, where Python allows no handlers, signals act as usual.
    """

    received: signal.Signals | None = None

    def agreed(self, device: torch.device) -> bool:
        """Whether any rank has received one by now, which all then take for their own. A collective.

        So all stop after the same step, and can write a checkpoint of it together.
        """
        number = torch.tensor(self.received or 0, device=device)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        if int(number):
            self.received = signal.Signals(int(number))
        return bool(number)  # one that has come since the ranks agreed is for the next time

    def __enter__(self) -> StopSignals:
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        for each in self._previous:
            signal.signal(each, self._previous[each])
        if number == signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
