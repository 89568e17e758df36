"""Deskdrop as it is prepared, from a tiny made-up file and, where it is there, from the real one."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.checks import check_daily, check_run
from recsys.data.deskdrop import BRAZIL_MS, HOURS_AROUND, LONGEST, NEGATIVES, prepare_deskdrop
from recsys.data.errors import DataError
from recsys.data.files import check_files, find_files
from recsys.data.schema import Schema
from recsys.dates import DAY_MS, HOUR_MS
from recsys.recipes import deskdrop, deskdrop_daily

SOURCE = Path(__file__).parents[3] / "../shared/data/deskdrop"
START = 1_460_000_000
"""Seconds; 7 April 2016."""


def _raw(seed: int = 0, rows: int = 900) -> pa.Table:
    """Sessions of people who view some articles, some again, and like a few of them, before or after the view."""
    rng = np.random.default_rng(seed)
    person, article = rng.integers(25, size=rows), np.minimum(rng.geometric(0.08, rows), 40)
    time = START + np.sort(rng.integers(4 * 86_400, size=rows))
    kind = rng.choice(["VIEW", "LIKE", "BOOKMARK", "COMMENT CREATED"], p=[0.7, 0.2, 0.06, 0.04], size=rows)
    return pa.table(
        {
            "timestamp": time,
            "eventType": pa.array(kind).dictionary_encode(),
            "contentId": (article - 20) * (2**58 - 1),
            "personId": (person - 12) * (2**59 - 1),
            "sessionId": person * 1000 + time // 40_000,
            "userCountry": pa.array(np.where(person % 5 == 0, "", "BR")).dictionary_encode(),
        }
    )


def _prepare(folder: Path, raw: pa.Table) -> list[dict[str, Any]]:
    (folder / "raw").mkdir(parents=True)
    pq.write_table(raw, folder / "raw/events.parquet")
    prepare_deskdrop(folder / "raw", folder)
    return _rows(folder)


def _rows(folder: Path) -> list[dict[str, Any]]:
    files = find_files(folder, ["views/events/*/*.parquet"])
    return pa.concat_tables([pq.ParquetFile(file).read() for file in files]).to_pylist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared from the made-up file."""
    folder = tmp_path_factory.mktemp("deskdrop")
    _prepare(folder, _raw())
    return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared from the real file."""
    if not SOURCE.is_dir():
        pytest.skip(f"no Deskdrop in {SOURCE}")
    folder = tmp_path_factory.mktemp("deskdrop-real")
    prepare_deskdrop(SOURCE, folder)
    return folder


def _first(raw: list[dict[str, Any]], kind: str) -> dict[tuple[int, int], dict[str, Any]]:
    """User and article -> the first event of that kind."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for row in raw:
        if row["eventType"] == kind:
            found.setdefault((row["personId"], row["contentId"]), row)
    return found


def test_views_are_first_views_and_likes_are_of_their_session(folder: Path) -> None:
    raw = _raw().to_pylist()
    first = _first(raw, "VIEW")
    rows = [row for row in _rows(folder) if row["view"]]
    found = {(row["user_id"], row["item_id"]): row for row in rows}
    assert len(found) == len(rows) < sum(row["eventType"] == "VIEW" for row in raw)
    assert {pair: row["timestamp"] for pair, row in found.items()} == {
        pair: row["timestamp"] * 1000 for pair, row in first.items()
    }
    for pair, view in first.items():
        liked = any(
            row["eventType"] == "LIKE" and row["timestamp"] >= view["timestamp"]
            for row in raw
            if (row["personId"], row["contentId"], row["sessionId"]) == (*pair, view["sessionId"])
        )
        assert found[pair]["like"] == liked
        assert found[pair]["country"] == (view["userCountry"] or None)
    assert 0 < sum(row["like"] for row in rows) < len(rows)
    assert any(row["country"] is None for row in rows)


