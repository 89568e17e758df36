"""Rows of entities that come with the days: who has no event gets a vector too, and who is withdrawn loses it."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recsys.config import GateConfig, LossConfig, RefreshConfig
from recsys.data.batch import Batch
from recsys.data.errors import ClockSkewError, DataError
from recsys.dates import DAY_MS, day_number
from recsys.models.derm import DermOutput
from recsys.models.losses import DermLoss
from recsys.refresh import cycle as cycle_module
from recsys.refresh.cycle import refresh_upstream
from recsys.refresh.days import window
from recsys.train.distributed import Environment
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
    contents,
    records,
    refresh,
    series,
    snapshots,
    start_run,
    write_day,
)
from tests.recsys.refresh.example import LAST, SCHEMA

CONFIG = config()
NEW = [555, 556, 557]
pytestmark = pytest.mark.usefixtures("no_pages")


def test_rows_get_a_vector_in_the_cycle_of_their_day(run: tuple[Path, Path]) -> None:
    data, out = run
    write_day(data, DAYS[2])
    deliver(data, DAYS[2], item_rows(NEW, LAST))
    deliver(data, DAYS[2], new_users([900], noon(DAYS[2])), "users")
    assert refresh(CONFIG, data, out) == [DAYS[2]]
    assert offered(out, NEW) == [True] * 3
    assert has(out, [900], "user_ctr") == [True]
    assert len(snapshots(out, "item_ctr")) == 4, "in the same snapshot as those with events"
    assert active(out, NEW) == [day_number(DAYS[2])] * 3, "since the day they came, though they know of an older time"
    record = records(out)[-1]
    assert list(record.rows) == [DAYS[2]]
    assert record.entities["item"] == len(set(pq.read_table(data / "days" / DAYS[2])["item_id"].to_pylist())) + 3
    assert refresh(CONFIG, data, out) == []
    write_day(data, DAYS[3])
    assert refresh(CONFIG, data, out) == [DAYS[3]]
    assert records(out)[-1].rows == {}, "they went along once"
    assert has(out, NEW) == [True] * 3


def test_of_row_and_event_the_last_counts(run: tuple[Path, Path], tmp_path: Path) -> None:
    data, out = run
    write_day(data, DAYS[2])
    assert 0 in pq.read_table(data / "days" / DAYS[2])["item_id"].to_pylist()
    start, found = window(DAILY, DAYS[2])[0], []
    for number, time in enumerate((None, start - DAY_MS, start + DAY_MS - 1)):
        if time is not None:
            deliver(data, DAYS[2], item_rows([0], time, seed=8))
        folder = Path(shutil.copytree(out, tmp_path / f"out-{number}"))
        refresh(CONFIG, data, folder)
        found.append(series(folder, "item_ctr").latest().load().lookup(torch.tensor([0]))[0])
    without, earlier, later = found
    assert torch.equal(earlier, without)
    assert not torch.equal(later, without)


def test_rows_that_come_late(run: tuple[Path, Path]) -> None:
    """With the newest day: a correction. With an older one, or one that has no events: along with the next."""
    data, out = run
    deliver(data, DAYS[1], item_rows([555], noon(DAYS[1])))
    assert refresh(CONFIG, data, out) == [DAYS[1]]
    assert records(out)[-1].corrects
    assert has(out, NEW) == [True, False, False]
    deliver(data, DAYS[0], item_rows([556], noon(DAYS[0])))
    deliver(data, DAYS[2], item_rows([557], noon(DAYS[2])))
    assert refresh(CONFIG, data, out) == []
    write_day(data, DAYS[3])
    assert refresh(CONFIG, data, out) == [DAYS[3]]
    assert list(records(out)[-1].rows) == [DAYS[0], DAYS[2]]
    assert records(out)[-1].gap == [DAYS[2]]
    assert has(out, NEW) == [True] * 3
    assert active(out, NEW) == [day_number(day) for day in (DAYS[1], DAYS[0], DAYS[2])]
    write_day(data, DAYS[2])
    write_day(data, DAYS[4])
    assert refresh(CONFIG, data, out) == [DAYS[4]]
    assert list(records(out)[-1].late) == [DAYS[2]], "its events are late, as ever"
    assert not (out / "daily/ctr/ignored.json").is_file()


def test_rows_of_a_refused_day_go_along_again(run: tuple[Path, Path]) -> None:
    data, out = run
    deliver(data, DAYS[2], item_rows(NEW, noon(DAYS[2])))
    strict = config(gates=GateConfig(min_coverage=1.0))
    write_day(data, DAYS[2], users=60)
    assert refresh(strict, data, out) == [DAYS[2]]
    assert records(out)[-1].gates
    assert has(out, NEW) == [False] * 3
    write_day(data, DAYS[3])
    refresh(CONFIG, data, out)
    assert has(out, NEW) == [True] * 3


def test_rows_that_change_while_the_cycle_runs(run: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = run
    write_day(data, DAYS[2])
    train, calls = cycle_module.train_on, []

    def train_and_deliver(*args: object, **options: object) -> object:
        result = train(*args, **options)  # type: ignore[arg-type]
        calls.append(len(snapshots(out, "user_ctr")))
        deliver(data, DAYS[2], item_rows(NEW, noon(DAYS[2])))
        return result

    monkeypatch.setattr(cycle_module, "train_on", train_and_deliver)
    assert refresh(CONFIG, data, out) == [DAYS[2]]
    assert calls == [3, 3], "nothing was published without them"
    assert has(out, NEW) == [True] * 3


def flagged(data: Path, day: str, ids: list[int], gone: list[int]) -> None:
    deliver(data, day, item_rows(ids, noon(day), gone=gone))


Drawn = list[tuple[int, set[int]]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """Of each step of a training that draws negatives: how many items there are, and those that were drawn."""
    steps, forward = Drawn(), DermLoss.forward

    def spy(self: DermLoss, output: DermOutput, batch: Batch) -> Any:
        if self.training:  # else the day is scored, before it is trained on
            assert batch.negatives is not None
            assert len(batch.negatives) == 32
            steps.append((self.items, set(batch.negatives.tolist())))
        return forward(self, output, batch)

    monkeypatch.setattr(DermLoss, "forward", spy)
    return steps


def drawing(refresh: RefreshConfig) -> RefreshConfig:
    return replace(refresh, upstream=replace(refresh.upstream, loss=LossConfig(uniform_negatives=32)))


def items_of(data: Path, day: str) -> set[int]:
    return set(pq.read_table(data / "days" / day)["item_id"].to_pylist())


def test_who_is_withdrawn_stays_out(run: tuple[Path, Path], drawn: Drawn) -> None:
    """Item 0 has events on every day. Nor is it drawn as a negative, once the day of its row is over."""
    data, out = run
    FLAGGED.save(data / "schema.toml")
    for day in DAYS[2:5]:
        write_day(data, day)
        assert 0 in items_of(data, day)
    flagged(data, DAYS[2], [0, 555, 556], [1, 1, 0])
    flagged(data, DAYS[4], [0], [0])
    assert has(out, [0]) == [True]
    refresh(drawing(CONFIG), data, out)
    assert offered(out, [0, 555, 556]) == [False, False, True]
    assert records(out)[-1].expired["item_ctr"] == 1
    refresh(drawing(CONFIG), data, out)
    assert offered(out, [0, 555, 556]) == [False, False, True], "its events do not bring it back"
    alive = items_of(data, DAYS[2]), items_of(data, DAYS[3]) - {0}
    assert [count for count, _ in drawn] == [len(alive[0])] * 3 + [len(alive[1])] * 3
    assert tuple(set().union(*(items for _, items in drawn[start : start + 3])) for start in (0, 3)) == alive
    flagged(data, DAYS[3], [556], [1])
    assert refresh(drawing(CONFIG), data, out) == [DAYS[3]]
    assert offered(out, [0, 555, 556]) == [False] * 3
    refresh(drawing(CONFIG), data, out)
    assert offered(out, [0, 555, 556]) == [True, False, False], "a row does"


def test_a_cold_retrain_knows_all_rows(run: tuple[Path, Path], drawn: Drawn) -> None:
    """And draws from those of the source."""
    data, out = run
    FLAGGED.save(data / "schema.toml")
    (data / "items").mkdir()
    pq.write_table(item_rows([777], LAST, gone=[0]), data / "items/part-0.parquet")
    source = replace(CONFIG.upstream.source, items=("items/*.parquet",))
    settings = drawing(replace(CONFIG, upstream=replace(CONFIG.upstream, source=source)))
    write_day(data, DAYS[2])
    flagged(data, DAYS[2], [0, 555], [1, 0])
    refresh(settings, data, out)
    assert 777 not in set().union(*(items for _, items in drawn))
    drawn.clear()
    write_day(data, DAYS[3])
    assert refresh(settings, data, out, cold=True) == [DAYS[3]]
    assert snapshots(out, "item_ctr")[-1][2] == "ctr-2"
    assert offered(out, [0, 555, 777, 1 * 3**30]) == [False, True, True, True]
    every = set().union(*(items for _, items in drawn))
    assert 777 in every
    assert 0 not in every


def test_a_catalogue_without_events_is_the_first_publication(tmp_path: Path, environment: Environment) -> None:
    data, out = start_run(tmp_path, DAYS[:1], environment)
    FLAGGED.save(data / "schema.toml")
    (data / "items").mkdir()
    ids = [*range(1000, 1300), 0]
    pq.write_table(item_rows(ids, LAST, gone=[0] * 300 + [1]), data / "items/part-0.parquet")
    source = replace(CONFIG.upstream.source, items=("items/*.parquet",))
    start = replace(CONFIG, upstream=replace(CONFIG.upstream, source=source))
    assert refresh_upstream(start, data, out) == []
    assert offered(out, ids) == [True] * 300 + [False]
    table = series(out, "item_ctr").latest().load()
    torch.testing.assert_close(table.lookup(torch.tensor(ids[:300]))[0].norm(dim=1), torch.ones(300))
    assert refresh(start, data, out) == DAYS[:1]
    assert offered(out, ids) == [True] * 300 + [False], "who is withdrawn by the source stays out too"


BAD = {
    "an id twice": (
        item_rows([5, 6, 5], noon(DAYS[2])),
        r"column 'item_id', row 2: id 5 is there twice, first in row 0",
    ),
    "from tomorrow": (item_rows([5, 6], noon(DAYS[3])), r"column 'timestamp', row 0: the row is of .*, after the day"),
    "no feature": (item_rows([5], noon(DAYS[2])).drop_columns(["tags"]), "items.parquet: column 'tags' is missing"),
    "wrong owner": (new_users([5], noon(DAYS[2])), "'user_id' is there: these are rows of users. Deliver them as such"),
    "ids of text": (
        item_rows([5], noon(DAYS[2])).set_column(1, "item_id", pa.array(["a"])),
        "ids of one column must all be integers or all be strings",
    ),
}


def test_bad_rows_are_refused_before_anything_is_trained(
    run: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = run
    before = contents(out)
    write_day(data, DAYS[2])
    replace(SCHEMA, max_bad_rows=0.0).save(data / "schema.toml")
    for name, (table, message) in BAD.items():
        path = deliver(data, DAYS[2], table)
        with monkeypatch.context() as patch:
            patch.setattr(cycle_module, "train_on", lambda *_, name=name, **__: pytest.fail(f"{name}: it was trained"))
            with pytest.raises(ClockSkewError if name == "from tomorrow" else DataError, match=message):
                refresh(CONFIG, data, out)
        assert contents(out) == before, name
        path.unlink()
    assert refresh(CONFIG, data, out) == [DAYS[2]]


def test_a_bad_row_among_many_is_left_out(run: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    data, out = run
    FLAGGED.save(data / "schema.toml")
    write_day(data, DAYS[2])
    table = item_rows([5, 6, 7, 6], noon(DAYS[2]), gone=[0, 0, 0, 0])
    deliver(data, DAYS[2], table)
    deliver(data, DAYS[2], new_users([], noon(DAYS[2])), "users")
    assert refresh(CONFIG, data, out) == [DAYS[2]]
    assert records(out)[-1].quarantined == {f"{DAYS[2]}-rows": 1}
    told = capsys.readouterr().out
    assert f"ctr-{DAYS[2]}-rows: 1 of 8 rows quarantined: see {out / 'quarantine'}" in told
    assert f"ctr-{DAYS[2]}-rows: no rows of users, nothing to do for them" in told
    assert has(out, [5, 6, 7]) == [True] * 3
    write_day(data, DAYS[3])
    deliver(data, DAYS[3], item_rows([5], noon(DAYS[3]), gone=[2]))
    with pytest.raises(DataError, match="column 'gone', row 0: the label is 2"):
        refresh(CONFIG, data, out)
    deliver(data, DAYS[3], item_rows([5], noon(DAYS[3])))
    with pytest.raises(DataError, match="column 'gone' is missing"):
        refresh(CONFIG, data, out)
