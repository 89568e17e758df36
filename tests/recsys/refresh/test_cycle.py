import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from embedding_store import SeriesExistsError, SpaceMismatchError, TagMovedError
from recsys.config import ConfigError
from recsys.data.errors import ClockSkewError, DataError
from recsys.dates import day_number
from recsys.folders import store_folder
from recsys.refresh import align
from recsys.refresh import cycle as cycle_module
from recsys.refresh.cycle import refresh_upstream
from recsys.refresh.days import window
from recsys.refresh.errors import StoreLostError
from recsys.refresh.records import KEPT, Ledger
from recsys.train.checkpoint import CheckpointError
from recsys.train.distributed import Environment
from tests.recsys.refresh.daily_example import (
    DAILY,
    DAYS,
    PLAIN,
    contents,
    daily_config,
    records,
    refresh,
    series,
    snapshots,
    start_run,
    write_day,
)
from tests.recsys.refresh.example import LAST, MODEL

CONFIG = daily_config()
pytestmark = pytest.mark.usefixtures("no_pages")


def test_days_one_by_one(two_days: tuple[Path, Path]) -> None:
    _, out = two_days
    ends = [LAST, *(window(DAILY, day)[1] for day in DAYS[:2])]
    for name in PLAIN:
        assert snapshots(out, name) == [(number, end, "ctr-1") for number, end in enumerate(ends, start=1)]
        assert series(out, name).tags() == {"prod": 3}
    first, second = records(out)
    assert first.start.startswith("upstream/ctr/checkpoints/step-")
    assert second.start == first.checkpoint
    assert first.versions == {"user_ctr": 2, "item_ctr": 2}
    assert first.events == 24
    assert set(first.seconds) == {"train", "embed", "aggregate", "store", "quality"}
    assert first.tagged
    assert second.gates == []
    assert 'recsys_refresh_progressive_ne{upstream="ctr",task="click"}' in (out / "daily/ctr/metrics.prom").read_text()
    assert (out / "daily/ctr/user_ctr/quality.html").is_file()


def test_the_moving_average_is_of_the_day(
    two_days: tuple[Path, Path], environment: Environment, tmp_path: Path
) -> None:
    """Against the same days without memory: today's entities blended, absent ones as they were."""
    data, out = two_days
    shutil.copytree(out / "upstream", tmp_path / "upstream")
    refresh(daily_config(aggregation="latest"), data, tmp_path, every=True)
    day = pq.read_table(data / "days" / DAYS[0])
    (before, after), fresh = (series(out).version(v).load() for v in (1, 2)), series(tmp_path).version(2).load()
    everybody = torch.tensor(sorted(set(day["user_id"].to_pylist())))
    known = before.lookup(everybody)[1]
    today, new = everybody[known], everybody[~known]
    assert len(before) > len(today) > 0
    assert torch.equal(after.lookup(new)[0], fresh.lookup(new)[0]), "at first sight today's vector"
    expected = before.lookup(today)[0] * 0.8 + fresh.lookup(today)[0] * 0.2
    torch.testing.assert_close(after.lookup(today)[0], expected)
    absent = before.ids()[~torch.isin(before.ids(), today)]
    assert torch.equal(after.lookup(absent)[0], before.lookup(absent)[0])


def test_the_same_day_twice_changes_nothing(run: tuple[Path, Path]) -> None:
    data, out = run

    def files() -> list[Path]:
        return sorted(path for path in out.rglob("*") if path.parent.name != "stages")

    before = files()
    assert refresh(CONFIG, data, out) == []
    assert refresh(CONFIG, data, out, every=True) == []
    assert refresh(CONFIG, data, out, day=DAYS[0]) == []
    assert files() == before


def test_the_first_call_publishes_what_the_source_taught(tmp_path: Path, environment: Environment) -> None:
    data, out = start_run(tmp_path, DAYS[:1], environment)
    assert refresh(CONFIG, data, out) == []
    assert snapshots(out, "user_ctr") == [(1, LAST, "ctr-1")]
    assert refresh(CONFIG, data, out) == DAYS[:1]
    assert len(snapshots(out, "user_ctr")) == 2


