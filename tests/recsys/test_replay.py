"""`recsys daily`, from a folder of days to the report: real jobs on two ranks."""

import json
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys import replay
from recsys.config import (
    DaysConfig,
    GateConfig,
    ModelConfig,
    NetworkConfig,
    RankerConfig,
    RankerTrainConfig,
    RefreshConfig,
    SpansConfig,
    StudyConfig,
    TrainConfig,
    UpstreamConfig,
)
from recsys.data.errors import DataError
from recsys.data.synthetic import prepare_synthetic
from recsys.opening import open_study
from recsys.recipes import DAILY, synthetic_daily
from recsys.refresh.records import Ledger
from recsys.study.ways import study_job

DAYS = [f"2024-01-0{number}" for number in range(3, 7)]


def config(**gates: float) -> StudyConfig:
    """Two days of source, four days: one to train on, one to tune, two to test."""
    whole = synthetic_daily()
    upstream = replace(
        whole.upstreams[0],
        source=replace(
            whole.upstreams[0].source, events=("market/events/2024-01-01/*/*.parquet", "market/events/2024-01-02/*/*")
        ),
        model=ModelConfig(token_dim=8, layers=(("mlp",),), tokens=2, out_tokens=1, out_dim=8, sequence_layers=0),
        training=TrainConfig(epochs=2, batch_size=64),
    )
    return replace(
        whole,
        name="tiny",
        ranks=1,
        upstreams=(upstream,),
        rankers=replace(
            whole.rankers,
            seeds=(0,),
            network=NetworkConfig(embedding_dim=4, hidden=(8,)),
            training=RankerTrainConfig(epochs=1, batch_size=64),
        ),
        refresh=replace(
            whole.refresh,
            days=DaysConfig(events="market/events/{day}/*/*.parquet", first=DAYS[0], last=DAYS[-1]),
            gates=GateConfig(**gates),
            cross=True,
        ),
        spans=SpansConfig(
            train=(DAYS[0], DAYS[0]),
            validation=(DAYS[1], DAYS[1]),
            test=(DAYS[2], DAYS[3]),
        ),
    )


def spoil(path: Path, rows: int = 1) -> None:
    """Give the third row of a file, and those after it, a click of 2."""
    table = pq.ParquetFile(path).read()
    clicks = table["click"].to_pylist()
    clicks[2 : 2 + rows] = [2] * rows
    column = table.column_names.index("click")
    pq.write_table(table.set_column(column, "click", pa.array(clicks, table["click"].type)), path)


def test_days_that_are_too_small_are_listed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, trained = tmp_path / "data", []
    prepare_synthetic(data, users=100, items=100, days=6, events_per_day=300, upstream_days=2)
    for day in DAYS[1:3]:
        for path in (data / "market/events" / day).glob("*/*.parquet"):  # one a surface
            pq.write_table(pq.ParquetFile(path).read().slice(0, 1), path)

    def job(*args: object) -> None:
        trained.append(capsys.readouterr().out)
        raise KeyboardInterrupt

    replace(config(), ranks=3).save(tmp_path / "c.toml")
    monkeypatch.setattr(replay, "job", job)
    with pytest.raises(KeyboardInterrupt):
        replay.run_daily(open_study(str(tmp_path / "c.toml"), DAILY, data, tmp_path / "out", ()), tmp_path / "out")
    said = f"days of less than an event for each of 3 ranks, which go along with the next: {DAYS[1]}, {DAYS[2]}"
    assert said in trained[0]


