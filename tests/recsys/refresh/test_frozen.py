"""A rank that freezes beside the steps, where the others would wait for a day, on real ranks under torch elastic."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedding_store import EmbeddingStore
from recsys.folders import store_folder
from recsys.jobs import JobError, run_ranks
from recsys.train.distributed import Environment
from tests.recsys.refresh import frozen
from tests.recsys.refresh.example import save_checkpoint

TOLD = (
    "no rank moved on with {work} for 10 s. The stacks of all ranks are above, or in their logs; "
    "RECSYS_COLLECTIVE_TIMEOUT is how long a step may take"
)
BEHIND = "error: rank 1 did not come to the collective that the others wait in: "


def stacks(logs: Path) -> list[str]:
    """What each rank wrote."""
    return [path.read_text() for path in sorted(logs.glob("*/*/attempt_0/*/stderr.log"))]


@pytest.mark.parametrize("how", ["sleep", pytest.param("stop", marks=pytest.mark.long)])
def test_a_rank_that_freezes_in_a_publication_is_named(
    log: Path, tmp_path: Path, environment: Environment, how: str
) -> None:
    save_checkpoint(tmp_path, 1, environment)
    with pytest.raises(JobError) as caught:
        run_ranks("frozen", frozen.publish, (log, tmp_path, how), 2, tmp_path / "logs")
    who = {"sleep": BEHIND, "stop": "error: rank 1 did not answer: "}[how]
    assert who + TOLD.format(work="a publication") in str(caught.value)
    waiting, other = stacks(tmp_path / "logs")
    assert "rank 0: no rank moved on with a publication for 10 s; its stacks:" in waiting
    assert "sleep_for_ever" not in waiting
    if how == "sleep":
        assert "in sleep_for_ever" in other
    assert [EmbeddingStore(store_folder(tmp_path)).series(name).versions() for name in ("user_ctr", "item_ctr")] == [
        [],
        [],
    ]


@pytest.mark.long
def test_who_is_slow_is_waited_for(log: Path, tmp_path: Path, environment: Environment) -> None:
    """For longer than a step may take."""
    save_checkpoint(tmp_path, 1, environment)
    run_ranks("slow", frozen.publish, (log, tmp_path, "slow"), 2, tmp_path / "logs")
    store = EmbeddingStore(store_folder(tmp_path))
    assert [store.series(name).versions() for name in ("user_ctr", "item_ctr")] == [[1], [1]]


@pytest.mark.parametrize("beside", [pytest.param(False, marks=pytest.mark.long), True])
def test_a_rank_that_freezes_in_a_checkpoint_is_named(tmp_path: Path, beside: bool) -> None:
    with pytest.raises(JobError) as caught:
        run_ranks("frozen", frozen.train, (tmp_path / "out", beside), 2, tmp_path / "logs")
    assert BEHIND + TOLD.format(work="a checkpoint") in str(caught.value)
    assert ["in sleep_for_ever" in each for each in stacks(tmp_path / "logs")] == [False, True]
