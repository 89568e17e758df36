"""A day with a row that cannot be used is a day without that row; one with several is no day."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recsys import screening
from recsys.data.errors import ClockSkewError, DataError
from recsys.refresh import cycle as cycle_module
from recsys.refresh.days import window
from recsys.train.distributed import Environment
from tests.distributed import run_ranks
from tests.recsys.refresh.daily_example import (
    DAILY,
    DAYS,
    change,
    contents,
    daily_config,
    records,
    refresh,
    snapshots,
    start_run,
    write_day,
)
from tests.recsys.refresh.example import SCHEMA

CONFIG = daily_config()
STRAYS: dict[str, Any] = {
    "click": 2,
    "timestamp": window(DAILY, DAYS[2])[1],
    "user_id": None,
    "item_id": None,
    "seen_time": [window(DAILY, DAYS[3])[0]] * 4,
}
"""Column -> a value that no reader can use."""
pytestmark = pytest.mark.usefixtures("no_pages")


def both(run: tuple[Path, Path], folder: Path) -> list[tuple[Path, Path]]:
    """Two copies of data and run: one for the stray row, one for a day without it."""
    return [
        tuple(Path(shutil.copytree(each, folder / name / each.name)) for each in run)  # type: ignore[misc]
        for name in ("stray", "without")
    ]


@pytest.fixture(scope="module")
def without(two_days: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run once a day followed that lacks row 10."""
    folder = tmp_path_factory.mktemp("without")
    data, out = (Path(shutil.copytree(each, folder / each.name)) for each in two_days)
    change(write_day(data, DAYS[2]), {}, gone=(10,))
    assert refresh(CONFIG, data, out) == [DAYS[2]]
    return out


