import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.config import ConfigError, DaysConfig
from recsys.data.errors import DataError
from recsys.dates import DAY_MS
from recsys.refresh.days import (
    Cycle,
    Delivered,
    again,
    available_days,
    chosen_cycle,
    find_day,
    ignored,
    next_cycle,
    window,
)
from tests.recsys.refresh.example import events

DAYS = [f"2024-03-0{number}" for number in range(1, 8)]
DAILY = DaysConfig(
    events="log/{day}/*/*.parquet",
    first=DAYS[0],
    last=DAYS[-1],
)


@dataclass(frozen=True)
class Done:
    """What a record says of a processed day."""

    day: str
    fingerprint: str
    late: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, str] = field(default_factory=dict)


def there(*days: int, **changed: str) -> dict[str, str]:
    """Days 1, 2, ... with the fingerprint "a", or another one: d2="b"."""
    return {DAYS[day - 1]: changed.get(f"d{day}", "a") for day in days}


def done(day: int, value: str = "a", **late: str) -> Done:
    return Done(DAYS[day - 1], value, {DAYS[int(name[1:]) - 1]: value for name, value in late.items()})


def cycle(day: int, value: str = "a", *, gap: tuple[int, ...] = (), corrects: bool = False, **late: str) -> Cycle:
    days = {DAYS[int(name[1:]) - 1]: value for name, value in late.items()}
    return Cycle(DAYS[day - 1], value, days, tuple(DAYS[number - 1] for number in gap), corrects)


@pytest.mark.parametrize(
    ("available", "records", "expected"),
    [
        pytest.param({}, [], None, id="nothing is there"),
        pytest.param(there(1, 2), [], cycle(1), id="the oldest day comes first"),
        pytest.param(there(3), [], cycle(3, gap=(1, 2)), id="days missing at the beginning"),
        pytest.param(there(1, 2), [done(1)], cycle(2), id="the next day"),
        pytest.param(there(1, 2), [done(1), done(2)], None, id="all done"),
        pytest.param({}, [done(1)], None, id="a processed day that was deleted is no matter"),
        pytest.param(there(1, 4), [done(1)], cycle(4, gap=(2, 3)), id="a missing day is skipped and noted"),
        pytest.param(there(1, 2, 3), [done(1), done(3)], None, id="a late day waits for the next cycle"),
        pytest.param(there(1, 2, 3, 4), [done(1), done(3)], cycle(4, d2="a"), id="a late day goes along"),
        pytest.param(
            there(1, 2, 3, 4, 6), [done(1), done(4)], cycle(6, gap=(5,), d2="a", d3="a"), id="late days and a gap"
        ),
        pytest.param(there(1, 2, 3), [done(1), done(3, d2="a")], None, id="a late day is done once"),
        pytest.param(there(1, d1="b"), [done(1)], cycle(1, "b", corrects=True), id="the newest day came again"),
        pytest.param(
            there(1, 2, 3, d2="b"), [done(1), done(2)], cycle(2, "b", corrects=True), id="a correction comes first"
        ),
        pytest.param(
            there(1, 2, 3, d2="b"),
            [done(1), done(3, d2="a")],
            cycle(3, corrects=True, d2="b"),
            id="a late day of the newest cycle came again",
        ),
        pytest.param(there(1, 3), [done(1), done(3, d2="a")], None, id="a late day that was deleted is no matter"),
        pytest.param(
            there(1, 3, d3="b"),
            [done(1), done(3, d2="a")],
            cycle(3, "b", corrects=True),
            id="a correction goes without a late day that was deleted",
        ),
        pytest.param(there(1, 2, d1="b"), [done(1), done(2)], None, id="an older day came again"),
        pytest.param(there(1, 2, 3, d1="b"), [done(1), done(2)], cycle(3), id="an older day is not taken along"),
    ],
)
def test_the_next_cycle(available: dict[str, str], records: list[Done], expected: Cycle | None) -> None:
    assert next_cycle(DAYS[0], Delivered(available), records) == expected


