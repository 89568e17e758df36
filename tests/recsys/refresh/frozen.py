"""What the ranks of test_frozen.py run: a publication, or a training with a checkpoint, in which rank 1 freezes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from recsys.config import TrainConfig
from recsys.refresh import content
from recsys.refresh.aggregator import DayWriter
from recsys.refresh.cycle import refresh_upstream
from recsys.train import saving, watch
from recsys.train.distributed import process_group
from recsys.train.trainer import fit
from tests.recsys.refresh.example import REFRESH
from tests.recsys.train.toy import TASKS, make_stream, make_task

SECONDS = 10.0
SLOW = 4.0


def sleep_for_ever() -> None:
    while True:
        time.sleep(1)


def before(function: Callable[..., Any], how: str, rank: int, frozen: int = 1) -> Callable[..., Any]:
    """The same function, before which rank 1, or another, does not move, or moves slowly, once the work has begun. Only
    from then on the time is short: what comes before it takes as long as a busy machine lets it."""

    def changed(*args: Any, **options: Any) -> Any:
        watch.collective_timeout = lambda: timedelta(seconds=SECONDS)
        if rank == frozen:
            {"sleep": sleep_for_ever, "stop": _stop, "slow": lambda: time.sleep(SLOW)}[how]()
        return function(*args, **options)

    return changed


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def publish(log: Path, out: Path, how: str) -> None:
    with process_group() as environment:
        content.BATCH = 4
        DayWriter.append = before(DayWriter.append, how, environment.rank)
        refresh_upstream(REFRESH, log, out)


def train(out: Path, beside: bool) -> None:
    with process_group() as environment:
        stream = make_stream(6, rank=environment.rank)
        saving._sums_or_error = before(saving._sums_or_error, "sleep", environment.rank)
        config = TrainConfig(batch_size=32, checkpoint_every=2, save_beside=beside)
        fit(make_task(), stream, config, environment, tasks=TASKS, title=None, out=out)
