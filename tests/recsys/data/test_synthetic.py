"""The synthetic market: no feature sees its own future, and what was planted is there to be found."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from recsys.data.convert import to_batch
from recsys.data.errors import DataError
from recsys.data.files import check_files, find_files
from recsys.data.hashing import scramble
from recsys.data.market import DAY_ZERO_MS
from recsys.data.schema import Schema, SchemaError
from recsys.data.synthetic import market_schema, market_split, prepare_synthetic
from recsys.dates import DAY_MS

SIZES = {"users": 150, "items": 100, "days": 6, "past_days": 0, "events_per_day": 700, "upstream_days": 2}
WINDOW_END = DAY_ZERO_MS + 2 * DAY_MS


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small prepared market."""
    root = tmp_path_factory.mktemp("data")
    prepare_synthetic(root, **SIZES)
    return root


def _events(root: Path) -> pa.Table:
    files = find_files(root, ["market/events/*/*/*.parquet"])
    return pa.concat_tables([pq.ParquetFile(file).read() for file in files])


def _entities(root: Path, kind: str) -> list[dict[str, Any]]:
    return pq.ParquetFile(root / "market" / kind / "part-0.parquet").read().to_pylist()


def _files(root: Path, kind: str) -> dict[str, pa.Table]:
    """Day -> what is told of it."""
    return {file.parent.name: pq.ParquetFile(file).read() for file in find_files(root, [f"market/{kind}/2024*/*"])}


class _Loop:
    """What was known so far, kept by a loop over events in time order."""

    def __init__(self) -> None:
        self.count: Counter[tuple[Any, ...]] = Counter()
        self.lists: defaultdict[tuple[Any, ...], list[tuple[int, int]]] = defaultdict(list)
        self.brands: defaultdict[int, list[int]] = defaultdict(list)

    def add(self, row: dict[str, Any]) -> None:
        user, item = row["user_id"], row["item_id"]
        self.count.update([("user_impressions", user), ("item_impressions", item), ("pair", user, item)])
        if row["click"]:
            self.count.update([("user_clicks", user), ("item_clicks", item)])
            self.lists["clicked_items", user].append((item, row["timestamp"]))
            self.brands[user].append(row["brand"])
        if row["conversion"]:
            self.count.update([("user_conversions", user)])
            self.lists["converted_items", user].append((item, row["timestamp"]))

    def check(self, row: dict[str, Any]) -> None:
        if "user_id" in row:
            for name, length in (("clicked_items", 30), ("converted_items", 20)):
                expected = self.lists[name, row["user_id"]][-length:]
                assert list(zip(row[name], row[f"{name}_time"], strict=True)) == expected
            assert row["clicked_brands"] == self.brands[row["user_id"]][-100:]
            assert row["user_impressions"] == self.count["user_impressions", row["user_id"]]
            assert row["user_clicks"] == self.count["user_clicks", row["user_id"]]
            assert row["user_conversions"] == self.count["user_conversions", row["user_id"]]
        if "item_id" in row:
            assert row["item_impressions"] == self.count["item_impressions", row["item_id"]]
            assert row["item_clicks"] == self.count["item_clicks", row["item_id"]]
        if "user_item_impressions" in row:
            assert row["user_item_impressions"] == self.count["pair", row["user_id"], row["item_id"]]


def test_features_are_those_of_a_loop_over_strictly_earlier_events(root: Path) -> None:
    rows = _events(root).to_pylist()
    assert len(rows) == SIZES["days"] * SIZES["events_per_day"]
    moments: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        moments[row["timestamp"]].append(row)
    assert max(len(moment) for moment in moments.values()) > 1  # a request's rows must not see each other
    known, entities_checked = _Loop(), False
    for time in sorted(moments):
        if time >= WINDOW_END and not entities_checked:
            entities_checked = True
            for entity in _entities(root, "users") + _entities(root, "items"):
                assert entity["timestamp"] == WINDOW_END
                known.check(entity)
        for row in moments[time]:
            known.check(row)
        for row in sorted(moments[time], key=lambda row: row["position"]):
            known.add(row)
    assert entities_checked
    assert any(len(row["clicked_items"]) == 30 < len(row["clicked_brands"]) for row in rows)