def test_others_viewed_what_was_not_viewed_in_the_hours_around(folder: Path) -> None:
    first = _first(_raw().to_pylist(), "VIEW")
    hours = defaultdict(set)
    for (user, article), view in first.items():
        hours[article].add((user, view["timestamp"] // 3600))
    rows = _rows(folder)
    beside = Counter((row["user_id"], row["timestamp"]) for row in rows if not row["view"])
    views = Counter((row["user_id"], row["timestamp"]) for row in rows if row["view"])
    assert set(beside) <= set(views)
    for row in rows:
        if row["view"]:
            continue
        assert row["like"] == 0
        assert (row["user_id"], row["item_id"]) not in first
        now = row["timestamp"] // HOUR_MS
        assert any(abs(hour - now) <= HOURS_AROUND for _, hour in hours[row["item_id"]])
    for moment, many in views.items():
        user, now = moment[0], moment[1] // HOUR_MS
        pool = {a for a, seen in hours.items() if any(abs(hour - now) <= HOURS_AROUND for _, hour in seen)}
        pool = {article for article in pool if (user, article) not in first}
        assert beside[moment] == many * min(NEGATIVES, len(pool))
    assert any(beside[moment] == NEGATIVES for moment in views)
    once = [(*moment, row["item_id"]) for row in rows if views[moment := (row["user_id"], row["timestamp"])] == 1]
    assert len(once) == len(set(once))


def test_features_are_those_of_a_loop_over_strictly_earlier_events(folder: Path) -> None:
    raw = _raw().to_pylist()
    views = sorted(((v["timestamp"] * 1000, *pair) for pair, v in _first(raw, "VIEW").items()), key=lambda x: x[0])
    likes = sorted(((v["timestamp"] * 1000, *pair) for pair, v in _first(raw, "LIKE").items()), key=lambda x: x[0])
    for row in _rows(folder):
        time, user, article = row["timestamp"], row["user_id"], row["item_id"]
        read, liked = ([x for x in events if x[0] < time] for events in (views, likes))
        mine = [(a, t) for t, u, a in read if u == user]
        assert list(zip(row["viewed_articles"], row["viewed_articles_time"], strict=True)) == mine[-LONGEST:]
        assert row["liked_articles"] == [a for _, u, a in liked if u == user][-LONGEST:]
        assert row["user_views"] == len(mine)
        assert row["user_likes"] == sum(u == user for _, u, _ in liked)
        times = [t for t, _, a in read if a == article]
        assert row["article_views"] == len(times)
        assert row["article_likes"] == sum(a == article for _, _, a in liked)
        for hours in (3, 24, 48):
            assert row[f"article_views_{hours}h"] == sum(t >= time - hours * HOUR_MS for t in times)
        assert row["article_age_hours"] == pytest.approx((time - min(times, default=time)) / HOUR_MS, rel=1e-5)
        assert row["hour"] == (time + BRAZIL_MS) // HOUR_MS % 24


def test_days_are_brazils_and_files_fit_the_schema(folder: Path) -> None:
    schema = Schema.load(folder / "views/schema.toml")
    files = find_files(folder, ["views/events/*/*.parquet"])
    check_files(files, schema)
    for file in files:
        table = pq.ParquetFile(file).read()
        assert set(table.column_names) == set(schema.columns())
        time = table["timestamp"].to_numpy()
        assert (np.diff(time) >= 0).all()
        day = np.datetime64(file.parent.name, "ms").astype(np.int64)
        assert ((time + BRAZIL_MS) // DAY_MS == day // DAY_MS).all()
    assert len(files) == 5


def test_equal_files_give_equal_rows(folder: Path, tmp_path: Path) -> None:
    assert _prepare(tmp_path, _raw()) == _rows(folder)


def test_bad_files_are_named(tmp_path: Path) -> None:
    raw = _raw(rows=50)
    with pytest.raises(DataError, match=r"events.parquet: no such file. Deskdrop needs"):
        prepare_deskdrop(tmp_path, tmp_path / "out")
    bad = {
        "lacks the columns personId, userCountry": raw.drop_columns(["personId", "userCountry"]),
        r"latest timestamp is 146\d{10}; Deskdrop's are seconds": raw.set_column(
            0, "timestamp", pa.array(raw["timestamp"].to_numpy() * 1000)
        ),
        "hold no row of eventType VIEW": raw.set_column(1, "eventType", pa.array(["LIKE"] * 50)),
    }
    for number, (message, table) in enumerate(bad.items()):
        with pytest.raises(DataError, match=message):
            _prepare(tmp_path / str(number), table)
        assert not (tmp_path / str(number) / "views").exists()
    (tmp_path / "events.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(DataError, match="cannot be read"):
        prepare_deskdrop(tmp_path, tmp_path / "out")


def test_the_real_log(real: Path) -> None:
    """Its counts, and that both recipes find what they need."""
    columns = ["timestamp", "view", "like"]
    files = find_files(real, ["views/events/*/*.parquet"])
    table = pa.concat_tables([pq.ParquetFile(file).read(columns) for file in files])
    assert table["view"].to_numpy().sum() == 40_241  # pairs of a user and an article among 61,086 views
    assert (table["view"].to_numpy() == 0).sum() / 40_241 == pytest.approx(NEGATIVES, abs=0.1)
    assert table["like"].to_numpy().sum() == 5030
    config = deskdrop()
    check_run(config, real)
    assert check_daily(deskdrop_daily(), real) == []
    test = pa.concat_tables([pq.ParquetFile(file).read(columns) for file in find_files(real, config.rankers.test)])
    assert test["like"].to_numpy().sum() > 250
