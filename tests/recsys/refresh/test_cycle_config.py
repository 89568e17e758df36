"""What a refresh's own config says to its cycles: days without an end or with a batch of their own, retention."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from embedding_store import EmbeddingStore
from recsys.config import ConfigError, DaysConfig, GateConfig, RetentionConfig
from recsys.data.errors import ClockSkewError
from recsys.dates import HOUR_MS
from recsys.folders import store_folder
from recsys.refresh import cycle as cycle_module
from recsys.train.distributed import Environment
from tests.recsys.refresh.daily_example import (
    DAILY,
    DAYS,
    PLAIN,
    contents,
    daily_config,
    records,
    refresh,
    snapshots,
    start_run,
    write_day,
)
from tests.recsys.refresh.example import UNTIMED, save_checkpoint, write_log

CONFIG = daily_config()


@pytest.fixture
def run(tmp_path: Path, environment: Environment, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Data and run after two days; pages are not drawn."""
    monkeypatch.setattr(cycle_module.quality_page, "write_pages", lambda folder, upstream: None)
    (tmp_path / "run").mkdir()
    data, out = start_run(tmp_path / "run", DAYS[:2], environment)
    assert refresh(CONFIG, data, out, every=True) == DAYS[:2]
    return data, out


def versions(out: Path, name: str = "user_ctr") -> list[int]:
    return [version for version, *_ in snapshots(out, name)]


def test_each_cycle_lets_go_what_retention_allows(run: tuple[Path, Path], tmp_path: Path) -> None:
    """And goes on as if everything were there: vectors, and how often and when their entities were active."""
    data, out = run
    for day in DAYS[2:]:
        write_day(data, day)
    everything = shutil.copytree(out, tmp_path / "everything")
    short = daily_config(retention=RetentionConfig(keep_last=3), time_to_live_days=2)
    refresh(short, data, out)
    assert [versions(out, name) for name in PLAIN] == [[2, 3, 4]] * 2
    refresh(short, data, out, every=True)
    refresh(replace(short, retention=RetentionConfig()), data, everything, every=True)
    assert [versions(out, name) for name in PLAIN] == [[5, 6, 7]] * 2
    assert [versions(out, f"{name}.activity") for name in PLAIN] == [[5, 6, 7]] * 2
    kept, whole = contents(out), contents(everything)
    assert kept.items() <= whole.items()
    assert len(kept) < len(whole)
    assert versions(everything) == [1, 2, 3, 4, 5, 6, 7]


def test_retention_keeps_what_a_correction_and_the_tag_need(run: tuple[Path, Path], tmp_path: Path) -> None:
    data, out = run
    everything = shutil.copytree(out, tmp_path / "everything")
    shortest = daily_config(retention=RetentionConfig(keep_last=1, keep_days=0))
    for seed in (99, 98, 97):  # the same day is corrected again and again, each time from the day before it
        write_day(data, DAYS[1], seed=seed)
        assert refresh(shortest, data, out) == refresh(CONFIG, data, everything) == [DAYS[1]]
    assert versions(out) == [2, 3, 4, 5, 6]
    assert contents(out).items() <= contents(everything).items()
    write_day(data, DAYS[2])
    refused = replace(shortest, gates=GateConfig(max_drift=0.0))
    refresh(refused, data, out)
    assert EmbeddingStore(store_folder(out)).series("user_ctr").tags() == {"prod": 6}
    assert versions(out) == [6, 7], "the newest, and the tagged one, of the day before"


def test_retention_by_age_keeps_what_is_new(run: tuple[Path, Path]) -> None:
    data, out = run
    write_day(data, DAYS[2])
    refresh(daily_config(retention=RetentionConfig(keep_last=1, keep_days=1)), data, out)
    assert versions(out) == [1, 2, 3, 4]


def test_without_a_last_day_there_is_always_a_next_one(run: tuple[Path, Path]) -> None:
    data, out = run
    open_end = daily_config()
    open_end = replace(open_end, days=replace(DAILY, last=""))
    (data / "days/1970-02-30").mkdir()
    shutil.copy(write_day(data, DAYS[5]), data / "days/1970-02-30/part-0.parquet")  # no date: not looked at
    assert refresh(replace(open_end, days=replace(DAILY, last=DAYS[4])), data, out) == []
    assert refresh(open_end, data, out) == [DAYS[5]]


def test_days_have_passes_and_a_batch_of_their_own(run: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = run
    write_day(data, DAYS[2], rows=6)
    own = replace(CONFIG, days=replace(DAILY, epochs=2, batch_size=2))
    train, steps = cycle_module.train_on, []

    def counted(*args: object, **options: object) -> object:
        result = train(*args, **options)  # type: ignore[arg-type]
        steps.append(result.result.steps)
        return result

    monkeypatch.setattr(cycle_module, "train_on", counted)
    assert refresh(own, data, out) == [DAYS[2]]
    assert steps == [2 * 3]


@pytest.mark.parametrize(
    ("days", "ends"),
    [
        (replace(DAILY, hours=6, first="1970-01-02T00", last="1970-01-02T12"), [30, 36, 42]),
        (replace(DAILY, hours=48, last="1970-01-06"), [72, 168]),
    ],
    ids=["quarters of a day", "pairs of days"],
)
def test_days_of_another_length(tmp_path: Path, environment: Environment, days: DaysConfig, ends: list[int]) -> None:
    """Through cycle, records, gates and pages; late, corrected, and with events of another day."""
    data, out = start_run(tmp_path, [], environment)
    names, config = list(days.until(days.last)), replace(CONFIG, days=days)
    write_day(data, names[0], days=days, seed=1)
    write_day(data, names[-1], days=days, seed=2)
    assert refresh(config, data, out, every=True) == [names[0], names[-1]]
    assert records(out)[-1].gap == names[1:-1]
    assert [as_of for _, as_of, _ in snapshots(out, "user_ctr")[1:]] == [ends[0] * HOUR_MS, ends[-1] * HOUR_MS]
    for day, seed in zip(names[1:], (3, 4), strict=False):
        write_day(data, day, days=days, seed=seed)
    assert refresh(config, data, out, every=True) == [names[-1]]
    assert (records(out)[-1].corrects, records(out)[-1].tagged) == (True, True)
    assert names[-1] in (out / "daily/ctr/user_ctr/quality.html").read_text()
    write_day(data, names[-1], days=replace(days, hours=2 * days.hours), seed=5)
    with pytest.raises(ClockSkewError, match=f"outside the day {names[-1]} = "):
        refresh(config, data, out)


def test_days_of_a_log_without_event_times(tmp_path: Path, environment: Environment) -> None:
    data, out = write_log(tmp_path / "data", UNTIMED), tmp_path / "out"
    save_checkpoint(out, 1, environment, schema=UNTIMED)
    with pytest.raises(ConfigError, match=r"'ctr' is to be refreshed by days, but schema.toml says timestamp"):
        refresh(CONFIG, data, out)
    assert not store_folder(out).exists()
    assert refresh(replace(CONFIG, days=None), data, out) == []
    assert [snapshots(out, name) for name in PLAIN] == [[(1, 0, "ctr-1")]] * 2
