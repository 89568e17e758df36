"""The whole way on a log with rows that cannot be read: what comes out is what comes of the log without them."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys import pipeline
from recsys.checks import check_run
from recsys.data.errors import DataError
from recsys.downstream import ranking
from recsys.downstream.ranking import train_rankers
from recsys.study.ablation import ablation_jobs
from recsys.study.collect import collect_results
from recsys.study.report import RunResults, build_report, load_report, write_report
from recsys.train.distributed import process_group
from tests.recsys.test_own_data import CONFIG, DAYS, SCHEMA, day, run_jobs

STRAYS: dict[int, tuple[int, dict[str, Any]]] = {
    0: (70, {"opened": None}),
    1: (3, {"member": None}),
    2: (49, {"price": float("inf")}),
    3: (200, {"at": -1}),
    4: (0, {"opened": None}),
    5: (250, {"sku": None}),
}
"""Day -> a row that cannot be read, and why not."""
STUDY = replace(
    CONFIG,
    rankers=replace(CONFIG.rankers, training=replace(CONFIG.rankers.training, shuffle_batches=0)),
    upstreams=(replace(CONFIG.upstreams[0], training=replace(CONFIG.upstreams[0].training, shuffle_batches=0)),),
)
"""In the stored order: a shuffle is of row groups, which are others where a row is gone."""
TRAININGS = STUDY.trainings()


def deliver(data: Path, *, strays: bool, unknown: int = 0) -> Path:
    """A log of six days, each with its stray row or without it; `unknown` prices of the last day are null."""
    (data / "log").mkdir(parents=True)
    SCHEMA.save(data / "schema.toml")
    for number in range(DAYS):
        (data / f"log/day={number}").mkdir()
        table, (row, changed) = day(number), STRAYS[number]
        rows = table.to_pylist()
        rows[row] |= changed
        if number == DAYS - 1:
            for index in range(unknown):
                rows[index]["price"] = None
        if not strays:
            del rows[row]
        pq.write_table(
            pa.Table.from_pylist(rows, table.schema), data / f"log/day={number}/a.parquet", row_group_size=50
        )
    check_run(STUDY, data)
    return data


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[Path, Path, RunResults]]]:
    """Data, run and results, with stray rows and without."""
    with process_group():
        found = []
        for strays in (True, False):
            data, out = (
                deliver(tmp_path_factory.mktemp("data"), strays=strays, unknown=7),
                tmp_path_factory.mktemp("out"),
            )
            run_jobs(data, out, STUDY)
            found.append((data, out, collect_results(STUDY, data, out)))
        yield found


def test_results_are_those_of_the_log_without_them(runs: list[tuple[Path, Path, RunResults]]) -> None:
    (_, _, found), (_, _, expected) = runs
    assert found.series == expected.series
    assert found.retrieval == expected.retrieval
    assert found.rows == expected.rows == {"train": 598, "validation": 299, "test": 299}
    for task, scores in expected.tasks.items():
        assert np.array_equal(found.tasks[task].labels, scores.labels)
        assert np.array_equal(found.tasks[task].users, scores.users)
        for arm, logits in scores.arms.items():
            assert np.array_equal(found.tasks[task].arms[arm], logits)


def test_the_report_says_so(runs: list[tuple[Path, Path, RunResults]], tmp_path: Path) -> None:
    (_, _, found), (_, _, without) = runs
    assert found.screened == {
        "rankers-tasks": {"rows": 1200, "quarantined": 4, "read_as_0": {"price": 7}},
        **{f"upstream-{upstream.name}": {"rows": 600, "quarantined": 2, "read_as_0": {}} for upstream in TRAININGS},
    }
    write_report(build_report(found), tmp_path)
    assert load_report(tmp_path)["screened"] == found.screened
    page = (tmp_path / "report.html").read_text()
    assert "Rows that were left out: 4 of 1,200 in rankers-tasks, 2 of 600 in upstream-open" in page
    assert "; quarantine/ says" in page
    assert "Values null or NaN, read as 0, over all that was read: price 7." in page
    write_report(build_report(replace(without, screened={})), tmp_path)
    assert "left out" not in (tmp_path / "report.html").read_text()


def test_a_second_start_reads_nothing_again(
    runs: list[tuple[Path, Path, RunResults]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (data, out, found), _ = runs
    monkeypatch.setattr("recsys.screening.scan", lambda *_: pytest.fail("the rows were read again"))
    train_rankers(ablation_jobs(STUDY)["tasks"], data, out)
    assert collect_results(STUDY, data, out).rows == found.rows


def test_a_label_that_no_ranker_predicts_is_screened_for_the_retrieval(
    runs: list[tuple[Path, Path, RunResults]], tmp_path: Path
) -> None:
    (data, run, found), _ = runs
    out = Path(shutil.copytree(run, tmp_path / "out"))
    settings = replace(STUDY.rankers, tasks={"ctr": "opened"})
    assert STUDY.retrieval is not None
    asked = replace(STUDY, rankers=settings, retrieval=replace(STUDY.retrieval, label="bought"))
    results = collect_results(asked, data, out)
    assert results.retrieval is not None
    assert found.retrieval is not None
    assert 0 < results.retrieval.users < found.retrieval.users
    assert results.screened["retrieval"] == {"rows": 1200, "quarantined": 3, "read_as_0": {}}


def test_too_many_are_refused_before_a_ranker_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = deliver(tmp_path / "data", strays=True)
    path = data / "log/day=4/a.parquet"
    rows = pq.ParquetFile(path).read()
    changed = [*rows["at"].to_pylist()[:-1], None]
    pq.write_table(rows.set_column(0, "at", pa.array(changed, pa.int64())), path)
    monkeypatch.setattr(ranking, "train_ranker", lambda *_: pytest.fail("it was trained"))
    monkeypatch.setattr(pipeline, "start_job", lambda *_: pytest.fail("an upstream was trained for it"))
    with pytest.raises(DataError, match=r"day=4/a.parquet: column 'opened', row 0: .* At least 2 of 300"):
        pipeline.run_stages(STUDY, data, tmp_path / "out")
    with (
        process_group(),
        pytest.raises(DataError, match=r"day=4/a.parquet: column 'opened', row 0: .* At least 2 of 300"),
    ):
        train_rankers(ablation_jobs(STUDY)["tasks"], data, tmp_path / "out")
