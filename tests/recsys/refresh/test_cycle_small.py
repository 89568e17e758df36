"""Days of fewer events than a batch: taken as one smaller step, on one rank and on two, and the chain goes on."""

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from recsys.config import ConfigError, DaysConfig, RefreshConfig
from recsys.refresh.cycle import refresh_upstream
from recsys.refresh.days import available_days, chosen_cycle, small_days
from recsys.train import trainer
from recsys.train.distributed import Environment
from tests.distributed import run_ranks
from tests.recsys.refresh.daily_example import (
    DAILY,
    DAYS,
    PLAIN,
    contents,
    daily_config,
    records,
    refresh,
    series,
    start_run,
    write_day,
)

pytestmark = pytest.mark.usefixtures("no_pages")


def passes(days: DaysConfig = DAILY) -> RefreshConfig:
    """Several passes over a day, by a model with dropout, a checkpoint at every step."""
    config = daily_config()
    upstream = config.upstream
    model, training = replace(upstream.model, dropout=0.3), replace(upstream.training, checkpoint_every=1)
    return replace(config, upstream=replace(upstream, model=model, training=training), days=replace(days, epochs=3))


CONFIG = passes()


@pytest.mark.parametrize("rows", [1, pytest.param(2, marks=pytest.mark.long), 7])
def test_a_small_day_and_a_normal_one_after_it(
    run: tuple[Path, Path], rows: int, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = run
    path = write_day(data, DAYS[2], rows=rows)
    write_day(data, DAYS[3])
    assert refresh(CONFIG, data, out, every=True) == DAYS[2:4]
    small, normal = records(out)[2:]
    said = f"{rows} events, less than a batch of 1 x 8: one step of {rows} a pass"
    assert small.shortfall == said
    assert small.events == rows
    assert f"ctr {DAYS[2]} ({said}): " in capsys.readouterr().out
    assert normal.shortfall == ""
    assert small.checkpoint.endswith("step-00000003")
    assert normal.start == small.checkpoint
    assert small.tagged
    assert normal.tagged
    users = torch.tensor(sorted(set(pq.read_table(path)["user_id"].to_pylist())))
    before, after = (series(out).version(version).load().lookup(users)[0] for version in (3, 4))
    assert (before != after).any(1).all(), "its entities are embedded"
    assert after.isfinite().all()


def test_a_small_day_that_is_stopped_between_its_passes(
    run: tuple[Path, Path], tmp_path: Path, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = run
    write_day(data, DAYS[2], rows=5)
    save, saved = trainer.Run.save, []

    def save_and_stop(training: trainer.Run) -> None:
        save(training)
        saved.append(training.step)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Run, "save", save_and_stop)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                refresh(CONFIG, data, out)
    assert saved == [1, 2]
    assert refresh(CONFIG, data, out) == [DAYS[2]]
    (tmp_path / "never").mkdir()
    never_data, never = start_run(tmp_path / "never", DAYS[:2], environment)
    refresh(daily_config(), never_data, never, every=True)
    write_day(never_data, DAYS[2], rows=5)
    refresh(CONFIG, never_data, never)
    assert contents(out) == contents(never)
    assert records(out)[-1].shortfall == records(never)[-1].shortfall != ""


def refresh_and_count(data: Path, out: Path, day: str | None = None) -> list[str]:
    return [record.shortfall for record in refresh_upstream(CONFIG, data, out, every=day is None, day=day)]


def test_small_days_on_two_ranks(tmp_path: Path, environment: Environment) -> None:
    """A row a rank, some more, one too many for equal shares, and a normal day."""
    data, out = start_run(tmp_path, [], environment)
    for day, rows in zip(DAYS, (2, 9, 24), strict=False):
        write_day(data, day, rows=rows)
    told = run_ranks(refresh_and_count, 2, data, out)
    assert told[0] == told[1]
    assert told[0] == [
        "2 events, less than a batch of 2 x 8: one step of 2 a pass",
        "9 events, less than a batch of 2 x 8: one step of 8 a pass",
        "",
    ]
    for name in PLAIN:
        assert series(out, name).tags() == {"prod": 4}
        table = series(out, name).latest().load()
        assert table.lookup(table.ids())[0].isfinite().all()


def test_days_of_less_than_an_event_a_rank_go_along_with_the_next(tmp_path: Path, environment: Environment) -> None:
    data, out = start_run(tmp_path, [], environment)
    for day, rows in zip(DAYS, (1, 0, 24, 1), strict=False):
        write_day(data, day, rows=rows)
    assert small_days(data, DAILY, 2) == [DAYS[0], DAYS[3]]
    with pytest.raises(AssertionError, match=f"--day is {DAYS[0]}, which goes along with {DAYS[2]}, the next day that"):
        run_ranks(refresh_and_count, 2, data, out, DAYS[0])
    assert run_ranks(refresh_and_count, 2, data, out) == [[""], [""]]
    (record,) = records(out)
    assert (record.day, list(record.late), record.gap, record.events) == (DAYS[2], DAYS[:1], [DAYS[1]], 25)
    with pytest.raises(ConfigError, match=f"--day is {DAYS[3]}, which has less than one event a rank"):
        chosen_cycle(DAYS[3], DAYS[0], available_days(data, DAILY, tmp_path / "files.json", 2), records(out))
