"""Rows of entities beside the tiny log that goes on day by day."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from recsys.config import RefreshConfig
from recsys.downstream.retrieval import build_index
from recsys.refresh.days import window
from tests.recsys.refresh.daily_example import DAILY, PLAIN, daily_config, series
from tests.recsys.refresh.example import SCHEMA, lists, user_rows

DAYS_AND_ROWS = replace(DAILY, users="rows/{day}/users*.parquet", items="rows/{day}/items*.parquet")
FLAGGED = replace(SCHEMA, withdrawn="gone")


def config(**refresh: Any) -> RefreshConfig:
    """The daily refresh, with rows of entities."""
    return replace(daily_config(**refresh), days=DAYS_AND_ROWS)


def noon(day: str) -> int:
    return window(DAILY, day)[0] + 43_200_000


def item_rows(ids: list[int], time: int, *, seed: int = 3, gone: list[int] | None = None) -> pa.Table:
    """One row for each of these items; `gone`: whether each is withdrawn."""
    rng = np.random.default_rng(seed)
    columns = {
        "timestamp": np.full(len(ids), time),
        "item_id": np.array(ids, np.int64),
        "tags": lists(rng, len(ids), 9),
    }
    return pa.table(columns | ({} if gone is None else {"gone": gone}))


def deliver(data: Path, day: str, table: pa.Table, name: str = "items") -> Path:
    """Rows of a day: of items, or of users."""
    path = data / f"rows/{day}/{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def new_users(ids: list[int], time: int) -> pa.Table:
    return user_rows(ids, time)


def has(out: Path, ids: list[int], name: str = "item_ctr") -> list[bool]:
    """Which of these the snapshot has that readers follow."""
    return series(out, name).tagged("prod").load().lookup(torch.tensor(ids))[1].tolist()


def offered(out: Path, ids: list[int]) -> list[bool]:
    """Which of these items are retrieved, by users with a vector and without: those that have one, neither more nor
    less."""
    pair = [series(out, name).tagged("prod") for name in PLAIN]
    index = build_index(*pair, series(out, "item_ctr.prior").latest(), temperature=0.1)
    rows = index.search(index.queries(torch.tensor([-10, 12345]))[0], len(index.ids))
    found = [[id_ in index.ids[row].tolist() for id_ in ids] for row in rows]
    assert found[0] == found[1] == has(out, ids)
    return found[0]


def active(out: Path, ids: list[int], name: str = "item_ctr") -> list[float]:
    """The day on which each was last active."""
    activity = series(out, f"{name}.activity").as_of(series(out, name).tagged("prod").as_of).load()
    return activity.lookup(torch.tensor(ids))[0][:, 0].tolist()
