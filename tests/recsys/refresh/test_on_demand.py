"""`recsys embed`: rows between two cycles."""

import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recsys.config import GateConfig
from recsys.data.errors import DataError
from recsys.dates import day_number
from recsys.refresh import on_demand
from recsys.refresh.aggregator import DayWriter
from recsys.refresh.counting import refresh_prior
from recsys.refresh.days import window
from recsys.refresh.errors import UnfinishedError
from recsys.refresh.on_demand import embed_rows
from recsys.train.distributed import Environment
from tests.processes import forkserver
from tests.recsys.refresh.catalogue_example import (
    FLAGGED,
    active,
    config,
    deliver,
    has,
    item_rows,
    new_users,
    noon,
    offered,
)
from tests.recsys.refresh.daily_example import (
    DAILY,
    DAYS,
    PLAIN,
    contents,
    records,
    refresh,
    series,
    snapshots,
    start_run,
    write_day,
)
from tests.recsys.refresh.example import LAST, SCHEMA
from tests.recsys.refresh.test_kills import _kill_at

CONFIG = config()
NEW = [555, 556, 557]
KILLED = -signal.SIGKILL
pytestmark = pytest.mark.usefixtures("no_pages")


def write(data: Path, table: pa.Table, name: str = "new.parquet") -> Path:
    pq.write_table(table, data / name)
    return data / name


