"""The job of the rankers on several ranks: together on each ranker, or each on rankers of its own."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.config import ArmConfig, ConfigError
from recsys.data.files import find_files
from recsys.downstream import ranking
from recsys.downstream.ranking import all_rankers, train_rankers
from recsys.downstream.validation import Validation
from recsys.folders import store_folder
from recsys.jobs import run_ranks
from recsys.stages import is_done
from tests.recsys.downstream.example import BOTH, CONFIG, NONE, SPLIT, USER, publish_vectors


def on_ranks(data: Path, out: Path, alone: float, spread: bool = False) -> None:
    ranking.ALONE = alone
    train_rankers(replace(CONFIG, test=("odd.parquet",), spread_vectors=spread), data, out)


def odd_test_rows(data: Path, folder: Path) -> pa.Table:
    """The market in a folder, with test rows there that three ranks do not divide."""
    folder.mkdir()
    (folder / "market").symlink_to(data / "market")
    rows = pa.concat_tables([pq.ParquetFile(path).read() for path in find_files(data, SPLIT.test)])
    rows = rows.slice(0, len(rows) // 3 * 3 - 1)
    pq.write_table(rows, folder / "odd.parquet")
    return rows


@pytest.mark.parametrize("together", [True, False])
def test_ranks_train_rankers_together_or_apart_and_leave_out_no_row(
    data: Path, out: Path, tmp_path: Path, together: bool
) -> None:
    """Three ranks, and test rows that these do not divide. Apart, what comes of it is that of one process."""
    shared = tmp_path / "shared"
    rows = odd_test_rows(data, shared)
    run_ranks("downstream", on_ranks, (shared, out, 0.0 if together else 0.1), 3, tmp_path / "logs")
    stages = list((out / "stages").iterdir())
    assert len(stages) == (1 if together else 3)
    parts = {path.name for path in (out / "downstream" / CONFIG.name / "ctr").glob("none-0.*npz")}
    assert parts == ({"none-0.npz", "none-0.1.npz", "none-0.2.npz"} if together else {"none-0.npz"})
    if not together:
        (tmp_path / "one").mkdir()
        shutil.copytree(out / "store", tmp_path / "one/store")
        on_ranks(shared, tmp_path / "one", 0.1)
    for ranker in all_rankers(CONFIG):
        for task in CONFIG.tasks:
            if not together:
                one = ranker.read(tmp_path / "one", task)
                assert all(np.array_equal(values, one[name]) for name, values in ranker.read(out, task).items())
            found = ranker.read(out, task)
            assert np.array_equal(found["users"], rows["user_id"].to_numpy())
            assert np.isfinite(found["logits"]).all()
            ne = Validation.load(ranker.validation(out, task)).ne
            assert found["validation_losses"].mean() == pytest.approx(ne, rel=1e-9)
    assert is_done(out, "downstream-tasks")


def test_other_ranks_go_on_with_what_was_predicted(data: Path, out: Path, tmp_path: Path) -> None:
    """Two, after three of which the ranker without vectors alone was done: theirs are other shares of its rows."""
    shared = tmp_path / "shared"
    rows = odd_test_rows(data, shared)
    run_ranks("downstream", on_ranks, (shared, out, 0.0), 3, tmp_path / "three")
    kept = NONE.read(out, "ctr")
    for ranker in all_rankers(CONFIG):
        for file in (out / "downstream" / CONFIG.name).glob(f"*/{ranker.arm}-{ranker.seed}.*"):
            if ranker != NONE:
                file.unlink()
    run_ranks("downstream", on_ranks, (shared, out, 0.0), 2, tmp_path / "two")
    assert all(np.array_equal(values, kept[name]) for name, values in NONE.read(out, "ctr").items())
    for ranker in (USER, BOTH):
        found, figures = ranker.read(out, "ctr"), Validation.load(ranker.validation(out, "ctr"))
        assert figures.tried.keys() == {"with", "without", "error"}
        assert figures.tried["without"] == pytest.approx(kept["validation_losses"].mean(), rel=1e-9)
        assert found["validation_losses"].mean() == pytest.approx(figures.ne, rel=1e-9)
        users, losses = rows["user_id"].to_numpy(), len(kept["validation_losses"])
        assert np.array_equal(found["users"], users)
        assert len(found["validation_losses"]) == losses


def test_rankers_on_spread_vectors_are_those_on_whole_tables(data: Path, out: Path, tmp_path: Path) -> None:
    """Two ranks whose last batches are not the same number, and versions that are published while the events go on."""
    day = 86_400_000
    for days in (1, 2):
        publish_vectors(data, store_folder(out), later_ms=days * day, turned=0.3 * days)
    shared, spread = tmp_path / "shared", tmp_path / "spread"
    odd_test_rows(data, shared)
    spread.mkdir()
    shutil.copytree(store_folder(out), store_folder(spread))
    for folder, flag in ((out, False), (spread, True)):
        run_ranks("downstream", on_ranks, (shared, folder, 0.0, flag), 2, tmp_path / f"logs-{flag}")
    for ranker in all_rankers(CONFIG):
        for task in CONFIG.tasks:
            whole, found = ranker.read(out, task), ranker.read(spread, task)
            assert whole.keys() == found.keys()
            assert all(np.array_equal(values, found[name]) for name, values in whole.items())
            assert ranker.validation(out, task).read_text() == ranker.validation(spread, task).read_text()


def test_spread_vectors_have_no_history() -> None:
    arm = ArmConfig(name="x", series=("user_ctr",), history=2)
    with pytest.raises(ConfigError, match=r"arms.x.history is 2: with spread_vectors"):
        replace(CONFIG, arms=(arm,), spread_vectors=True)
