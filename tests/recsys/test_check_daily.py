from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from recsys.checks import check_daily
from recsys.config import ConfigError, RankerSettings, RankerTrainConfig, StudyConfig
from recsys.data.errors import DataError
from recsys.data.synthetic import prepare_synthetic
from recsys.recipes import synthetic_daily_small
from recsys.refresh.days import window
from tests.recsys.refresh.catalogue_example import DAYS_AND_ROWS, deliver, item_rows, noon
from tests.recsys.refresh.daily_example import DAILY, DAYS, change, daily_study, write_day
from tests.recsys.refresh.example import UNTIMED, user_rows, write_log

RANKERS = RankerSettings(
    schema="schema.toml",
    train=("a",),
    validation=("b",),
    test=("c",),
    tasks={"ctr": "click"},
    training=RankerTrainConfig(batch_size=8),
)
CONFIG = replace(daily_study(), rankers=RANKERS, ranks=3)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A log of six days."""
    folder = write_log(tmp_path / "data")
    for day in DAYS:
        write_day(folder, day)
    return folder


def test_what_fits_passes_and_missing_days_are_told(data: Path) -> None:
    assert check_daily(CONFIG, data) == []
    for name in (DAYS[1], DAYS[5]):
        (data / "days" / name).rename(data / "days" / f".{name}")
    assert check_daily(CONFIG, data) == [DAYS[1], DAYS[5]]
    assert check_daily(CONFIG, data, follow=True) == [DAYS[1], DAYS[5]]


def test_a_recipe_fits_its_data(tmp_path: Path) -> None:
    prepare_synthetic(tmp_path, users=600, items=200, days=10, events_per_day=2000, upstream_days=4)
    assert check_daily(synthetic_daily_small(), tmp_path) == []


def test_no_day_at_all(data: Path) -> None:
    config = _with(events="nights/{day}/*.parquet")
    with pytest.raises(DataError, match=r"to 1970-01-07 matches refresh.days.events = 'nights/{day}"):
        check_daily(config, data)
    assert check_daily(config, data, follow=True) == DAYS


def test_a_split_without_days(data: Path) -> None:
    (data / "days" / DAYS[2]).rename(data / "days" / f".{DAYS[2]}")
    with pytest.raises(DataError, match=r"no day of spans.validation = 1970-01-04 to 1970-01-04 is there"):
        check_daily(CONFIG, data)


def test_a_day_of_less_than_a_row_for_every_rank_is_no_mistake(data: Path) -> None:
    write_day(data, DAYS[3], rows=2)
    assert check_daily(CONFIG, data) == []


def test_a_day_that_lacks_what_the_upstream_reads(data: Path) -> None:
    path = data / "days" / DAYS[3] / "part-0.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["age"]), path)
    with pytest.raises(DataError, match=r"1970-01-05/part-0.parquet: column 'age' is missing"):
        check_daily(CONFIG, data)


def test_rows_of_entities_that_do_not_fit(data: Path) -> None:
    config = replace(CONFIG, refresh=replace(CONFIG.refresh, days=DAYS_AND_ROWS))
    deliver(data, DAYS[2], item_rows([5], noon(DAYS[2])))
    assert check_daily(config, data) == []
    deliver(data, DAYS[2], item_rows([5], noon(DAYS[2])).drop_columns(["tags"]))
    with pytest.raises(DataError, match=r"items.parquet: column 'tags' is missing"):
        check_daily(config, data)


def test_a_source_that_reaches_into_the_days(data: Path) -> None:
    pq.write_table(user_rows([1], time=86_400_000), data / "users/part-1.parquet")
    assert check_daily(CONFIG, data) == []
    pq.write_table(user_rows([1], time=86_400_001), data / "users/part-1.parquet")
    with pytest.raises(DataError, match=r"is of 86400001 ms, but refresh.days.first = 1970-01-02 begins at 86400000"):
        check_daily(CONFIG, data)


@pytest.mark.parametrize("follow", [False, True])
def test_days_need_event_times(data: Path, follow: bool) -> None:
    UNTIMED.save(data / "untimed.toml")
    (upstream,) = CONFIG.upstreams
    source = replace(upstream.source, schema="untimed.toml")
    config = replace(CONFIG, upstreams=(replace(upstream, source=source),))
    with pytest.raises(ConfigError, match=r"'ctr' is to be refreshed by days, but untimed.toml says timestamp"):
        check_daily(config, data, follow=follow)
    config = replace(CONFIG, rankers=replace(RANKERS, schema="untimed.toml", publish_delay_ms=0))
    with pytest.raises(ConfigError, match=r"schema of upstreams.ctr.source has event times, that of rankers has none"):
        check_daily(config, data, follow=follow)


def _with(**days: str) -> StudyConfig:
    return replace(CONFIG, refresh=replace(CONFIG.refresh, days=replace(CONFIG.daily()[0], **days)))


def test_stray_rows_of_the_source_are_not_its_newest(data: Path) -> None:
    """A time that cannot be read stops nobody, up to the share; the newest that can be read still counts."""
    path, users = data / "events/part-1.parquet", data / "users/part-0.parquet"
    change(path, {2: {"timestamp": 2**60}})
    change(users, {0: {"user_id": None, "timestamp": 2**40}})
    assert check_daily(CONFIG, data) == []
    change(users, {1: {"timestamp": window(DAILY, DAYS[0])[0] + 1}})
    with pytest.raises(DataError, match=r"newest row of upstreams.ctr.source is of 86400001 ms"):
        check_daily(CONFIG, data)