def test_days_that_are_not_enough_wait_for_the_next() -> None:
    rows = dict(zip(DAYS, (1, 0, 9, 1, 1, 1), strict=False))

    def delivered(*numbers: int) -> Delivered:
        return Delivered(there(*numbers), enough=lambda days: sum(rows[day] for day in days) >= 3)

    assert next_cycle(DAYS[0], delivered(1, 2), []) is None
    assert next_cycle(DAYS[0], delivered(1, 2, 3, 4), []) == cycle(3, d1="a", d2="a")
    before = [done(3, d1="a", d2="a")]
    assert next_cycle(DAYS[0], delivered(1, 2, 3, 4, 5), before) is None
    assert next_cycle(DAYS[0], delivered(1, 2, 3, 4, 5, 6), before) == cycle(6, d4="a", d5="a")


def test_days_that_came_again_too_late() -> None:
    assert ignored(there(1, 2, 3), [done(1), done(2), done(3)]) == {}
    assert ignored(there(1, 2, d1="b", d2="b"), [done(1), done(2)]) == {DAYS[0]: "b"}
    assert ignored(there(1, 2, 3, d2="b"), [done(1), done(3, d2="a")]) == {}, "it goes with a correction of day 3"
    assert ignored(there(2, 3), [done(1), done(3, d2="a")]) == {}, "a day that was deleted was not delivered again"
    assert ignored({}, []) == {}


def test_the_newest_day_again_wants_its_files() -> None:
    assert again(there(1, 2), done(2)) == cycle(2, corrects=True)
    with pytest.raises(DataError, match="day 2024-03-02, the newest that was processed, is not there any more"):
        again(there(1), done(2))


def test_a_day_that_is_asked_for() -> None:
    records = [done(1), done(2)]
    assert chosen_cycle(DAYS[2], DAYS[0], Delivered(there(1, 2, 3)), records) == cycle(3)
    assert chosen_cycle(DAYS[1], DAYS[0], Delivered(there(1, 2, 3)), records) is None
    assert chosen_cycle(DAYS[0], DAYS[0], Delivered(there(1, 2, 3)), records) is None
    assert chosen_cycle(DAYS[1], DAYS[0], Delivered(there(1, 2, d2="b")), records) == cycle(2, "b", corrects=True)
    with pytest.raises(DataError, match=r"day 2024-03-05 is not there; days: 2024-03-01, 2024-03-02"):
        chosen_cycle(DAYS[4], DAYS[0], Delivered(there(1, 2)), records)
    with pytest.raises(ConfigError, match="--day is 2024-03-04, which comes after 2024-03-03, the next day that is du"):
        chosen_cycle(DAYS[3], DAYS[0], Delivered(there(1, 2, 3, 4)), records)
    with pytest.raises(ConfigError, match="--day is 2024-03-03, which comes after 2024-03-02"):
        chosen_cycle(DAYS[2], DAYS[0], Delivered(there(1, 2, 3, d2="b")), records)
    with pytest.raises(ConfigError, match="--day is 2024-03-02, which goes along with 2024-03-04"):
        chosen_cycle(DAYS[1], DAYS[0], Delivered(there(1, 2, 3, 4)), [done(1), done(3)])
    with pytest.raises(ConfigError, match="correction cannot be applied: 2024-03-02 is published"):
        chosen_cycle(DAYS[0], DAYS[0], Delivered(there(1, 2, d1="b")), records)


