"""What the ranks of test_frozen.py run: rows that are screened or surveyed, or a bundle that is written, while a rank
freezes; and work that a rank comes to late."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

from recsys import screening, surveying
from recsys.bundle import write
from recsys.bundle.write import train_bundle
from recsys.config import UpstreamConfig
from recsys.train import watch
from recsys.train.distributed import barrier, process_group
from recsys.train.heartbeat import beat
from recsys.upstream import train_upstream
from tests.recsys.bundle.conftest import ARM, CONFIG
from tests.recsys.refresh.frozen import SECONDS, before

SHORT = 5.0


def train(upstream: UpstreamConfig, log: Path, out: Path, where: str) -> None:
    """Rank 1 freezes as soon as it is to read rows for the one or the other."""
    module, name = {"screening": (screening, "scan"), "surveying": (surveying, "survey")}[where]
    with process_group() as environment:
        setattr(module, name, before(getattr(module, name), "sleep", environment.rank))
        train_upstream(upstream, log, out)


def bundle(data: Path, store: Path, out: Path) -> None:
    """Rank 0 freezes when all that is left to do is to write the bundle, which it does alone."""
    with process_group() as environment:
        watch.collective_timeout = lambda: timedelta(seconds=SECONDS)
        write._write = before(write._write, "sleep", environment.rank, frozen=0)
        train_bundle(CONFIG, ARM, data, out, str(store))


def come_late() -> None:
    """Rank 1 comes to the work when others have waited for longer than a step may take; until then it moves on."""
    with process_group() as environment:
        watch.collective_timeout = lambda: timedelta(seconds=SHORT)
        end = time.monotonic() + 2 * SHORT
        while environment.rank == 1 and time.monotonic() < end:
            time.sleep(0.1)
            beat()
        with watch.Pulse("a survey", environment):
            barrier()
