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
from sklearn.metrics import roc_auc_score

from recsys.data.convert import to_batch
from recsys.data.errors import DataError
from recsys.data.files import check_files, find_files
from recsys.data.hashing import scramble
from recsys.data.market import DAY_ZERO_MS, Log, Population, populate, simulate
from recsys.data.schema import Schema, SchemaError
from recsys.data.synthetic import market_schema, market_split, prepare_synthetic
from recsys.dates import DAY_MS

SIZES = {"users": 150, "items": 100, "days": 6, "events_per_day": 700, "upstream_days": 2}
WINDOW_END = DAY_ZERO_MS + 2 * DAY_MS


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small prepared market."""
    root = tmp_path_factory.mktemp("data")
    prepare_synthetic(root, **SIZES)
    return root


@pytest.fixture(scope="module")
def market() -> tuple[Population, Log]:
    """A market large enough for figures."""
    rng = np.random.default_rng(1)
    people = populate(1000, 400, 8, rng)
    return people, Log.concatenate(list(simulate(people, 8, 5000, rng)))


def _events(root: Path) -> pa.Table:
    files = find_files(root, ["market/events/*/*/*.parquet"])
    return pa.concat_tables([pq.ParquetFile(file).read() for file in files])


def _entities(root: Path, kind: str) -> list[dict[str, Any]]:
    return pq.read_table(root / "market" / kind).to_pylist()


class _Loop:
    """What was known so far, kept by a loop over events in time order."""

    def __init__(self) -> None:
        self.count: Counter[tuple[Any, ...]] = Counter()
        self.lists: defaultdict[tuple[Any, ...], list[tuple[int, int]]] = defaultdict(list)

    def add(self, row: dict[str, Any]) -> None:
        user, item = row["user_id"], row["item_id"]
        self.count.update([("user_impressions", user), ("item_impressions", item)])
        if row["click"]:
            self.count.update([("user_clicks", user), ("item_clicks", item)])
            self.count.update([("category", user, row["category"]), ("brand", user, row["brand"])])
            self.lists["clicked_items", user].append((item, row["timestamp"]))
        if row["conversion"]:
            self.lists["converted_items", user].append((item, row["timestamp"]))

    def check(self, row: dict[str, Any]) -> None:
        if "user_id" in row:
            for name, length in (("clicked_items", 30), ("converted_items", 20)):
                expected = self.lists[name, row["user_id"]][-length:]
                assert list(zip(row[name], row[f"{name}_time"], strict=True)) == expected
            assert row["user_impressions"] == self.count["user_impressions", row["user_id"]]
            assert row["user_clicks"] == self.count["user_clicks", row["user_id"]]
        if "item_id" in row:
            assert row["item_impressions"] == self.count["item_impressions", row["item_id"]]
            assert row["item_clicks"] == self.count["item_clicks", row["item_id"]]
        if "user_category_clicks" in row:
            assert row["user_category_clicks"] == self.count["category", row["user_id"], row["category"]]
            assert row["user_brand_clicks"] == self.count["brand", row["user_id"], row["brand"]]


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
    assert any(len(row["clicked_items"]) == 30 for row in rows)


def test_entity_rows_hold_who_was_known_by_the_windows_end(root: Path) -> None:
    events = _events(root)
    before = events.filter(pc.less(events["timestamp"], WINDOW_END))
    after = events.filter(pc.greater_equal(events["timestamp"], WINDOW_END))
    for kind in ("user", "item"):
        known = [row[f"{kind}_id"] for row in _entities(root, f"{kind}s")]
        assert len(known) == len(set(known))
        assert set(before[f"{kind}_id"].to_pylist()) <= set(known)
        assert not set(after[f"{kind}_id"].to_pylist()) <= set(known)  # new ones arrived


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
        table = pq.read_table(root / f"market/{kind}s")
        assert list(to_batch(table, own).dense) == [kind]


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


def test_rates_and_the_oracle(market: tuple[Population, Log]) -> None:
    _, log = market
    clicked = log.click
    assert 0.15 < clicked.mean() < 0.35
    assert 0.18 < log.conversion[clicked].mean() < 0.35
    assert not log.conversion[~clicked].any()
    assert log.oracle_click.mean() == pytest.approx(clicked.mean(), abs=0.01)
    assert log.oracle_conversion[clicked].mean() == pytest.approx(log.conversion[clicked].mean(), abs=0.02)
    oracle = roc_auc_score(clicked, log.oracle_click)
    popularity = roc_auc_score(clicked, np.bincount(log.item)[log.item])
    item_rate = np.bincount(log.item, clicked) / np.maximum(np.bincount(log.item), 1)
    assert oracle > 0.78
    assert popularity < 0.60
    assert roc_auc_score(clicked, item_rate[log.item]) < oracle - 0.08  # though it has seen the very clicks
    assert roc_auc_score(log.conversion[clicked], log.oracle_conversion[clicked]) > 0.78
    assert roc_auc_score(log.conversion[clicked], log.oracle_click[clicked]) < 0.65  # clicks tell little of needs


def test_activity_and_popularity_have_long_tails(market: tuple[Population, Log]) -> None:
    for entity in market[1].user, market[1].item:
        events = np.sort(np.bincount(entity))[::-1]
        assert events[: len(events) // 10].sum() > 0.25 * events.sum()
        assert np.median(events) < 0.8 * events.mean()


def test_users_and_items_come_and_go(market: tuple[Population, Log]) -> None:
    people, log = market
    day = (log.time - DAY_ZERO_MS) // DAY_MS
    for entity, days in ((log.user, people.user_days), (log.item, people.item_days)):
        assert np.all((days[entity, 0] <= day) & (day < days[entity, 1]))
        seen = np.unique(entity)
        assert 0.1 < (days[seen, 0] > 0).mean() < 0.3
        assert 0.05 < (days[seen, 1] < 8).mean() < 0.25


def test_users_drift(market: tuple[Population, Log]) -> None:
    """The true conversion logit of one user, item and surface is constant within a day and wanders from day to day."""
    _, log = market
    day = (log.time - DAY_ZERO_MS) // DAY_MS
    logit = np.log(log.oracle_conversion / (1 - log.oracle_conversion))
    meeting = (log.user * 1000 + log.item) * 2 + log.surface
    order = np.lexsort((day, meeting))
    pairs = meeting[order][1:] == meeting[order][:-1]
    gap = np.diff(day[order])[pairs]
    moved = np.abs(np.diff(logit[order]))[pairs]
    assert moved[gap == 0].max() < 1e-9
    assert 0 < moved[gap == 1].mean() < moved[gap >= 4].mean() < 0.5 * logit.std()


def test_drift_is_how_far_users_move() -> None:
    """From the first day to the last, the same users, items and surfaces meet with other probabilities."""
    moved = []
    for drift in (0.0, 0.1, 0.4):
        rng = np.random.default_rng(3)
        people = populate(100, 100, 6, rng)
        first, *_, last = simulate(people, 6, 3000, rng, drift)
        meetings = [
            dict(zip(zip(log.user, log.item, log.surface, strict=True), log.oracle_conversion, strict=True))
            for log in (first, last)
        ]
        shared = meetings[0].keys() & meetings[1].keys()
        assert len(shared) > 20
        moved.append(np.mean([abs(meetings[0][key] - meetings[1][key]) for key in shared]))
    assert moved[0] < 1e-9 < moved[1] < moved[2]


def test_split_shares_out_the_days(root: Path) -> None:
    split = market_split(days=6, upstream_days=2)
    parts = [find_files(root, patterns) for patterns in (split.upstream, split.train, split.validation, split.test)]
    dates = [sorted({file.parent.parent.name[-2:] for file in part}) for part in parts]
    assert dates == [["01", "02"], ["03"], ["04"], ["05", "06"]]
    fragment = market_split(days=6, upstream_days=2, surface=1)
    assert fragment.upstream == split.upstream
    assert {file.parent.name for file in find_files(root, fragment.test)} == {"surface=1"}
    with pytest.raises(ValueError, match="days is 5; use at least upstream_days"):
        market_split(days=5, upstream_days=2)
    with pytest.raises(ValueError, match="surface is 2"):
        market_split(surface=2)


def test_bad_sizes_are_named(tmp_path: Path) -> None:
    for name, value in (("users", 99), ("items", 0), ("days", 0), ("events_per_day", 0), ("seed", -1)):
        with pytest.raises(ValueError, match=f"{name} is {value}; use"):
            prepare_synthetic(tmp_path, **{**SIZES, name: value})
    with pytest.raises(ValueError, match="upstream_days is 9; use at most days = 6"):
        prepare_synthetic(tmp_path, **{**SIZES, "upstream_days": 9})
    (tmp_path / "market").mkdir()
    (tmp_path / "market/mine.txt").write_text("keep me")
    with pytest.raises(DataError, match="no prepared source"):
        prepare_synthetic(tmp_path, **SIZES)
    assert [path.name for path in tmp_path.rglob("*")] == ["market", "mine.txt"]