def test_the_newest_day_delivered_again(run: tuple[Path, Path], tmp_path: Path, environment: Environment) -> None:
    """A correction: the same as if only the new content had been there, one version later."""
    data, out = run
    write_day(data, DAYS[1], seed=99, rows=30)
    assert refresh(CONFIG, data, out) == [DAYS[1]]
    assert [version for version, *_ in snapshots(out, "user_ctr")] == [1, 2, 3, 4]
    assert snapshots(out, "user_ctr")[-1][1] == snapshots(out, "user_ctr")[-2][1]
    assert records(out)[-1].corrects
    (tmp_path / "never").mkdir()
    fresh_data, fresh = start_run(tmp_path / "never", DAYS[:1], environment)
    write_day(fresh_data, DAYS[1], seed=99, rows=30)
    refresh(CONFIG, fresh_data, fresh, every=True)
    for name in PLAIN:
        corrected, expected = series(out, name).latest().load(), series(fresh, name).latest().load()
        assert torch.equal(corrected.ids(), expected.ids())
        assert torch.equal(corrected.lookup(expected.ids())[0], expected.lookup(expected.ids())[0])
    write_day(data, DAYS[1])  # and back again
    assert refresh(CONFIG, data, out) == [DAYS[1]]
    table, first = series(out).latest().load(), series(out).version(3).load()
    assert series(out).latest().version == 5
    assert torch.equal(table.lookup(first.ids())[0], first.lookup(first.ids())[0])


