"""A rank that freezes while rows are read before a training, or a bundle is written after it, on real ranks under torch
elastic; and one that only comes late."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from recsys.config import TrainConfig
from recsys.folders import bundle_folder
from recsys.jobs import JobError, run_ranks
from tests.recsys import frozen
from tests.recsys.downstream.conftest import data as data
from tests.recsys.downstream.conftest import store as store
from tests.recsys.refresh.example import CONFIG, write_log

UPSTREAM = replace(CONFIG.upstreams[0], training=TrainConfig(batch_size=4), held_out=0.0)
WORK = {"screening": "the screening of upstream-ctr", "surveying": "a survey of events"}
TOLD = (
    "error: rank {} did not come to the collective that the others wait in: no rank moved on with {} for 10 s. The "
    "stacks of all ranks are above, or in their logs; RECSYS_COLLECTIVE_TIMEOUT is how long a step may take"
)


def frozen_ranks(logs: Path) -> list[bool]:
    """Whether each rank's stacks show it frozen."""
    found = [path.read_text() for path in sorted(logs.glob("*/*/attempt_0/*/stderr.log"))]
    return ["in sleep_for_ever" in each for each in found]


@pytest.mark.parametrize("where", [pytest.param("screening", marks=pytest.mark.long), "surveying"])
def test_a_rank_that_freezes_while_rows_are_read_is_named(tmp_path: Path, where: str) -> None:
    log, logs = write_log(tmp_path / "log"), tmp_path / "logs"
    with pytest.raises(JobError) as caught:
        run_ranks("frozen", frozen.train, (UPSTREAM, log, tmp_path / "out", where), 2, logs)
    assert TOLD.format(1, WORK[where]) in str(caught.value)
    assert frozen_ranks(logs) == [False, True]


@pytest.mark.long
def test_a_rank_that_freezes_as_it_writes_a_bundle_is_named(data: Path, store: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError) as caught:
        run_ranks("frozen", frozen.bundle, (data, store, tmp_path / "out"), 2, tmp_path / "logs")
    assert TOLD.format(0, "a bundle") in str(caught.value)
    assert frozen_ranks(tmp_path / "logs") == [True, False]
    assert not bundle_folder(tmp_path / "out").exists()


def test_who_comes_late_to_work_and_moved_on_before_is_waited_for(tmp_path: Path) -> None:
    run_ranks("late", frozen.come_late, (), 2, tmp_path)
