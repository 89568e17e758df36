"""What the ranks of test_watch.py run: a training in which rank 1 sleeps for ever before the fourth batch, and work in
which rank 0 waits for a key."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta

from torch.distributed import distributed_c10d

from recsys.config import TrainConfig
from recsys.data.batch import Batch
from recsys.train import watch
from recsys.train.distributed import process_group
from recsys.train.trainer import fit
from tests.recsys.train.toy import TASKS, ListStream, make_stream, make_task

FOURTH = 3
SECONDS = 10.0


class Sleeping(ListStream):
    """Of a rank that sleeps, or waits for one that does: only from then on the time is short."""

    sleeps = False

    def __iter__(self) -> Iterator[Batch]:
        for number, batch in enumerate(super().__iter__()):
            if number == FOURTH:
                watch.collective_timeout = lambda: timedelta(seconds=SECONDS)
                if self.sleeps:
                    sleep_for_ever()
            yield batch


def sleep_for_ever() -> None:
    while True:
        time.sleep(1)


def main() -> None:
    with process_group() as environment:
        stream = Sleeping(make_stream(6, rank=environment.rank).batches)
        stream.sleeps = environment.rank == 1
        fit(make_task(), stream, TrainConfig(batch_size=32), environment, tasks=TASKS, title=None)


def wait_for_a_key() -> None:
    with process_group() as environment:
        watch.collective_timeout = lambda: timedelta(seconds=3)
        with watch.Pulse("a key", environment):
            if environment.is_main:
                distributed_c10d._get_default_store().wait(["never"], timedelta(hours=1))
            sleep_for_ever()
