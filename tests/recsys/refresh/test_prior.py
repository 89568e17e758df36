"""The items' prior, where it is published: with the first vectors, with each day, and between them."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding_store import EmbeddingStore, Series
from recsys import cli
from recsys.config import ConfigError, PriorConfig, RetentionConfig
from recsys.data.errors import DataError
from recsys.folders import store_folder
from recsys.prior import Prior
from recsys.refresh.counting import refresh_prior
from recsys.refresh.cycle import refresh_upstream
from recsys.refresh.days import window
from recsys.refresh.prior import prior_series, publish_prior
from recsys.train.distributed import Environment
from tests.recsys.refresh.daily_example import DAILY, DAYS, change, daily_config, refresh, series, write_day
from tests.recsys.refresh.example import LAST, REFRESH, UNTIMED, save_checkpoint, write_log

pytestmark = pytest.mark.usefixtures("no_pages")


def counted(*tables: pa.Table, after: float = -np.inf) -> Prior:
    table = pa.concat_tables(table.select(["timestamp", "item_id", "click"]) for table in tables)
    table = table.filter(pa.array(table["timestamp"].to_numpy() > after))
    return Prior.count(table["item_id"].to_numpy(), table["click"].to_numpy() == 1)


def source(data: Path) -> pa.Table:
    return pa.concat_tables(pq.ParquetFile(path).read() for path in sorted((data / "events").glob("*.parquet")))


def of_day(data: Path, day: str) -> pa.Table:
    return pq.ParquetFile(data / f"days/{day}/part-0.parquet").read()


def priors(out: Path) -> Series:
    return series(out, "item_ctr.prior")


def assert_newest_is(out: Path, prior: Prior, as_of: int) -> None:
    snapshot = priors(out).latest()
    assert snapshot.as_of == as_of
    found = Prior.load(snapshot)
    assert found.ids.tolist() == prior.ids.tolist()
    assert found.values.tolist() == prior.values.tolist()


def test_it_comes_with_the_first_vectors(log: Path, tmp_path: Path, environment: Environment) -> None:
    save_checkpoint(tmp_path, 1, environment)
    hours = (LAST - 500_000) / 3_600_000
    config = replace(REFRESH, prior=PriorConfig(hours=hours))
    for _ in range(2):  # the second call has nothing to do
        refresh_upstream(config, log, tmp_path)
        assert_newest_is(tmp_path, counted(source(log), after=LAST - hours * 3_600_000), LAST)
        assert priors(tmp_path).versions() == [1]
    assert series(tmp_path, "item_ctr").latest().as_of == LAST


def test_a_log_without_times_counts_all_of_it(tmp_path: Path, environment: Environment) -> None:
    data, out = write_log(tmp_path / "data", UNTIMED), tmp_path / "out"
    save_checkpoint(out, 1, environment, schema=UNTIMED)
    refresh_upstream(REFRESH, data, out)
    table = source(data)
    whole = Prior.count(table["item_id"].to_numpy(), table["click"].to_numpy() == 1)
    assert Prior.load(priors(out).latest()).values.tolist() == whole.values.tolist()


def test_it_comes_with_each_day_and_counts_its_hours(run: tuple[Path, Path]) -> None:
    data, out = run
    ends = [window(DAILY, day)[1] for day in DAYS]
    assert [snapshot.as_of for snapshot in priors(out).history()] == [LAST, *ends[:2]]
    both = [of_day(data, day) for day in DAYS[:2]]
    assert_newest_is(out, counted(source(data), *both, after=ends[1] - 72 * 3_600_000), ends[1])
    write_day(data, DAYS[2])
    assert refresh(daily_config(prior=PriorConfig(hours=36)), data, out) == [DAYS[2]]
    third = of_day(data, DAYS[2])
    assert_newest_is(out, counted(*both, third, after=ends[2] - 36 * 3_600_000), ends[2])
    write_day(data, DAYS[3])
    assert refresh(daily_config(prior=PriorConfig(hours=0)), data, out) == [DAYS[3]]
    assert_newest_is(out, counted(source(data), *both, third, of_day(data, DAYS[3])), ends[3])


def test_between_cycles_it_is_counted_without_training(run: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command, which a later cycle follows; one that is behind it leaves it."""
    data, out = run
    write_day(data, DAYS[2], rows=10)
    newest = int(of_day(data, DAYS[2])["timestamp"].to_numpy().max())
    config = daily_config(prior=PriorConfig(hours=1000))
    config.save(out / "refresh.toml")
    before = series(out, "item_ctr").versions()
    arguments = ["prior", "--config", out / "refresh.toml", "--data", data, "--out", out]
    monkeypatch.setattr(sys, "argv", ["recsys", *map(str, arguments)])
    cli.main()
    assert series(out, "item_ctr").versions() == before
    assert_newest_is(out, counted(source(data), *(of_day(data, day) for day in DAYS[:3])), newest)
    published = refresh_prior(config, data, out, events=f"days/{DAYS[2]}/*.parquet")
    assert published.as_of == newest  # a correction of the same time
    assert_newest_is(out, counted(of_day(data, DAYS[2])), newest)
    with pytest.raises(DataError, match=rf"is as of {newest} ms: give newer events with --events"):
        refresh_prior(config, data, out, events=f"days/{DAYS[1]}/*.parquet")
    ahead = priors(out).latest().as_of + 10**8
    publish_prior(priors(out), counted(source(data)), ahead)
    assert refresh(config, data, out) == [DAYS[2]]
    assert priors(out).latest().as_of == ahead


def test_priors_go_with_the_vectors_and_lack_what_cannot_be_read(
    run: tuple[Path, Path], capsys: pytest.CaptureFixture
) -> None:
    """A day that came again, too late, unreadable."""
    data, out = run
    assert len(priors(out).history()) == 3
    change(data / f"days/{DAYS[0]}/part-0.parquet", {row: {"item_id": None} for row in range(20)})
    write_day(data, DAYS[2])
    assert refresh(daily_config(retention=RetentionConfig(keep_last=1)), data, out) == [DAYS[2]]
    assert f"prior of ctr: day {DAYS[0]} is left out: " in capsys.readouterr().out
    assert_newest_is(out, counted(*(of_day(data, day) for day in DAYS[1:3])), window(DAILY, DAYS[2])[1])
    times = [snapshot.as_of for snapshot in series(out, "item_ctr").history()]
    assert [snapshot.as_of for snapshot in priors(out).history()] == times
    assert len(times) == 2


def test_settings_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"hours is -1; use more than 0, or 0"):
        PriorConfig(hours=-1)
    store = EmbeddingStore(store_folder(tmp_path))
    assert publish_prior(prior_series(store, "x"), Prior.count(np.zeros(0, np.int64), np.zeros(0, bool)), 5) is not None