@given(
    arrivals=st.lists(st.tuples(st.integers(0, 6), st.sampled_from("abc")), min_size=1, max_size=12),
    cycles=st.integers(0, 3),
)
def test_however_days_arrive_the_loop_ends_and_order_holds(arrivals: list[tuple[int, str]], cycles: int) -> None:
    """Days and corrections in any order, with a few cycles run after each: days only move forward, and all ends."""
    available: dict[str, str] = {}
    records: list[Done] = []
    taken: list[str] = []
    for number, (index, value) in enumerate(arrivals):
        available[DAYS[index]] = value
        for _ in range(cycles if number < len(arrivals) - 1 else 50):
            found = next_cycle(DAYS[0], Delivered(available), records)
            if found is None:
                break
            assert found.corrects == (bool(records) and found.day == records[-1].day)
            assert not records or found.day >= records[-1].day
            assert list(found.days) == sorted(found.days)
            assert not set(found.gap) & (set(available) | set(taken))
            if found.corrects:
                assert set(found.days) == {records[-1].day, *records[-1].late}
                records.pop()
            else:
                assert not set(found.days) & set(taken), "an event is learned once"
                taken += found.days
            records.append(Done(found.day, found.fingerprint, found.late))
    assert next_cycle(DAYS[0], Delivered(available), records) is None
    newest = max(available)
    assert records[-1].day == newest
    assert records[-1].fingerprint == available[newest]
    assert set(available) - set(taken) <= {day for day in available if day < newest}


def write(root: Path, day: str, rows: int = 5, *, seed: int = 0, folder: str | None = None, shift: int = 0) -> Path:
    start, _ = window(DAILY, day)
    table = events(rows, seed=seed)
    times = pa.array([start + shift + row * 1000 for row in range(rows)])
    path = root / f"log/{folder or day}/part/0.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.set_column(table.column_names.index("timestamp"), "timestamp", times), path)
    return path


def test_days_on_disk(tmp_path: Path) -> None:
    for day in DAYS[1:4]:
        write(tmp_path, day, seed=DAYS.index(day))
    write(tmp_path, "2024-03-09")
    write(tmp_path, DAYS[5], folder=f".{DAYS[5]}")
    shutil.copytree(tmp_path / f"log/{DAYS[1]}/part", tmp_path / f"log/{DAYS[1]}/_staged")
    (tmp_path / f"log/{DAYS[4]}/part").mkdir(parents=True)
    found = available_days(tmp_path, DAILY, tmp_path / "files.json").events
    assert list(found) == DAYS[1:4], "not those outside first .. last, hidden, or empty"
    assert len(set(found.values())) == 3
    assert [path.parent.name for path in find_day(tmp_path, DAILY, DAYS[1])] == ["part"]
    with pytest.raises(DataError, match="is no folder"):
        available_days(tmp_path / "none", DAILY, tmp_path / "files.json")


def test_days_of_another_length(tmp_path: Path) -> None:
    quarters = replace(DAILY, hours=6, first="2024-03-01T06", last="2024-03-02T00")
    weeks = replace(DAILY, hours=168, first="2024-03-01", last="2024-03-22")
    for folder in ("2024-03-01T00", "2024-03-01T06", "2024-03-01T07", "2024-03-01T18", "2024-03-01", "2024-03-08"):
        write(tmp_path, "2024-03-02", folder=folder)
    assert list(available_days(tmp_path, quarters, tmp_path / "q.json").events) == ["2024-03-01T06", "2024-03-01T18"]
    assert list(available_days(tmp_path, weeks, tmp_path / "w.json").events) == ["2024-03-01", "2024-03-08"]
    found = available_days(tmp_path, quarters, tmp_path / "q.json")
    late = next_cycle(quarters.first, found, [Done("2024-03-01T06", found.events["2024-03-01T06"])])
    assert late is not None
    assert (late.day, late.gap) == ("2024-03-01T18", ("2024-03-01T12",))
    start, end = window(quarters, "2024-03-01T18")
    assert (end - start, end) == (DAY_MS // 4, window(DAILY, "2024-03-02")[0])
    assert window(weeks, "2024-03-08") == (window(DAILY, "2024-03-08")[0], window(DAILY, "2024-03-15")[0])


def test_a_day_begins_at_its_own_midnight() -> None:
    start, end = window(DAILY, "1970-01-03")
    assert (start, end) == (2 * DAY_MS, 3 * DAY_MS)
    china = DaysConfig(**{**DAILY.__dict__, "utc_offset_hours": 8})
    assert window(china, "2022-04-25")[0] == 1_650_816_000_000
    india = DaysConfig(**{**DAILY.__dict__, "utc_offset_hours": 5.5})
    assert window(india, "1970-01-02")[0] == DAY_MS - 19_800_000