def test_new_items_have_vectors_at_once(run: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    data, out = run
    end = window(DAILY, DAYS[1])[1]
    rows = write(data, item_rows(NEW, LAST))
    before = series(out).latest().load()
    embed_rows(CONFIG, rows, "item", data, out)
    assert has(out, NEW) == [True] * 3
    for name in PLAIN:
        assert snapshots(out, name)[-1] == (4, end + 1, "ctr-1")
        assert series(out, name).tags() == {"prod": 4}
    assert torch.equal(series(out).latest().load().ids(), before.ids())
    assert active(out, NEW) == [day_number(DAYS[1])] * 3
    assert "ctr: 3 items of" in capsys.readouterr().out
    embed_rows(CONFIG, rows, "item", data, out)
    assert "was embedded before, as version 4" in capsys.readouterr().out
    assert len(snapshots(out, "item_ctr")) == 4
    embed_rows(CONFIG, write(data, new_users([900], noon(DAYS[2])), "users.parquet"), "user", data, out)
    assert [snapshots(out, name)[-1][:2] for name in PLAIN] == [(5, noon(DAYS[2]))] * 2, "as of the newest row"
    assert has(out, [900], "user_ctr") + has(out, NEW) == [True] * 4


def test_only_who_was_in_training_is_known_by_id(run: tuple[Path, Path]) -> None:
    """Of items alike, one of them with events: it has a vector of its own, and the new ones are what their rows say."""
    data, out = run
    alike = item_rows(NEW[:1], LAST).take(pa.array([0] * 3)).set_column(1, "item_id", pa.array([0, *NEW[:2]]))
    embed_rows(replace(CONFIG, aggregation="latest"), write(data, alike), "item", data, out)
    (known, new, new_too), there = series(out, "item_ctr").latest().load().lookup(torch.tensor([0, *NEW[:2]]))
    assert there.all()
    assert torch.equal(new, new_too)
    assert not torch.allclose(known, new, atol=1e-4)


def test_the_days_go_on_from_them(run: tuple[Path, Path], tmp_path: Path) -> None:
    """And so does a correction of the day before them; and the vectors are those of rows that came with the day."""
    data, out = run
    with_day = Path(shutil.copytree(out, tmp_path / "with_day"))
    embed_rows(CONFIG, write(data, item_rows(NEW, noon(DAYS[3]))), "item", data, out)
    write_day(data, DAYS[1], seed=99)
    assert refresh(CONFIG, data, out) == [DAYS[1]], "though rows of a later time are published"
    assert has(out, NEW) == [True] * 3
    assert [snapshots(out, name)[-1][:2] for name in PLAIN] == [(5, noon(DAYS[3]))] * 2
    write_day(data, DAYS[2])
    refresh(CONFIG, data, out)
    assert snapshots(out, "item_ctr")[-1][:2] == (6, noon(DAYS[3]) + 1)
    path = deliver(data, DAYS[1], item_rows(NEW, noon(DAYS[1])))
    refresh(CONFIG, data, with_day, every=True)
    ids = torch.tensor(NEW)
    tables = [series(folder, "item_ctr").latest().load() for folder in (out, with_day)]
    assert torch.equal(tables[0].lookup(ids)[0], tables[1].lookup(ids)[0])
    path.unlink()
    write_day(data, DAYS[3])
    refresh(CONFIG, data, out)
    assert snapshots(out, "item_ctr")[-1][:2] == (7, window(DAILY, DAYS[3])[1])
    assert has(out, NEW) == [True] * 3
    assert [record.between for record in records(out)] == [0, 1, 1, 1]


def test_after_a_refused_day_and_a_rollback(run: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    data, out = run
    write_day(data, DAYS[2], users=60)
    refresh(config(gates=GateConfig(min_coverage=1.0)), data, out)
    assert records(out)[-1].gates
    embed_rows(CONFIG, write(data, item_rows(NEW[:1], LAST)), "item", data, out)
    assert [series(out, name).tags() for name in PLAIN] == [{"prod": 5}] * 2, "it stood on the day before"
    known = series(out).version(3).load().ids()
    assert torch.equal(series(out).latest().load().ids(), known)
    for name in PLAIN:
        series(out, name).tag("prod", 2)
    embed_rows(CONFIG, write(data, item_rows(NEW[1:], LAST)), "item", data, out)
    assert [series(out, name).tags() for name in PLAIN] == [{"prod": 2}] * 2
    assert "tag prod did not stand on the version before, and stays" in capsys.readouterr().out
    assert series(out, "item_ctr").latest().load().lookup(torch.tensor(NEW))[1].all()


def test_who_is_withdrawn_leaves_at_once(run: tuple[Path, Path]) -> None:
    data, out = run
    FLAGGED.save(data / "schema.toml")
    assert offered(out, [0]) == [True]
    embed_rows(CONFIG, write(data, item_rows([0, 555], LAST, gone=[1, 0])), "item", data, out)
    assert offered(out, [0, 555]) == [False, True]
    write_day(data, DAYS[2])
    assert 0 in pq.read_table(data / "days" / DAYS[2])["item_id"].to_pylist()
    refresh_prior(CONFIG, data, out)
    assert offered(out, [0, 555]) == [False, True], "though it has events"
    refresh(CONFIG, data, out)
    assert offered(out, [0, 555]) == [False, True]
    embed_rows(CONFIG, write(data, item_rows([0], LAST, gone=[0])), "item", data, out)
    assert offered(out, [0]) == [True], "of equal times the later row counts"


def test_before_the_first_day_and_without_times(tmp_path: Path, environment: Environment) -> None:
    data, out = start_run(tmp_path, [], environment)
    rows = write(data, item_rows(NEW, LAST))
    with pytest.raises(UnfinishedError, match="does not hold the first vectors of upstream 'ctr' yet: give"):
        embed_rows(CONFIG, rows, "item", data, out)
    refresh(CONFIG, data, out)
    embed_rows(replace(CONFIG, days=None), rows, "item", data, out)
    assert has(out, NEW) == [True] * 3
    assert snapshots(out, "item_ctr")[-1][1] == LAST + 1


BAD = {
    "an id twice": (item_rows([5, 6, 5], LAST), "item", "column 'item_id', row 2: id 5 is there twice"),
    "from tomorrow": (item_rows([5], 2**42), "item", "column 'timestamp', row 0: the event time .* a day ahead of now"),
    "no feature": (item_rows([5], LAST).drop_columns(["tags"]), "item", "new.parquet: column 'tags' is missing"),
    "wrong owner": (item_rows([5], LAST), "user", "'item_id' is there: these are rows of items. Deliver them as such"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_publish_nothing(run: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    data, out = run
    table, owner, message = BAD[name]
    replace(SCHEMA, max_bad_rows=0.0).save(data / "schema.toml")
    before = contents(out)
    monkeypatch.setattr(on_demand, "load_tower", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(DataError, match=message):
        embed_rows(CONFIG, write(data, table), owner, data, out)
    assert contents(out) == before
    assert not (out / "daily/ctr/between").exists()


def test_no_rows_are_nothing_to_do(run: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    data, out = run
    assert embed_rows(CONFIG, write(data, item_rows([], LAST)), "item", data, out) is None
    assert "holds no rows: nothing to do" in capsys.readouterr().out
    with pytest.raises(DataError, match="no such file; give --rows a Parquet file of items"):
        embed_rows(CONFIG, data / "none.parquet", "item", data, out)


def _embed_and_die(data: Path, out: Path, step: int) -> None:
    torch.set_num_threads(1)
    _kill_at(step)
    embed_rows(CONFIG, data / "new.parquet", "item", data, out)


@pytest.fixture(scope="module")
def start() -> Callable[..., int]:
    """Runs a call in a process of its own, forked off one that has imported everything; its exit code."""
    context = forkserver()

    def begin(call: Callable[..., None], *arguments: object) -> int | None:
        process: BaseProcess = context.Process(target=call, args=arguments)
        process.start()
        process.join(600)
        return process.exitcode

    return begin


def test_killed_at_each_durable_step(run: tuple[Path, Path], start: Callable[..., int], tmp_path: Path) -> None:
    """Given again it ends with the same store."""
    data, out = run
    rows = write(data, item_rows(NEW, LAST))
    whole = Path(shutil.copytree(out, tmp_path / "whole"))
    embed_rows(CONFIG, rows, "item", data, whole)
    expected, step, kills = contents(whole), 1, 0
    while start(_embed_and_die, data, broken := Path(shutil.copytree(out, tmp_path / f"{step}")), step) == KILLED:
        kills += 1
        embed_rows(CONFIG, rows, "item", data, broken)
        assert contents(broken) == expected, f"killed at step {step}"
        assert len(list((broken / "daily/ctr/between").glob("*.json"))) == 1
        step += 3
    assert kills >= 4


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a call that is stopped once the items are published, and the users not."""

    def run(call: Callable[..., object], *arguments: object) -> None:
        commit, ended = DayWriter.__exit__, []

        def stop(writer: DayWriter, *error: object) -> None:
            ended.append(writer)
            if len(ended) == 2:
                commit(writer, KeyboardInterrupt, KeyboardInterrupt(), None)
                raise KeyboardInterrupt
            commit(writer, *error)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(DayWriter, "__exit__", stop)
            with pytest.raises(KeyboardInterrupt):
                call(*arguments)

    return run


def test_stopped_half_way_before_a_cycle(run: tuple[Path, Path], stopped: Callable[..., None]) -> None:
    data, out = run
    rows = write(data, item_rows(NEW, LAST))
    stopped(embed_rows, CONFIG, rows, "item", data, out)
    assert [snapshots(out, name)[-1][0] for name in PLAIN] == [3, 4]
    write_day(data, DAYS[2])
    refresh(CONFIG, data, out)
    assert [snapshots(out, name)[-1][:2] for name in PLAIN] == [(5, window(DAILY, DAYS[2])[1])] * 2
    assert has(out, NEW) == [True] * 3, "they went along"
    embed_rows(CONFIG, rows, "item", data, out)
    assert [series(out, name).tags() for name in PLAIN] == [{"prod": 6}] * 2


def test_a_cycle_that_stopped_half_way_goes_first(run: tuple[Path, Path], stopped: Callable[..., None]) -> None:
    data, out = run
    rows = write(data, item_rows(NEW, LAST))
    write_day(data, DAYS[2])
    stopped(refresh, CONFIG, data, out)
    with pytest.raises(UnfinishedError, match="the cycle of 1970-01-04 was stopped while it published: give"):
        embed_rows(CONFIG, rows, "item", data, out)
    refresh(CONFIG, data, out)
    embed_rows(CONFIG, rows, "item", data, out)
    assert [series(out, name).tags() for name in PLAIN] == [{"prod": 5}] * 2
    assert has(out, NEW) == [True] * 3
