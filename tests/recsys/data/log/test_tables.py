"""Columns that become features as they are: of the tables of users and items, and of the log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.config import LogConfig, from_dict
from recsys.data.errors import DataError
from recsys.data.log.cleaning import clean
from recsys.data.log.engine import engine
from recsys.data.log.prepare import describe
from recsys.data.log.reading import read_log
from recsys.data.log.tables import Described


def described(folder: Path, **sections: Any) -> tuple[dict[str, Described], list[tuple[Any, ...]]]:
    """The features of a log of four events, and the rows of its table of items."""
    log = {
        "user": [1, 1, 2, 2],
        "item": [10, 11, 10, 12],
        "time": [1_700_000_000 + row for row in range(4)],
        "brand": [None, "b", "a", ""],
        "place": ["3", "1", "2", "3"],
        "level": [0.5, 1.0, 1.5, 2.0],
    }
    pq.write_table(pa.table(log), folder / "log.parquet")
    base = {"files": ["log.parquet"], "user": "user", "item": "item", "time": "time"}
    config = from_dict(LogConfig, {"log": base | sections.pop("log", {}), **sections})
    (folder / "work").mkdir()
    with engine(folder / "work", 0.5) as connection:
        clean(connection, config, read_log(connection, config, folder), folder)
        found = describe(connection, config, folder)
        rows = connection.execute("SELECT * FROM item_table ORDER BY i").fetchall() if config.items else []
    return found, rows


def kinds(found: Described) -> dict[str, tuple[str, int]]:
    return {feature.name: (feature.kind, feature.rows) for feature in found.features}


CSV = """item,brand,weight,stock,genres,code
12,x,1.5,3,a|b,007
10,y,,4,,008
11,,2.5,3,b,009
10,again,9,9,c,010
99,other,1,1,a,011
"""


def test_a_table_in_csv(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text(CSV)
    items = {"files": ["items.csv"], "split": {"genres": "|"}, "dense": ["stock"]}
    found, rows = described(tmp_path, items=items)
    assert kinds(found["item"]) == {
        "brand": ("id", 6),
        "weight": ("dense", 0),
        "stock": ("dense", 0),
        "genres": ("ids", 4),
        "code": ("id", 8),
    }
    assert rows == [
        (0, "y", None, 4, None, "008"),
        (1, None, 2.5, 3, ["b"], "009"),
        (2, "x", 1.5, 3, ["a", "b"], "007"),
        (3, "other", 1, 1, ["a"], "011"),  # the log lacks it
    ]
    assert found["item"].covered == 1


def test_a_table_in_parquet_lacks_some_and_has_what_is_no_feature(tmp_path: Path) -> None:
    table = {"user_id": [2.0, 7.0], "vip": [True, False], "tags": [["a"], []], "since": pa.array([1, 2], pa.date32())}
    pq.write_table(pa.table(table), tmp_path / "users.parquet")
    found, _ = described(tmp_path, users={"files": ["users.parquet"], "id": "user_id"})
    assert kinds(found["user"]) == {"vip": ("dense", 0), "tags": ("ids", 2)}
    assert found["user"].left_out == ("since",)
    assert found["user"].covered == 0.5
    (tmp_path / "work").rename(tmp_path / "before")
    with pytest.raises(DataError, match="column 'since' of the users has type DATE, which is no feature"):
        described(tmp_path, users={"files": ["users.parquet"], "id": "user_id", "features": ["since"]})


def test_columns_of_the_log_itself(tmp_path: Path) -> None:
    found, rows = described(tmp_path, items={"features": ["brand"]}, log={"context": ["place", "level"]})
    assert rows == [(0, "a"), (1, "b"), (2, None)], "the first that is not null"
    assert kinds(found["context"]) == {"place": ("id", 6), "level": ("dense", 0)}
