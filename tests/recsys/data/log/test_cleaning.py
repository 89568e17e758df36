"""What a log's values are read as: times in any unit, ids of any kind, rows twice, rows that are none."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.config import LogConfig, LogFiles
from recsys.data.errors import DataError
from recsys.data.log.cleaning import Cleaned, clean
from recsys.data.log.engine import engine
from recsys.data.log.prepare import listed_ids
from recsys.data.log.reading import read_log

NOON = 1_700_049_600
"""Seconds; 15 November 2023, 12:00 UTC."""
MOMENTS = [datetime.fromtimestamp(NOON + hour * 3600, UTC) for hour in range(3)]
BERLIN = timezone(timedelta(hours=1))


def cleaned(folder: Path, pattern: str, **settings: Any) -> tuple[Cleaned, list[tuple[Any, ...]]]:
    """What became of the rows, and user, item and time in ms of those that are left."""
    config = LogConfig(
        log=LogFiles(**{"files": (pattern,), "user": "user", "item": "item", "time": "time", **settings})
    )
    (folder / "work").mkdir()
    with engine(folder / "work", 0.5) as connection:
        found = clean(connection, config, read_log(connection, config, folder), folder)
        rows = connection.execute(
            "SELECT user_id, item_id, t FROM events JOIN (SELECT rowid AS u, user_id FROM users) USING (u) "
            "JOIN (SELECT rowid AS i, item_id FROM items) USING (i) ORDER BY events.rowid"
        ).fetchall()
    return found, rows


def parquet(folder: Path, **columns: Any) -> None:
    rows = max(len(column) for column in columns.values())
    table = {"user": list(range(rows)), "item": [7] * rows, "time": [NOON + row for row in range(rows)], **columns}
    pq.write_table(pa.table(table), folder / "log.parquet")


def text(folder: Path, times: Sequence[Any], users: Sequence[Any] | None = None, name: str = "log.csv") -> None:
    with (folder / name).open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["user", "item", "time"])
        writer.writerows([user, 7, time] for user, time in zip(users or range(len(times)), times, strict=True))


@pytest.mark.parametrize(
    ("times", "settings", "note"),
    [
        (pa.array([NOON, NOON + 3600, NOON + 7200]), {}, "seconds"),
        (pa.array([NOON, NOON + 3600, NOON + 7200], pa.int32()), {"time_unit": "s"}, "seconds"),
        (pa.array([float(NOON), NOON + 3600.0004, NOON + 7200.0]), {}, "seconds"),
        (pa.array([(NOON + 3600 * x) * 1000 for x in range(3)]), {}, "milliseconds"),
        (pa.array([(NOON + 3600 * x) * 10**6 + 999 for x in range(3)]), {}, "microseconds"),
        (pa.array([(NOON + 3600 * x) * 10**9 for x in range(3)]), {}, "nanoseconds"),
        (pa.array(MOMENTS, pa.timestamp("us", "UTC")), {}, "times with their zone"),
        (pa.array([x.replace(tzinfo=None) for x in MOMENTS], pa.timestamp("ns")), {}, "clock times of UTC"),
        (pa.array([x.isoformat() for x in MOMENTS]), {}, "ISO 8601"),
    ],
)
def test_times_of_any_unit(tmp_path: Path, times: pa.Array, settings: dict[str, Any], note: str) -> None:
    parquet(tmp_path, time=times)
    found, rows = cleaned(tmp_path, "log.parquet", **settings)
    assert [t for *_, t in rows] == [(NOON + 3600 * x) * 1000 for x in range(3)]
    assert note in found.times


@pytest.mark.parametrize(
    ("times", "settings"),
    [
        ([str(NOON + 3600 * x) for x in range(3)], {}),
        ([f"{(NOON + 3600 * x) * 1000}.0" for x in range(3)], {}),
        ([x.isoformat().replace("+00:00", "Z") for x in MOMENTS], {"time_zone": "Europe/Berlin"}),
        ([x.astimezone(BERLIN).isoformat(" ") for x in MOMENTS], {}),
        ([x.astimezone(BERLIN).strftime("%Y-%m-%d %H:%M:%S") for x in MOMENTS], {"time_zone": "Europe/Berlin"}),
        ([x.strftime("%d.%m.%Y %H:%M") for x in MOMENTS], {"time_format": "%d.%m.%Y %H:%M"}),
        ([x.astimezone(BERLIN).strftime("%d.%m.%y %H:%M %z") for x in MOMENTS], {"time_format": "%d.%m.%y %H:%M %z"}),
    ],
)
def test_times_in_text(tmp_path: Path, times: list[str], settings: dict[str, Any]) -> None:
    text(tmp_path, times)
    _, rows = cleaned(tmp_path, "log.csv", **settings)
    assert [t for *_, t in rows] == [(NOON + 3600 * x) * 1000 for x in range(3)]


def test_dates_are_midnights_of_the_zone(tmp_path: Path) -> None:
    parquet(tmp_path, time=pa.array([date(2023, 7, 15), date(2023, 11, 15)]))
    _, rows = cleaned(tmp_path, "log.parquet", time_zone="Europe/Berlin")
    summer, winter = datetime(2023, 7, 14, 22, tzinfo=UTC), datetime(2023, 11, 14, 23, tzinfo=UTC)
    assert [t for *_, t in rows] == [moment.timestamp() * 1000 for moment in (summer, winter)]


@pytest.mark.parametrize(
    ("users", "expected"),
    [
        (pa.array([3, -1, 2], pa.int8()), [3, -1, 2]),
        (pa.array([3.0, -1.0, 2.0**53]), [3, -1, 2**53]),
        (pa.array(["b", "", "03"]), ["b", "03"]),
        (pa.array(["1", "2", "3"]), ["1", "2", "3"]),
        (pa.array([1.0, 2.5, float("nan")]), [1]),
        (pa.array([2**63, 1, None], pa.uint64()), [1]),
    ],
)
def test_ids(tmp_path: Path, users: pa.Array, expected: list[Any]) -> None:
    parquet(tmp_path, user=users)
    found, rows = cleaned(tmp_path, "log.parquet", max_bad_rows=0.9)
    assert [user for user, *_ in rows] == expected
    assert sum(kind.rows for kind in found.bad) == 3 - len(expected)


@pytest.mark.parametrize(
    ("users", "expected"),
    [(["1", "-2", "3.0"], [1, -2, 3]), (["1", "x", "3"], ["1", "x", "3"]), (["01", "1", "2"], ["01", "1", "2"])],
)
def test_ids_in_text_are_integers_where_all_are(tmp_path: Path, users: list[str], expected: list[Any]) -> None:
    text(tmp_path, [NOON, NOON + 1, NOON + 2], users)
    assert [user for user, *_ in cleaned(tmp_path, "log.csv")[1]] == expected


def test_strings_in_histories_are_the_readers_hashes(tmp_path: Path) -> None:
    from embedding_store import hash_keys

    parquet(tmp_path, item=["b", "a", "ü"])
    config = LogConfig(log=LogFiles(files=("log.parquet",), user="user", item="item", time="time"))
    with engine(tmp_path, 0.5) as connection:
        clean(connection, config, read_log(connection, config, tmp_path), tmp_path)
        assert listed_ids(connection).tolist() == hash_keys(["a", "b", "ü"]).tolist()


def test_a_day_that_is_delivered_twice_counts_once(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        text(tmp_path, [NOON + 60, NOON, NOON + 60], [5, 6, 5], name)
    found, rows = cleaned(tmp_path, "*.csv")
    assert (found.read, found.duplicates, found.events) == (6, 4, 2)
    assert rows == [(6, 7, NOON * 1000), (5, 7, (NOON + 60) * 1000)]


def test_files_with_their_columns_in_another_order(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"user,item,time\n1,2,{NOON}\n")
    (tmp_path / "b.csv").write_text(f"time,user,item\n{NOON + 1},3,4\n")
    assert cleaned(tmp_path, "*.csv")[1] == [(1, 2, NOON * 1000), (3, 4, (NOON + 1) * 1000)]


def test_bad_rows_are_counted_named_and_left_out(tmp_path: Path) -> None:
    times: list[Any] = [NOON + row for row in range(3000)]
    times[7], times[9] = "", 5
    text(tmp_path, times)
    with (tmp_path / "log.csv").open("a") as file:
        file.write(f"8,7,{NOON},what is this\n")
    found, rows = cleaned(tmp_path, "log.csv", max_bad_rows=0.001)
    assert (found.read, found.events) == (3001, 2998)
    assert len(rows) == 2998
    assert {(kind.column, kind.problem.split(":")[0], kind.rows) for kind in found.bad} == {
        ("time", "the time is null", 1),
        ("time", "the time is before 1973-03-03", 1),
        ("", "the line is no row of this file", 1),
    }
    assert [(file, row, value) for file, row, _, value, _ in found.named[:2]] == [
        ("log.csv", 7, "None"),
        ("log.csv", 9, "5"),
    ]
    assert found.named[2][:2] == ("log.csv", 3002)
    (tmp_path / "work").rename(tmp_path / "before")
    with pytest.raises(DataError, match=r"log.csv: column 'time', row 7.*3 of 3,001 rows cannot be used.*lets 0 pass"):
        cleaned(tmp_path, "log.csv", max_bad_rows=0.0)
