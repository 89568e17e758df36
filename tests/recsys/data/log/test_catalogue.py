"""Rows of the entities that a table has and the upstreams' events do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.checks import check_run
from recsys.config import LogConfig, StudyConfig, from_dict
from recsys.data.log.prepare import prepare_log
from recsys.data.schema import Schema, entity_schema
from recsys.data.stream import EventStream

START = 1_709_251_200_000
DAY = 86_400_000
LATE = "i39"
"""An item whose first event comes when the upstreams have learned."""


def prepare(folder: Path, items: dict[str, Any], **changes: Any) -> tuple[list[dict[str, Any]], StudyConfig]:
    """Rows of `items/part-0.parquet` that come of a log of twenty days and 31 items, and the study."""
    rng = np.random.default_rng(0)
    times, what = np.sort(START + rng.integers(0, 20 * DAY, 1500)), rng.integers(0, 30, 1500)
    log = {"who": rng.integers(0, 9, 1500), "what": [f"i{x}" for x in what], "at": times, "price": what + 0.5}
    log["what"][-1] = LATE
    pq.write_table(pa.table(log), folder / "log.parquet")
    pq.write_table(pa.table(items), folder / "items.parquet")
    document = {
        "log": {"files": ["log.parquet"], "user": "who", "item": "what", "time": "at", "price": "price"},
        "items": {"files": ["items.parquet"], "id": "sku", "category": "kind"},
        "features": {"last": 2, "windows": ["24h"]},
    }
    prepare_log(from_dict(LogConfig, document | changes), folder, folder / "out")
    path = folder / "out/items/part-0.parquet"
    return pq.ParquetFile(path).read().to_pylist() if path.is_file() else [], StudyConfig.load(
        folder / "out/study.toml"
    )


def table(others: list[str], kind: list[str]) -> dict[str, Any]:
    known = [f"i{x}" for x in range(30)]
    return {"sku": known + others, "kind": ["odd"] * 30 + kind, "weight": np.arange(30.0 + len(kind))}


def test_items_without_an_event_have_features_at_the_end_of_the_upstreams_events(tmp_path: Path) -> None:
    rows, study = prepare(tmp_path, table([LATE, "new", "newer", "new"], ["odd", "odd", "rare", "again"]))
    assert [row["item_id"] for row in rows] == [LATE, "new", "newer"]
    assert [row["weight"] for row in rows] == [30, 31, 32]
    assert [row["kind"] for row in rows] == ["odd", "odd", "rare"]
    counts = [name for name in rows[0] if name.startswith("item_") and name not in ("item_id", "item_price")]
    assert len(counts) > 2
    assert {row[name] for row in rows for name in counts} == {0}
    assert {row["item_price"] for row in rows} == {None}
    events = [
        row
        for day in sorted((tmp_path / "out/events").iterdir())
        for row in pq.ParquetFile(day / "part-0.parquet").read().to_pylist()
    ]
    known = [row for row in events if row["timestamp"] <= rows[0]["timestamp"]]
    assert len(known) == pytest.approx(len(events) / 2, rel=0.1)
    assert LATE not in {row["item_id"] for row in known}
    counted = [name for name in rows[0] if name.startswith("category_")]
    assert counted
    newest = [row for row in known if row["kind"] == "odd"][-1]
    assert [[row[name] for name in counted] for row in rows] == [[newest[name] for name in counted]] * 2 + [
        [0] * len(counted)
    ]
    assert study.upstreams[0].source.items == ("items/*.parquet",)
    assert study.upstreams[0].source.users == ()


def test_they_are_read_as_entity_rows(tmp_path: Path) -> None:
    """What an upstream reads, and what `recsys check` says of the study."""
    rows, study = prepare(tmp_path, table([f"new{x}" for x in range(100)], ["odd", "rare"] * 50))
    schema = entity_schema(Schema.load(tmp_path / "out/schema.toml"), "item")
    stream = EventStream([tmp_path / "out/items/part-0.parquet"], schema, batch_size=64, drop_last=False)
    assert sum(len(batch.item_ids) for batch in stream) == len(rows) == 100
    check_run(study, tmp_path / "out")


def test_a_table_without_others_makes_no_file(tmp_path: Path) -> None:
    rows, study = prepare(tmp_path, table([], []))
    assert (rows, study.upstreams[0].source.items) == ([], ())
