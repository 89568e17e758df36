"""`recsys` on a rank under torchrun, which kills itself where the test wants it, once an attempt: see test_kills.py.

    python -m torch.distributed.run ... -m tests.launchers.killed POINTS refresh --config ...

POINTS are those of the first attempts, divided by commas; later ones come to their end. A file in the folder $KILLED
says of which attempts ranks were killed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recsys.cli import main
from recsys.train import saving
from recsys.train.running_metrics import Metrics


def _before(owner: Any, name: str, dies: Callable[..., bool]) -> None:
    """Let this process die by SIGKILL instead of a call for which `dies` says so."""
    function = getattr(owner, name)

    def call(*arguments: Any, **options: Any) -> Any:
        if dies(*arguments, **options):
            Path(os.environ["KILLED"], os.environ["TORCHELASTIC_RESTART_COUNT"]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    setattr(owner, name, call)


def _countdown(count: int) -> Callable[..., bool]:
    """True at the call of this number."""
    left = iter(range(count - 1, -1, -1))
    return lambda *_, **__: next(left, None) == 0


def _is_last(rank: int) -> bool:
    return rank == int(os.environ["WORLD_SIZE"]) - 1


def epoch(rank: int) -> None:
    """The last rank, after the fifth step of this attempt."""
    if _is_last(rank):
        _before(Metrics, "update", _countdown(5))


def save(rank: int) -> None:
    """The last rank, when it has written its files of the second checkpoint of this attempt."""
    if _is_last(rank):
        _before(saving, "sums", _countdown(2))


def publish(rank: int) -> None:
    """Rank 0, before the seventh file of the store appears: of two series' snapshots some are there."""
    if rank == 0:
        _before(os, "link", _countdown(7))


if __name__ == "__main__":
    points, *sys.argv[1:] = sys.argv[1:]
    for point in points.split(",")[int(os.environ["TORCHELASTIC_RESTART_COUNT"]) :][:1]:
        {each.__name__: each for each in (epoch, save, publish)}[point](int(os.environ["RANK"]))
    main()
