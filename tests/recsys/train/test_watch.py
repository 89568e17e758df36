"""A rank that hangs: all say where they stand, it is named, and the job fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from recsys.jobs import JobError, run_ranks
from recsys.train.distributed import DeviceError, collective_timeout
from recsys.train.watch import _who
from tests.recsys.train import hung


def test_a_rank_that_sleeps_is_named_and_every_rank_prints_its_stack(tmp_path: Path) -> None:
    with pytest.raises(JobError) as caught:
        run_ranks("hung", hung.main, (), 2, tmp_path)
    assert (
        "error: rank 1 did not come to the collective that the others wait in: no step was done for 10 s. The stacks "
        "of all ranks are above, or in their logs; RECSYS_COLLECTIVE_TIMEOUT is how long a step may take"
    ) in str(caught.value)
    waiting, sleeping = (path.read_text() for path in sorted(tmp_path.glob("*/*/attempt_0/*/stderr.log")))
    assert "rank 0: no step was done for 10 s; its stacks:" in waiting
    assert "in progress" in waiting, "of the train pipeline"
    assert "sleep_for_ever" not in waiting
    assert "rank 1: no step was done for 10 s; its stacks:" in sleeping
    assert "in sleep_for_ever" in sleeping


def test_who_is_behind() -> None:
    behind = "rank {} did not come to the collective that the others wait in"
    assert _who({0: (7, 9), 1: (7, 9), 2: (6, 8)}, 3) == behind.format(2)
    assert _who({0: (7, 9), 1: (6, 12)}, 2) == behind.format(1), "it has not left what came before the others' step"
    assert _who({0: (7, 9), 1: (7, 8)}, 2) == behind.format(1), "both are beside the steps"
    assert _who({0: (7, 9), 1: (6, 8)}, 4) == "ranks 2, 3 did not answer"
    assert _who({0: (7, 9), 1: (7, 9)}, 2) == "all ranks hang, none behind the others"


def test_a_rank_that_waits_for_a_key_answers(tmp_path: Path) -> None:
    """As one that makes a group with another that does not come: that holds the store."""
    with pytest.raises(JobError) as caught:
        run_ranks("keyless", hung.wait_for_a_key, (), 2, tmp_path)
    assert "error: all ranks hang, none behind the others: no rank moved on with a key for 3 s" in str(caught.value)


@pytest.mark.parametrize("value", ["0", "-1", "soon", "1e30"])
def test_a_timeout_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("RECSYS_COLLECTIVE_TIMEOUT", value)
    with pytest.raises(DeviceError, match=r"RECSYS_COLLECTIVE_TIMEOUT is .*: give seconds, more than 0"):
        collective_timeout()