def test_an_older_day_delivered_again_is_noted_once(run: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    data, out = run
    write_day(data, DAYS[0], seed=99)
    before = contents(out)
    assert refresh(CONFIG, data, out) == []
    assert f"day {DAYS[0]} was delivered again, but newer days are published: not applied" in capsys.readouterr().out
    assert contents(out) == before
    assert list(json.loads((out / "daily/ctr/ignored.json").read_text())) == [DAYS[0]]
    refresh(CONFIG, data, out)
    assert "delivered again" not in capsys.readouterr().out
    with pytest.raises(ConfigError, match="correction cannot be applied"):
        refresh(CONFIG, data, out, day=DAYS[0])


def test_a_gap_and_a_late_day(run: tuple[Path, Path]) -> None:
    data, out = run
    write_day(data, DAYS[3])
    assert refresh(CONFIG, data, out, every=True) == [DAYS[3]]
    assert records(out)[-1].gap == [DAYS[2]]
    write_day(data, DAYS[2], users=1)
    late = pq.read_table(data / "days" / DAYS[2])
    late = late.set_column(late.column_names.index("user_id"), "user_id", pa.array([777] * len(late)))
    pq.write_table(late, data / "days" / DAYS[2] / "part-0.parquet")
    assert refresh(CONFIG, data, out, every=True) == []
    write_day(data, DAYS[4])
    assert refresh(CONFIG, data, out, every=True) == [DAYS[4]]
    newest = records(out)[-1]
    assert list(newest.late) == [DAYS[2]]
    assert newest.gap == []
    assert newest.events == 48
    _, found = series(out).latest().load().lookup(torch.tensor([777]))
    assert found.all(), "a late day's entities are embedded"


def test_a_day_without_a_positive_teaches_what_it_can(
    run: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = run
    write_day(data, DAYS[2])
    path = data / "days" / DAYS[2] / "part-0.parquet"
    table = pq.read_table(path)
    none = pa.array([0] * len(table), table["click"].type)
    pq.write_table(table.set_column(table.column_names.index("click"), "click", none), path)
    assert refresh(CONFIG, data, out) == [DAYS[2]]
    assert f"ctr {DAYS[2]}: no event is positive, nothing is contrasted" in capsys.readouterr().out
    write_day(data, DAYS[3])
    assert refresh(CONFIG, data, out) == [DAYS[3]]


def of_users(path: Path, users: list[int]) -> None:
    """Let a day's events be of these users, in turn."""
    table = pq.read_table(path)
    column = pa.array([users[row % len(users)] for row in range(len(table))])
    pq.write_table(table.set_column(table.column_names.index("user_id"), "user_id", column), path)


def test_a_late_day_makes_no_vector_older(run: tuple[Path, Path]) -> None:
    """User 5 is active on the third day, which is late, and on the fourth; user 777 on the third alone."""
    data, out = run
    of_users(write_day(data, DAYS[3]), [5, 6])
    refresh(CONFIG, data, out)
    before = series(out).latest().load()
    of_users(write_day(data, DAYS[2]), [5, 777])
    of_users(write_day(data, DAYS[4]), [6])
    assert refresh(CONFIG, data, out) == [DAYS[4]]
    assert list(records(out)[-1].late) == [DAYS[2]]
    users = torch.tensor([5, 6, 777])
    after, known = series(out).latest().load(), torch.tensor([True, True, False])
    assert torch.equal(before.lookup(users)[1], known)
    same = (after.lookup(users)[0] == before.lookup(users)[0]).all(1)
    assert same.tolist() == [True, False, False]
    activity = series(out, "user_ctr.activity").latest().load().lookup(users)[0]
    assert activity[:, 0].tolist() == [day_number(DAYS[day]) for day in (3, 4, 2)]
    for owner in ("user", "item"):
        assert counted(out, owner) == delivered(data, out, owner)


def counted(out: Path, owner: str) -> list[float | None]:
    """How many events each entity of the newest snapshot has by its activity, in the snapshot's order; None: no row."""
    ids = series(out, f"{owner}_ctr").latest().load().ids()
    activity, found = series(out, f"{owner}_ctr.activity").latest().load().lookup(ids)
    return [count if known else None for count, known in zip(activity[:, 2].tolist(), found.tolist(), strict=True)]


def delivered(data: Path, out: Path, owner: str) -> list[int]:
    """How many the source and all days so far have of it."""
    files = [*(data / "events").iterdir(), *(data / "days").glob("*/*.parquet")]
    seen = Counter(who for path in files for who in pq.read_table(path)[f"{owner}_id"].to_pylist())
    return [seen[who] for who in series(out, f"{owner}_ctr").latest().load().ids().tolist()]


def test_the_first_publication_counts_the_events_of_the_source(tmp_path: Path, environment: Environment) -> None:
    """And not the users' own rows; two of the users have no event."""
    data, out = start_run(tmp_path, [], environment)
    refresh(CONFIG, data, out)
    for owner in ("user", "item"):
        assert counted(out, owner) == delivered(data, out, owner)


def test_a_tag_that_moved_while_the_cycle_ran(run: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = run
    write_day(data, DAYS[2])
    measure = cycle_module.measure

    def roll_back(*args: object, **options: object) -> object:
        series(out, "item_ctr").tag("prod", 1)
        return measure(*args, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(cycle_module, "measure", roll_back)
        with pytest.raises(TagMovedError, match="is published and stays untagged; give the same command again"):
            refresh(CONFIG, data, out)
    assert series(out, "item_ctr").tags() == {"prod": 1}
    assert [record.day for record in records(out)] == DAYS[:2]
    assert refresh(CONFIG, data, out) == [DAYS[2]]
    assert [series(out, name).tags() for name in PLAIN] == [{"prod": 4}] * 2
    assert series(out).latest().version == 4, "it was not published twice"


def test_files_that_change_while_the_cycle_runs(run: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = run
    write_day(data, DAYS[2])
    train, calls = cycle_module.train_on, []

    def train_and_deliver(*args: object, **options: object) -> object:
        result = train(*args, **options)  # type: ignore[arg-type]
        calls.append(len(snapshots(out, "user_ctr")))
        if len(calls) == 1:
            write_day(data, DAYS[2], seed=99)
        return result

    monkeypatch.setattr(cycle_module, "train_on", train_and_deliver)
    assert refresh(CONFIG, data, out) == [DAYS[2]]
    assert calls == [3, 3], "nothing of the first content was published"
    assert len(snapshots(out, "user_ctr")) == 4


def test_a_cold_retrain_opens_a_space(run: tuple[Path, Path]) -> None:
    data, out = run
    write_day(data, DAYS[2])
    assert refresh(CONFIG, data, out, cold=True) == [DAYS[2]]
    assert snapshots(out, "user_ctr")[-1][2] == "ctr-2"
    assert records(out)[-1].start == ""
    new, old = series(out).latest().load(), series(out).version(3).load()
    assert set(old.ids().tolist()) <= set(new.ids().tolist()), "everybody is embedded anew"
    torch.testing.assert_close(new.lookup(new.ids())[0].norm(dim=1), torch.ones(len(new)))
    write_day(data, DAYS[2], seed=99)
    assert refresh(CONFIG, data, out) == [DAYS[2]], "a correction of the day that began a space"
    assert snapshots(out, "user_ctr")[-1][2] == "ctr-2"
    write_day(data, DAYS[3])
    assert refresh(CONFIG, data, out) == [DAYS[3]]
    assert snapshots(out, "user_ctr")[-1][2] == "ctr-2"
    assert records(out)[-1].start == records(out)[-2].checkpoint


def test_a_cold_retrain_can_carry_the_old_space_over(run: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = run
    write_day(data, DAYS[2], rows=200, users=40)
    config = daily_config(align="procrustes")
    monkeypatch.setattr(align, "_LEAST_PER_DIMENSION", 2)
    (record,) = refresh_upstream(config, data, out, cold=True)
    assert record.space == "ctr-2"
    assert record.alignment is not None
    assert (out / "daily/ctr/days" / DAYS[2] / record.key / "rotation.npy").is_file()
    new, old = series(out).latest().load(), series(out).version(3).load()
    today = torch.tensor(sorted(set(pq.read_table(data / "days" / DAYS[2])["user_id"].to_pylist())))
    absent = old.ids()[~torch.isin(old.ids(), today)]
    assert len(absent)
    carried, before = new.lookup(absent)[0], old.lookup(absent)[0]
    assert not torch.allclose(carried, before)
    torch.testing.assert_close(carried @ carried.T, before @ before.T, atol=1e-5, rtol=1e-4)


def test_other_spaces_are_not_averaged(run: tuple[Path, Path]) -> None:
    data, out = run
    write_day(data, DAYS[2])
    newest = records(out)[-1]
    Ledger(out, "ctr").write(replace(newest, space="ctr-7"))
    before = contents(out)
    with pytest.raises(SpaceMismatchError, match="ctr-7"):
        refresh(CONFIG, data, out)
    assert contents(out) == before


def test_bad_days_publish_nothing(run: tuple[Path, Path]) -> None:
    data, out = run
    before = contents(out)
    path = write_day(data, DAYS[2])
    table, start = pq.read_table(path), window(DAILY, DAYS[2])[0]
    late = [*table["timestamp"].to_pylist()[:-2], start + 86_400_000, start - 1]
    column = table.column_names.index("timestamp")
    pq.write_table(table.set_column(column, "timestamp", pa.array(late)), path)
    with pytest.raises(
        ClockSkewError, match=r"row 22: the event is of .*outside the day 1970-01-04.* At least 2 of 24"
    ):
        refresh(CONFIG, data, out)
    pq.write_table(table.slice(0, 0), path)
    assert refresh(CONFIG, data, out) == [], "a file without events is no day"
    pq.write_table(table.drop_columns(["age"]), path)
    with pytest.raises(DataError, match=r"part-0.parquet: column 'age' is missing"):
        refresh(CONFIG, data, out)
    assert contents(out) == before
    pq.write_table(table, path)
    assert refresh(CONFIG, data, out) == [DAYS[2]]


def test_what_does_not_fit_is_named(run: tuple[Path, Path], tmp_path: Path) -> None:
    data, out = run
    write_day(data, DAYS[2])
    other = replace(CONFIG, upstream=replace(CONFIG.upstream, features=("user_id", "item_id", "hour")))
    with pytest.raises(CheckpointError, match="was written by another model or schema"):
        refresh(other, data, out)
    wider = replace(CONFIG, upstream=replace(CONFIG.upstream, model=replace(MODEL, out_dim=8)))
    with pytest.raises(SeriesExistsError, match="dim = 8"):
        refresh(wider, data, out)
    with pytest.raises(ConfigError, match="days is missing"):
        refresh(replace(CONFIG, days=None), data, out, day=DAYS[2])
    shutil.rmtree(store_folder(out) / "item_ctr")
    with pytest.raises(StoreLostError, match="lacks version 3 of 'item_ctr'"):
        refresh(CONFIG, data, out)


def test_old_checkpoints_go(two_days: tuple[Path, Path], run: tuple[Path, Path]) -> None:
    data, out = run
    for day in DAYS[2:]:
        write_day(data, day)
    refresh(CONFIG, data, out, every=True)
    kept = sorted(path.parent.parent.name for path in (out / "daily/ctr/days").glob("*/*/checkpoints"))
    assert kept == DAYS[-KEPT:]
    assert len(list((out / "daily/ctr/days").glob("*/*/metrics.jsonl"))) == len(DAYS)


def test_the_study_publishes_every_way(tmp_path: Path, environment: Environment) -> None:
    data, out = start_run(tmp_path, DAYS[:2], environment)
    refresh(daily_config(study=True), data, out, every=True)
    (first, second) = records(out)
    arms = ["", ".latest", ".ma_0.2", ".ma_0.5", ".average"]
    assert sorted(first.versions) == sorted(f"{owner}_ctr{arm}" for owner in ("user", "item") for arm in arms)
    assert set(second.versions.values()) == {3}
    ids = series(out).version(1).load().ids()
    tables = {arm: [series(out, f"user_ctr{arm}").version(v).load().lookup(ids)[0] for v in (1, 2, 3)] for arm in arms}
    for arm in arms:
        assert torch.equal(tables[arm][0], tables[""][0]), "all begin with the source's vectors"
    latest = tables[".latest"]
    moved = (latest[1] != latest[0]).any(1)
    for arm, weight in (("", 0.8), (".ma_0.2", 0.2), (".ma_0.5", 0.5), (".average", 0.5)):
        expected = weight * latest[0] + (1 - weight) * latest[1]
        torch.testing.assert_close(tables[arm][1][moved], expected[moved])
        assert torch.equal(tables[arm][1][~moved], latest[0][~moved])
