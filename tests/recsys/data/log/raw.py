"""Raw logs for the tests, what is prepared of them, and the same rows once more by loops over plain Python."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.config import LogConfig, from_dict
from recsys.config.log import SESSION
from recsys.data.log.cleaning import clean
from recsys.data.log.columns import columns
from recsys.data.log.engine import engine, number
from recsys.data.log.features import make_features
from recsys.data.log.negatives import Drawn, add_negatives
from recsys.data.log.prepare import describe, listed_ids
from recsys.data.log.reading import read_log
from recsys.data.log.rows import make_rows
from recsys.data.log.splits import Part
from recsys.data.log.writing import write_events
from recsys.dates import HOUR_MS, span_ms

START = 1_700_000_000_000
Row = dict[str, Any]

DOCUMENT: dict[str, Any] = {
    "log": {
        "files": ["log.parquet"],
        "user": "who",
        "item": "what",
        "time": "at",
        "action": "did",
        "session": "visit",
        "price": "price",
        "context": ["country"],
        "ignore": ["noise"],
    },
    "actions": {
        "view": {},
        "like": {"value": "LIKE", "given": "view", "within": "session"},
        "buy": {"given": "like", "within": "2h"},
    },
    "negatives": {"ratio": 2, "hours": 2},
    "features": {"last": 3, "windows": ["1h", "24h"]},
    "items": {"features": ["kind"], "category": "kind"},
}
"""A config that asks for everything."""


def random_log(rows: int, seed: int = 0, *, hours: int = 60) -> pa.Table:
    """Few users and items, ties in time, rows that are there twice, nulls where they may be."""
    rng = np.random.default_rng(seed)
    who, at = rng.integers(0, 6, rows), rng.integers(0, 4 * hours, rows) * (HOUR_MS // 4)
    table = pa.table(
        {
            "who": who * 7 - 3,
            "what": rng.integers(0, 8, rows) * (2**60 // 8) - 2**59,
            "at": START + at,
            "did": rng.choice(["view", "LIKE", "buy", "noise"], rows, p=[0.6, 0.2, 0.15, 0.05]),
            "visit": pa.array([None if x % 5 == 0 else f"s{x % 3}" for x in who + at // HOUR_MS], pa.string()),
            "price": pa.array([None if x < 2 else float(x) for x in rng.integers(0, 9, rows)], pa.float64()),
            "country": pa.array(
                [None if x == 0 else ("de", "fr")[x % 2] for x in rng.integers(0, 5, rows)], pa.string()
            ),
            "kind": pa.array(np.zeros(rows), pa.float64()),
        }
    )
    kinds = [None if item % 3 == 0 else f"k{item % 2}" for item in (table["what"].to_numpy() // (2**60 // 8))]
    table = table.set_column(7, "kind", pa.array(kinds, pa.string()))
    again = rng.integers(0, max(rows, 1), rows // 10)
    return pa.concat_tables([table, table.take(pa.array(again, pa.int64()))]) if rows else table


def prepared(document: dict[str, Any], table: pa.Table) -> tuple[list[Row], Drawn]:
    """The rows that are made of a log, without a split."""
    config = from_dict(LogConfig, document)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pq.write_table(table, folder / "log.parquet")
        with engine(folder, 0.5) as connection:
            clean(connection, config, read_log(connection, config, folder), folder)
            described = describe(connection, config, folder)
            make_rows(connection, config)
            drawn = add_negatives(connection, config)
            make_features(connection, config, folder, listed_ids(connection))
            rows = number(connection, "SELECT count(*) FROM rows")
            found = columns(connection, config, described)
            write_events(connection, found, [Part("all", 0, rows)], folder / "events")
        files = sorted((folder / "events").glob("*/*.parquet"))
        return [row for file in files for row in pq.ParquetFile(file).read().to_pylist()], drawn


def events_of(config: LogConfig, table: pa.Table) -> list[Row]:
    """The log's rows that count, once each, in order."""
    actions = {config.value(name): name for name in config.actions}
    kept: dict[tuple[Any, ...], Row] = {}
    for row in table.to_pylist():
        if row["did"] in actions:
            kept.setdefault(tuple(row.values()), {**row, "did": actions[row["did"]]})
    places = list(config.actions)
    return sorted(kept.values(), key=lambda x: (x["at"], x["who"], x["what"], places.index(x["did"])))


def chosen_of(config: LogConfig, events: list[Row]) -> list[Row]:
    """Those that make rows, with their labels."""
    chosen, seen = [], set()
    for place, event in enumerate(events):
        pair = (event["who"], event["what"])
        once = config.actions[config.row_action].once
        if event["did"] == config.row_action and not (once and pair in seen):
            seen.add(pair)
            chosen.append({**event, "place": place, "labels": dict.fromkeys(config.actions, 0)})
            chosen[-1]["labels"][config.row_action] = 1
    for event in events:
        within = config.actions[event["did"]].within
        mine = [
            row
            for row in chosen
            if (row["who"], row["what"]) == (event["who"], event["what"])
            and row["at"] <= event["at"]
            and (within != SESSION or (event["visit"] is not None and row["visit"] == event["visit"]))
        ]
        if within and mine and (within == SESSION or event["at"] - mine[-1]["at"] < (span_ms(within) or 0)):
            mine[-1]["labels"][event["did"]] = 1
    return chosen


def known_before(config: LogConfig, events: list[Row], who: Any, what: Any, at: int, kind: str | None) -> Row:
    """Every feature of a row that is made of the past."""
    past = [event for event in events if event["at"] < at]
    found: Row = {}
    spans = {"": 10**15, **{f"_{window}": span_ms(window) or 0 for window in config.features.windows}}
    for suffix, span in spans.items():
        for name in config.actions:
            near = [event for event in past if event["did"] == name and event["at"] >= at - span]
            found[f"user_{name}{suffix}"] = sum(event["who"] == who for event in near)
            found[f"item_{name}{suffix}"] = sum(event["what"] == what for event in near)
            alike = [event for event in near if kind is not None and event["kind"] == kind]
            found[f"category_{name}{suffix}"] = len(alike)
            if not suffix:
                found[f"user_category_{name}"] = sum(event["who"] == who for event in alike)
    for name in config.actions:
        mine = [event for event in past if event["who"] == who and event["did"] == name][-config.features.last :]
        found[f"last_{name}"] = [event["what"] for event in mine]
        found[f"last_{name}_time"] = [event["at"] for event in mine]
    first = min(event["at"] for event in events if event["what"] == what)
    found["item_age_hours"] = float(np.float32(max(at - first, 0) / HOUR_MS))
    prices = [event["price"] for event in past if event["what"] == what and event["price"] is not None]
    found["item_price"] = prices[-1] if prices else None
    return found


def hours_of(events: list[Row]) -> dict[tuple[Any, Any], set[int]]:
    """User and item -> hours of their events."""
    hours = defaultdict(set)
    for event in events:
        hours[event["who"], event["what"]].add(event["at"] // HOUR_MS)
    return hours


def days(first: int, count: int) -> Iterator[int]:
    """The first ms of days."""
    return (first + day * 24 * HOUR_MS for day in range(count))