@pytest.mark.parametrize("column", STRAYS)
def test_one_stray_row_does_not_stop_a_day(
    run: tuple[Path, Path], without: Path, column: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The vectors are those of the day without it."""
    data, out = run
    change(write_day(data, DAYS[2]), {10: {column: STRAYS[column], "age": None} | _list(column)})
    assert refresh(CONFIG, data, out) == [DAYS[2]]
    assert contents(out) == contents(without)
    stray, expected = records(out)[-1], records(without)[-1]
    assert (stray.quarantined, expected.quarantined) == ({DAYS[2]: 1}, {})
    assert (stray.events, stray.entities) == (23, expected.entities)
    assert stray.read_as_0 == {}, "what is missing in a row that nobody reads is not counted"
    path = out / f"quarantine/ctr-{DAYS[2]}.json"
    (entry,) = json.loads(path.read_text())
    (found,) = entry["quarantined"]
    assert (found["file"], found["row"], found["column"]) == (f"days/{DAYS[2]}/part-0.parquet", 10, column)
    told = capsys.readouterr().out
    assert f"ctr-{DAYS[2]}: 1 of 24 rows quarantined: see {path}" in told
    assert f"ctr {DAYS[2]} (1 row quarantined): " in told
    assert 'recsys_refresh_rows_quarantined{upstream="ctr"} 1.0' in (out / "daily/ctr/metrics.prom").read_text()


def _list(column: str) -> dict[str, Any]:
    return {"seen": [1, 2, 3, 4]} if column == "seen_time" else {}


def test_values_that_are_missing_are_counted(run: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    data, out = run
    change(write_day(data, DAYS[2]), {3: {"age": None}, 4: {"age": float("nan")}})
    assert refresh(CONFIG, data, out) == [DAYS[2]]
    assert records(out)[-1].read_as_0 == {"age": 2}
    assert records(out)[-1].events == 24
    assert f"ctr-{DAYS[2]}: feature age: 2 of 24 values null or NaN, read as 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("first", "second", "error", "message"),
    [
        ("click", "user_id", DataError, "column 'click', row 5: the label is 2"),
        ("timestamp", "click", ClockSkewError, r"column 'timestamp', row 5: the event is of .* outside the day"),
    ],
)
def test_more_than_the_share_is_refused_before_anything_is_trained(
    run: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    first: str,
    second: str,
    error: type[Exception],
    message: str,
) -> None:
    data, out = run
    before = contents(out)
    path = write_day(data, DAYS[2])
    change(path, {5: {first: STRAYS[first]}, 20: {second: STRAYS[second]}})
    with monkeypatch.context() as patch:
        patch.setattr(cycle_module, "train_on", lambda *_, **__: pytest.fail("it was trained"))
        with pytest.raises(error, match=message) as raised:
            refresh(CONFIG, data, out)
    assert "At least 2 of 24 rows cannot be used, max_bad_rows = 0.001 lets 1 pass" in str(raised.value)
    assert contents(out) == before
    replace(SCHEMA, max_bad_rows=0.1).save(data / "schema.toml")
    assert refresh(CONFIG, data, out) == [DAYS[2]]
    assert records(out)[-1].quarantined == {DAYS[2]: 2}
    replace(SCHEMA, max_bad_rows=0.0).save(data / "schema.toml")
    change(write_day(data, DAYS[3]), {0: {"click": None}})
    with pytest.raises(DataError, match="At least 1 of 24 rows cannot be used, max_bad_rows = 0 lets 0 pass"):
        refresh(CONFIG, data, out)


def test_a_cycle_that_stopped_goes_on_without_reading_again(
    run: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = both(run, tmp_path)
    for data, _ in (whole, broken):
        change(write_day(data, DAYS[2]), {10: {"click": 2}})
    refresh(CONFIG, *whole)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for name in ("measure", "last_of", "train_on"):
        with monkeypatch.context() as patch:
            patch.setattr(cycle_module, name, stop)
            with pytest.raises(KeyboardInterrupt):
                refresh(CONFIG, *broken)
        if name == "measure":
            monkeypatch.setattr(screening, "scan", lambda *_: pytest.fail("the rows were read again"))
    assert refresh(CONFIG, *broken) == [DAYS[2]]
    assert contents(broken[1]) == contents(whole[1])
    assert records(broken[1])[-1].quarantined == {DAYS[2]: 1}


def test_a_correction_is_read_anew(run: tuple[Path, Path]) -> None:
    data, out = run
    path = write_day(data, DAYS[2])
    change(path, {10: {"click": 2}})
    refresh(CONFIG, data, out)
    change(path, {10: {"click": 1}, 12: {"click": 3}})
    assert refresh(CONFIG, data, out) == [DAYS[2]]
    (entry,) = json.loads((out / f"quarantine/ctr-{DAYS[2]}.json").read_text())
    assert [found["row"] for found in entry["quarantined"]] == [12]


def test_late_days_and_cold_retrains_leave_them_out_too(run: tuple[Path, Path], tmp_path: Path) -> None:
    outs = []
    for (data, out), strays in zip(both(run, tmp_path), (True, False), strict=True):

        def deliver(path: Path, row: int, strays: bool = strays) -> None:
            change(path, {row: {"click": 5}} if strays else {}, () if strays else (row,))

        write_day(data, DAYS[3])
        assert refresh(CONFIG, data, out, every=True) == [DAYS[3]]
        deliver(write_day(data, DAYS[2]), 3)
        deliver(write_day(data, DAYS[4]), 23)
        assert refresh(CONFIG, data, out) == [DAYS[4]]
        assert records(out)[-1].quarantined == ({DAYS[2]: 1, DAYS[4]: 1} if strays else {})
        assert records(out)[-1].events == 46
        deliver(data / "events/part-2.parquet", 7)
        deliver(data / "users/part-0.parquet", 1) if not strays else change(
            data / "users/part-0.parquet", {1: {"user_id": None}}
        )
        write_day(data, DAYS[5])
        assert refresh(CONFIG, data, out, cold=True) == [DAYS[5]]
        assert records(out)[-1].quarantined == {}, "it tells of its own day"
        outs.append(out)
    assert contents(outs[0]) == contents(outs[1])
    assert (outs[0] / "quarantine/upstream-ctr.json").is_file()


@pytest.fixture
def sources(tmp_path: Path, environment: Environment) -> Callable[[dict[str, Any], tuple[int, ...]], tuple[Path, Path]]:
    """Makes a run whose source has a changed row, or lacks it, in its last events."""

    def make(changed: dict[str, Any], gone: tuple[int, ...]) -> tuple[Path, Path]:
        folder = tmp_path / ("gone" if gone else "changed")
        folder.mkdir()
        data, out = start_run(folder, DAYS[:1], environment)
        change(data / "events/part-2.parquet", {29: changed}, gone)
        return data, out

    return make


def test_the_first_snapshots_know_no_stray_row(
    sources: Callable[[dict[str, Any], tuple[int, ...]], tuple[Path, Path]],
) -> None:
    """The newest row of the source is bad: its user falls back to the one before, and `as_of` too."""
    stray, without = sources({"click": 9}, ()), sources({}, (29,))
    for data, out in (stray, without):
        assert refresh(CONFIG, data, out) == []
        assert refresh(CONFIG, data, out) == DAYS[:1]
    assert contents(stray[1]) == contents(without[1])
    assert snapshots(stray[1], "user_ctr")


def on_two_ranks(data: Path, out: Path) -> list[str]:
    return refresh(CONFIG, data, out, every=True)


def test_two_ranks_agree_on_what_they_leave_out(tmp_path: Path, environment: Environment) -> None:
    outs = []
    for name in ("stray", "without"):
        (tmp_path / name).mkdir()
        data, out = start_run(tmp_path / name, DAYS[:2], environment)
        path = data / "days" / DAYS[1] / "part-0.parquet"
        change(path, *(({8: {"click": 2}}, ()) if name == "stray" else ({}, (8,))))
        assert run_ranks(on_two_ranks, 2, data, out) == [DAYS[:2]] * 2
        outs.append(out)
    assert contents(outs[0]) == contents(outs[1])
    assert [record.quarantined for record in records(outs[0])] == [{}, {DAYS[1]: 1}]
