"""The exit code of a command that a signal has stopped, and what else a scheduler has to know of it.

`RESUME` is EX_TEMPFAIL of sysexits.h: nothing failed; the same command goes on. A scheduler may start the job again
whatever its other exit codes mean.
"""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

RESUME = 75
"""After SIGTERM, with which machines are taken away (preemption): start the same command again."""
INTERRUPTED = 128 + signal.SIGINT
"""After Ctrl-C, as shells have it: the user wanted it to stop."""


def code_after(received: int) -> int:
    """The exit code of a command that was stopped by this signal, SIGTERM or SIGINT."""
    return RESUME if received == signal.SIGTERM else INTERRUPTED


def stop_on_sigterm() -> None:
    """From now on let SIGTERM end this process as one that is to be started again, also where nothing is trained."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)


def ends_anyway() -> None:
    """From now on, as this process is ending, let SIGTERM change nothing."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # it comes from the scheduler and from torch elastic's agent
    print("stopped by SIGTERM; give the same command again to go on", file=sys.stderr, flush=True)
    raise SystemExit(RESUME)