def test_follow_a_folder_to_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two days lie there, two appear while the loop runs, the first and the last of them with a row that cannot be
    read; the second call does nothing but report again."""
    data, later, out = tmp_path / "data", tmp_path / "later", tmp_path / "out"
    prepare_synthetic(data, users=100, items=100, days=6, events_per_day=300, upstream_days=2)
    for day in (DAYS[0], DAYS[3]):
        spoil(next((data / "market/events" / day).glob("*/*.parquet")))
    for day in DAYS[2:]:
        shutil.move(data / "market/events" / day, later / day)
    config(min_coverage=1.0).save(tmp_path / "c.toml")
    monkeypatch.setattr(replay, "POLL_SECONDS", 0.1)

    def deliver() -> None:
        for day in DAYS[2:]:
            while not (out / "daily/ctr/days" / f"{DAYS[1]}.json").is_file():
                time.sleep(0.1)
            (later / day).rename(data / "market/events" / day)

    courier = threading.Thread(target=deliver, daemon=True)
    courier.start()
    opened = open_study(str(tmp_path / "c.toml"), DAILY, data, out, ())
    refused = replay.run_daily(opened, out, follow=True)
    courier.join()
    (upstream,) = opened.study.upstreams
    assert UpstreamConfig.load(out / "configs/upstream-ctr.toml") == upstream
    assert RefreshConfig.load(out / "configs/refresh-ctr.toml") == opened.study.refresh_of(upstream)
    assert RankerConfig.load(out / "configs/downstream-daily.toml") == study_job(opened.study, data)
    assert f"days that are not there yet: {DAYS[2]}, {DAYS[3]}" in capsys.readouterr().out
    records = Ledger(out, "ctr").records()
    assert [record.day for record in records] == DAYS
    assert any("coverage" in line and line.startswith(DAYS[1]) for line in refused)
    assert not records[-1].tagged
    assert [record.quarantined for record in records] == [{DAYS[0]: 1}, {}, {}, {DAYS[3]: 1}]
    report_is_complete(out)
    assert json.loads((out / "daily.json").read_text())["retrieval"]["version"] == records[0].versions["item_ctr"]
    predictions = sorted((out / "downstream/daily/ctr").glob("*.npz"))
    assert [path.stem for path in predictions] == sorted(
        f"{arm}-0" for arm in ("none", "latest", "ma_0.2", "ma_0.5", "ma_0.8", "average", "cross", "once")
    )
    written = [path.stat().st_mtime_ns for path in predictions]
    reported = []
    monkeypatch.setattr(replay, "report", lambda *run: reported.append(run))
    assert replay.run_daily(opened, out) == [f"{DAYS[-1]}: {gate}" for gate in records[-1].gates]
    assert reported == [(opened.study, data, out)]
    assert [path.stat().st_mtime_ns for path in predictions] == written
    assert [record.key for record in Ledger(out, "ctr").records()] == [record.key for record in records]


def report_is_complete(out: Path) -> None:
    """What the first day's vectors, all that was not refused, came to, with the two rows that were left out."""
    report = json.loads((out / "daily.json").read_text())
    rows = {name: entry["quarantined"] for name, entry in report["screened"].items()}
    assert rows == {f"ctr-{day}": int(day in (DAYS[0], DAYS[3])) for day in DAYS} | {
        "rankers-daily": 2,
        "upstream-ctr": 0,
    }
    assert report["seconds"]["report"] > 0
    assert report["rows"] == {"train": 299, "validation": 300, "test": 599}
    assert "Rows that were left out: 1 of 300 in ctr-2024-01-03" in (out / "daily.html").read_text()
    assert set(report["aggregation"]) == {"latest", "ma_0.2", "ma_0.5", "ma_0.8", "average"}
    for arm in report["aggregation"].values():
        assert np.isfinite(arm["auc_lift"])
        assert arm["auc_lift_ci95"][0] <= arm["auc_lift_ci95"][1]
    assert {"daily", "once"} <= set(report["cadence"])
    assert np.isfinite(report["cross"]["auc_lift"])
    assert report["retrieval"]["days"] == 3  # two of 24 hours from when the newest vectors are to be read on
    assert "</html>" in (out / "daily.html").read_text()
    assert (out / "daily/ctr/item_ctr/quality.html").is_file()


def test_days_that_stop_the_rankers_are_found_before_any_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    prepare_synthetic(data, users=100, items=100, days=6, events_per_day=300, upstream_days=2)
    config().save(tmp_path / "c.toml")
    spoil(next((data / "market/events" / DAYS[3]).glob("*/*.parquet")), rows=9)
    monkeypatch.setattr(replay, "job", lambda *_: pytest.fail("a job was started"))
    with pytest.raises(
        DataError, match=rf"{DAYS[3]}/.*part-0.parquet: column 'click', row 2: the label is 2.*max_bad_row"
    ):
        replay.run_daily(open_study(str(tmp_path / "c.toml"), DAILY, data, out, ()), out)
