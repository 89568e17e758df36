"""The job of the rankers on several ranks: together on each ranker, or each on rankers of its own."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.data.files import find_files
from recsys.downstream import ranking
from recsys.downstream.ranking import all_rankers, train_rankers
from recsys.jobs import run_ranks
from recsys.stages import is_done
from tests.recsys.downstream.example import CONFIG, SPLIT


def on_ranks(data: Path, out: Path, alone: float) -> None:
    ranking.ALONE = alone
    train_rankers(replace(CONFIG, test=("odd.parquet",)), data, out)


@pytest.mark.parametrize("together", [True, False])
def test_ranks_train_rankers_together_or_apart_and_leave_out_no_row(
    data: Path, out: Path, tmp_path: Path, together: bool
) -> None:
    """Three ranks, and test rows that these do not divide. Apart, what comes of it is that of one process."""
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "market").symlink_to(data / "market")
    rows = pa.concat_tables([pq.ParquetFile(path).read() for path in find_files(data, SPLIT.test)])
    count = len(rows) // 3 * 3 - 1
    pq.write_table(rows.slice(0, count), shared / "odd.parquet")
    run_ranks("downstream", on_ranks, (shared, out, 0.0 if together else 0.1), 3, tmp_path / "logs")
    stages = list((out / "stages").iterdir())
    assert len(stages) == (1 if together else 3)
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
            assert np.array_equal(found["users"], rows["user_id"].to_numpy()[:count])
            assert np.isfinite(found["logits"]).all()
    assert is_done(out, "downstream-tasks")
