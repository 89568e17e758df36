"""Tables whose sizes a schema leaves out."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.quarantine import Quarantine
from recsys.data.schema import Feature, Schema
from recsys.data.sizes import unsized, with_tables
from recsys.data.tables import count_tables
from tests.recsys.refresh.example import SCHEMA

IDS = st.one_of(st.integers(0, 12), st.integers(-(2**63), 2**63 - 1))
ROWS = st.lists(st.tuples(IDS, st.lists(IDS, max_size=4) | st.none()), min_size=1, max_size=20)
SHARED = Schema(
    features=(
        Feature(name="bought", owner="user", kind="id", table="goods"),
        Feature(name="seen", owner="user", kind="sequence", table="goods", max_length=3),
        Feature(name="hour", owner="context", kind="id", rows=24),
    )
)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS)
def test_a_table_has_twice_the_ids_that_its_features_read(rows: list[tuple[int, list[int] | None]]) -> None:
    read = {row[0] for row in rows} | {x for row in rows for x in (row[1] or [])[-3:]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.parquet")
        ids = {name: pa.array(range(len(rows)), pa.int64()) for name in ("timestamp", "user_id", "item_id")}
        lists = pa.array([row[1] for row in rows], pa.list_(pa.int64()))
        bought = pa.array([row[0] for row in rows], pa.int64())
        pq.write_table(pa.table({**ids, "bought": bought, "seen": lists, "hour": ids["user_id"]}), path)
        tables = count_tables([path], SHARED)
    assert set(tables) == {"user.goods"}
    assert tables["user.goods"] >= 2 * len(read)
    if min(read) >= 0 and max(read) < 4 * len(read):
        assert tables["user.goods"] == max(2 * len(read), max(read) + 1)
    else:
        assert tables["user.goods"] == 2 * len(read)


def test_what_is_quarantined_is_not_counted_and_what_has_a_size_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    columns = {name: [5, 6, 2**40] for name in ("timestamp", "user_id", "item_id", "bought")}
    pq.write_table(pa.table({**columns, "seen": [[], [], []], "hour": [0, 0, 0]}), path)
    assert count_tables([path], SHARED, Quarantine({path: np.array([2])})) == {"user.goods": 7}
    assert count_tables([tmp_path / "not there"], SCHEMA) == {}


def test_sizes_go_where_there_are_none() -> None:
    whole = with_tables(SHARED, {"user.goods": 9, "context.hour": 1})
    assert [feature.rows for feature in whole.features] == [9, 9, 24]
    assert not unsized(whole)
    assert with_tables(SCHEMA, {}) == SCHEMA
    with pytest.raises(KeyError, match=r"user\.seen"):
        with_tables(replace(SHARED, features=(Feature(name="seen", owner="user", kind="ids"),)), {"user.goods": 9})
