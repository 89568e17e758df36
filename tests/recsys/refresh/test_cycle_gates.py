"""What a gate refuses, seen from the cycle that publishes: the tag, the marks in the store, the days after."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from recsys import cli
from recsys.config import GateConfig, RefreshConfig
from recsys.downstream.features import PointInTimeSeries
from recsys.refresh import cycle as cycle_module
from recsys.refresh.cycle import refresh_upstream
from recsys.refresh.days import window
from tests.recsys.refresh.daily_example import (
    DAILY,
    DAYS,
    PLAIN,
    change,
    daily_config,
    records,
    refresh,
    series,
    write_day,
)

pytestmark = pytest.mark.usefixtures("no_pages")
GATED = daily_config(aggregation="latest", gates=GateConfig(max_drift=0.45))


def wild(config: RefreshConfig) -> RefreshConfig:
    """The same with steps so large that a day's vectors jump: a median cosine below 0.55, not 0.7."""
    upstream = config.upstream
    return replace(config, upstream=replace(upstream, training=replace(upstream.training, dense_lr=1.0)))


def test_a_day_that_the_model_of_the_day_before_gets_wrong_does_not_take_the_tag(
    run: tuple[Path, Path],
) -> None:
    """By its entropy, which no vector shows."""
    data, out = run
    write_day(data, DAYS[2], rows=400)
    (record,) = refresh_upstream(daily_config(aggregation="latest", gates=GateConfig(max_ne=0.3, min_auc=0)), data, out)
    label = record.progressive["click"]
    assert min(label["positives"], label["rows"] - label["positives"]) >= 100
    assert label["ne"] > 0.3
    assert not record.tagged
    (reason,) = record.gates
    assert reason.startswith("task 'click': the model of before scores the 400 new events with a normalized")
    assert reason.endswith("gates.max_ne allows 0.3000")
    assert refused(out, "user_ctr") == [series(out, "user_ctr").latest().version]


def refused(out: Path, name: str) -> list[int]:
    return [snapshot.version for snapshot in series(out, name).history() if snapshot.refused]