def test_the_days_before_the_first_are_told_of_by_histories_and_counts_alone(root: Path, tmp_path: Path) -> None:
    prepare_synthetic(tmp_path, **{**SIZES, "past_days": 5})
    events = _events(tmp_path)
    assert len(events) == len(_events(root))
    assert pc.min(events["timestamp"]).as_py() >= DAY_ZERO_MS
    morning = events.filter(pc.less(events["timestamp"], DAY_ZERO_MS + DAY_MS // 4))
    clicked = pc.list_flatten(morning["clicked_items_time"]).to_numpy()
    assert (clicked < DAY_ZERO_MS).mean() > 0.8
    assert clicked.min() >= DAY_ZERO_MS - 5 * DAY_MS
    for name in ("user_impressions", "item_impressions", "user_clicks", "item_clicks"):
        assert pc.mean(morning[name]).as_py() > 3
    listed = pc.list_value_length(morning["clicked_brands"]).to_numpy()
    assert np.array_equal(listed, np.minimum(morning["user_clicks"].to_numpy(), 100))


def test_entity_rows_hold_who_was_known_by_the_windows_end(root: Path) -> None:
    events = _events(root)
    before = events.filter(pc.less(events["timestamp"], WINDOW_END))
    after = events.filter(pc.greater_equal(events["timestamp"], WINDOW_END))
    for kind in ("user", "item"):
        known = [row[f"{kind}_id"] for row in _entities(root, f"{kind}s")]
        assert len(known) == len(set(known))
        assert not set(after[f"{kind}_id"].to_pylist()) <= set(known)  # new ones arrived
    assert set(before["user_id"].to_pylist()) <= {row["user_id"] for row in _entities(root, "users")}
    assert len(known) == SIZES["items"]  # those on sale
    next_day = after.filter(pc.less(after["timestamp"], WINDOW_END + DAY_MS))
    assert set(next_day["item_id"].to_pylist()) <= set(known)


def test_an_item_is_listed_on_the_day_before_its_first_event(root: Path) -> None:
    """Once: in the rows of the window's end, or in those of a later day, with what was known of it then: nothing."""
    own = [feature.name for feature in market_schema().owned_by("item")]
    events = _events(root)
    events = events.filter(pc.greater_equal(events["timestamp"], WINDOW_END))
    first_seen: dict[int, int] = {}
    for item, time in zip(events["item_id"].to_pylist(), events["timestamp"].to_pylist(), strict=True):
        first_seen[item] = min(time, first_seen.get(item, time))
    known = {row["item_id"] for row in _entities(root, "items")}
    days = _files(root, "items")
    assert list(days) == ["2024-01-03", "2024-01-04", "2024-01-05", "2024-01-06"]
    for day, table in days.items():
        midnight = int(np.datetime64(day, "ms").astype(np.int64)) + DAY_MS
        assert table.column_names == ["timestamp", *own]
        assert set(table["timestamp"].to_pylist()) == {midnight - 1}
        for name in ("item_impressions", "item_clicks", "item_age_days"):
            assert set(table[name].to_pylist()) == {0.0}
        listed = table["item_id"].to_pylist()
        assert known.isdisjoint(listed)
        assert len(listed) == len(set(listed))
        assert all(midnight <= first_seen[item] for item in listed if item in first_seen)
        known.update(listed)
    assert set(first_seen) <= known
    late = [day for day, table in days.items() if not set(table["item_id"].to_pylist()) & set(first_seen)]
    assert "2024-01-06" in late  # what would be on sale after the last day


def test_the_oracle_lists_items_that_users_click(root: Path) -> None:
    """For all who click on a day, in an order that their clicks follow."""
    events = _events(root)
    for day, table in _files(root, "oracle").items():
        midnight = int(np.datetime64(day, "ms").astype(np.int64))
        time = events["timestamp"].to_numpy()
        clicked = events.filter(pa.array((time >= midnight) & (time < midnight + DAY_MS))).filter(
            pc.field("click") == 1
        )
        lists = dict(zip(table["user_id"].to_pylist(), table["items"].to_pylist(), strict=True))
        assert set(lists) == set(clicked["user_id"].to_pylist())
        assert all(len(items) == len(set(items)) == 100 for items in lists.values())  # as many as are on sale
        pairs = zip(clicked["user_id"].to_pylist(), clicked["item_id"].to_pylist(), strict=True)
        places = [lists[user].index(item) for user, item in pairs]
        assert np.mean(np.array(places) < 20) > 0.4  # by chance 0.2


def test_files_fit_the_schema_and_convert_to_batches(root: Path) -> None:
    schema = Schema.load(root / "market/schema.toml")
    assert schema == market_schema()
    files = find_files(root, ["market/events/*/*/*.parquet"])
    assert check_files(files, schema) == SIZES["days"] * SIZES["events_per_day"]
    assert files[1].relative_to(root).as_posix() == "market/events/2024-01-01/surface=1/part-0.parquet"
    for file in files:
        table = pq.ParquetFile(file).read()
        assert set(schema.columns()) | set(schema.outcomes) == set(table.column_names)
        assert table["surface"].unique().to_pylist() == [int(file.parent.name[-1])]
        times = table["timestamp"].to_numpy()
        assert np.all(np.diff(times) >= 0)
        assert set((times - DAY_ZERO_MS) // DAY_MS) == {int(file.parent.parent.name[-2:]) - 1}
        batch = to_batch(table, schema)
        assert len(batch) == table.num_rows
        assert batch.label_mask[:, 1].tolist() == (batch.labels[:, 0] == 1).tolist()
    for kind in ("user", "item"):
        own = schema.select(features=tuple(f.name for f in schema.owned_by(kind)), labels=())
        for file in (root / f"market/{kind}s").rglob("*.parquet"):
            assert list(to_batch(pq.ParquetFile(file).read(), own).dense) == [kind]


def test_oracle_is_refused_as_a_feature() -> None:
    schema = market_schema()
    for outcome in ("oracle_click", "oracle_conversion"):
        leak = replace(schema.feature("price"), name=outcome)
        with pytest.raises(SchemaError, match=f"{outcome}.*known only after the event"):
            replace(schema, features=(*schema.features, leak))


def test_ids_are_like_real_ones(root: Path) -> None:
    ids = _events(root)["item_id"].to_numpy()
    assert ids.min() < -(2**31) < 2**31 < ids.max()
    index = np.arange(100_000)
    both = np.concatenate([scramble(index, 1 << 40), scramble(index, 1 << 41)])
    assert both.dtype == np.int64
    assert len(np.unique(both)) == 200_000


def test_equal_seeds_give_equal_bytes(root: Path, tmp_path: Path) -> None:
    prepare_synthetic(tmp_path / "same", **SIZES)
    prepare_synthetic(tmp_path / "other", **SIZES, seed=1)
    digests = [_digests(folder / "market") for folder in (root, tmp_path / "same", tmp_path / "other")]
    assert digests[0] == digests[1]
    assert digests[0].keys() == digests[2].keys()
    assert all(digests[0][name] != digests[2][name] for name in digests[0] if name.endswith(".parquet"))


def _digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_split_shares_out_the_days(root: Path) -> None:
    split = market_split(days=6, upstream_days=2)
    parts = [find_files(root, patterns) for patterns in (split.upstream, split.train, split.validation, split.test)]
    dates = [sorted({file.parent.parent.name[-2:] for file in part}) for part in parts]
    assert dates == [["01", "02"], ["03"], ["04"], ["05", "06"]]
    fragment = market_split(days=6, upstream_days=2, surface=1)
    assert fragment.upstream == split.upstream
    assert {file.parent.name for file in find_files(root, fragment.test)} == {"surface=1"}
    longer = market_split(days=9, upstream_days=2)
    assert [len(part) for part in (longer.train, longer.validation, longer.test)] == [4, 1, 2]
    with pytest.raises(ValueError, match="days is 5; use at least upstream_days"):
        market_split(days=5, upstream_days=2)
    with pytest.raises(ValueError, match="surface is 2"):
        market_split(surface=2)


def test_bad_sizes_are_named(tmp_path: Path) -> None:
    for name, value in (
        ("users", 99),
        ("items", 0),
        ("days", 0),
        ("past_days", -1),
        ("events_per_day", 0),
        ("seed", -1),
    ):
        with pytest.raises(ValueError, match=f"{name} is {value}; use"):
            prepare_synthetic(tmp_path, **{**SIZES, name: value})
    with pytest.raises(ValueError, match="upstream_days is 9; use at most days = 6"):
        prepare_synthetic(tmp_path, **{**SIZES, "upstream_days": 9})
    (tmp_path / "market").mkdir()
    (tmp_path / "market/mine.txt").write_text("keep me")
    with pytest.raises(DataError, match="no prepared source"):
        prepare_synthetic(tmp_path, **SIZES)
    assert [path.name for path in tmp_path.rglob("*")] == ["market", "mine.txt"]