def test_by_default_vectors_that_rank_a_day_the_wrong_way_round_do_not_take_the_tag(
    run: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The day is delivered again, all labels against the inner product of a model that learns next to nothing."""
    data, out = run
    path = write_day(data, DAYS[2], rows=400)
    still = replace(daily_config().upstream.training, dense_lr=1e-9, sparse_lr=1e-9)
    config = daily_config(aggregation="latest")
    config = replace(config, upstream=replace(config.upstream, training=still))
    config.save(data / "refresh.toml")
    (record,) = refresh_upstream(config, data, out)
    assert record.tagged
    table = pq.ParquetFile(path).read()
    users, items = (
        series(out, f"{owner}_ctr").latest().load().lookup(torch.tensor(table[f"{owner}_id"].to_pylist()))[0]
        for owner in ("user", "item")
    )
    scores = (users * items).sum(dim=1)
    change(path, {row: {"click": int(score < scores.median())} for row, score in enumerate(scores)})
    options = ("--config", data / "refresh.toml", "--data", data, "--out", out)
    monkeypatch.setattr(sys, "argv", ["recsys", "refresh", *map(str, options)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 3
    assert "published, but not tagged: the inner product of users and items ranks the day's" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 3, "nothing is due any more: a scheduler that tries again is told the same"
    for name in PLAIN:
        assert series(out, name).tags() == {"prod": 4}
        assert refused(out, name) == [5]


def test_a_jump_that_stays_is_refused_every_day(run: tuple[Path, Path]) -> None:
    """It is held against what the tag points to: on its second day the snapshot before is as wild as it is."""
    data, out = run
    for number in (2, 3):
        write_day(data, DAYS[number])
        (record,) = refresh_upstream(wild(GATED), data, out)
        assert not record.tagged
        assert any("user_ctr: the day's entities moved" in reason and "version 3" in reason for reason in record.gates)
    for name in PLAIN:
        assert series(out, name).tags() == {"prod": 3}
        assert series(out, name).versions() == [1, 2, 3, 4, 5]
        assert refused(out, name) == refused(out, f"{name}.activity") == [4, 5]
        assert series(out, name).version(4).refused == tuple(records(out)[2].gates)
    assert refresh(GATED, data, out) == [], "it is done: the same call does not try again"


def test_after_a_refused_day_the_next_is_as_if_it_had_not_been(
    run: tuple[Path, Path], two_days: tuple[Path, Path], tmp_path: Path
) -> None:
    data, out = run
    write_day(data, DAYS[2])
    (record,) = refresh_upstream(wild(GATED), data, out)
    assert record.gates
    write_day(data, DAYS[3])
    (good,) = refresh_upstream(GATED, data, out)
    assert good.tagged
    assert good.start == records(out)[1].checkpoint
    never_data, never = (Path(shutil.copytree(folder, tmp_path / f"never-{folder.name}")) for folder in two_days)
    write_day(never_data, DAYS[3])
    refresh(GATED, never_data, never)
    for name in (*PLAIN, *(f"{name}.activity" for name in PLAIN)):
        found, expected = series(out, name).latest().load(), series(never, name).latest().load()
        assert torch.equal(found.ids(), expected.ids())
        assert torch.equal(found.lookup(expected.ids())[0], expected.lookup(expected.ids())[0])
    assert series(out).tags() == {"prod": 5}


def test_rankers_read_nothing_that_was_refused(run: tuple[Path, Path]) -> None:
    data, out = run
    for number, config in ((2, wild(GATED)), (3, GATED)):
        write_day(data, DAYS[number])
        refresh(config, data, out)
    read = PointInTimeSeries(series(out))
    assert [snapshot.version for snapshot in read.snapshots] == [1, 2, 3, 5]
    ids = series(out).version(3).load().ids()
    vectors, _ = read.lookup(ids, torch.full_like(ids, window(DAILY, DAYS[3])[0] + 5))  # the refused day has ended
    assert torch.equal(vectors, series(out).version(3).load().lookup(ids)[0])


def test_a_cycle_can_be_told_to_go_on_from_a_refused_day(run: tuple[Path, Path]) -> None:
    data, out = run
    write_day(data, DAYS[2])
    refresh(wild(GATED), data, out)
    write_day(data, DAYS[3])
    (record,) = refresh_upstream(GATED, data, out, after_refused=True)
    assert record.start == records(out)[-2].checkpoint
    bad, newest = series(out).version(4).load(), series(out).version(5).load()
    today = torch.tensor(sorted(set(pq.read_table(data / "days" / DAYS[3])["user_id"].to_pylist())))
    absent = bad.ids()[~torch.isin(bad.ids(), today)]
    assert torch.equal(newest.lookup(absent)[0], bad.lookup(absent)[0])


def test_a_refused_day_that_is_delivered_again_is_judged_anew(run: tuple[Path, Path]) -> None:
    data, out = run
    write_day(data, DAYS[2])
    refresh(wild(GATED), data, out)
    write_day(data, DAYS[2], seed=99)
    (record,) = refresh_upstream(GATED, data, out)
    assert record.corrects
    assert record.start == records(out)[1].checkpoint
    assert record.tagged
    assert series(out).tags() == {"prod": 5}


def test_a_crash_before_the_mark_is_mended_by_the_same_call(
    run: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = run
    write_day(data, DAYS[2])

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cycle_module.Publisher, "refuse", killed)
        with pytest.raises(KeyboardInterrupt):
            refresh(wild(GATED), data, out)
    assert refused(out, "user_ctr") == []
    assert refresh(wild(GATED), data, out) == [DAYS[2]]
    assert refused(out, "user_ctr") == refused(out, "item_ctr") == [4]
    assert series(out).versions() == [1, 2, 3, 4], "it was not published twice"
