from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.data.errors import DataError
from recsys.data.files import find_files
from recsys.data.schema import SchemaError
from recsys.data.synthetic import market_schema, market_split, prepare_synthetic
from recsys.dates import DAY_MS
from recsys.evaluate.metrics import roc_auc
from recsys.study.oracle import oracle_items, oracle_recall, oracle_scores


def test_oracle_scores_follow_the_files(tmp_path: Path) -> None:
    prepare_synthetic(tmp_path, users=100, items=100, days=6, events_per_day=400, upstream_days=2)
    schema = market_schema()
    files = find_files(tmp_path, market_split(days=6, upstream_days=2).test)
    labels, scores = oracle_scores(files, schema, "click")
    assert labels.shape == scores.shape == (2 * 400,)
    assert roc_auc(labels, scores) > 0.7
    conversions, _ = oracle_scores(files, schema, "conversion")
    assert len(conversions) == labels.sum()
    with pytest.raises(SchemaError, match="no outcome 'oracle_click'"):
        oracle_scores(files, replace(schema, outcomes=()), "click")


LISTS = "oracle/{day}/*.parquet"


def _write_lists(root: Path) -> None:
    for day, lists in (("1970-01-01", {7: [1, 2, 3], -5: [3, 1, 2]}), ("1970-01-02", {-5: [9, 8, 7]})):
        folder = root / "oracle" / day
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"user_id": list(lists), "items": list(lists.values())}), folder / "part-0.parquet")


def test_recall_is_of_each_days_own_list(tmp_path: Path) -> None:
    _write_lists(tmp_path)
    events = [  # user, item, time; the user's list of that day
        (7, 1, 5),  # first
        (7, 3, 6),  # third
        (7, 3, 7),  # again
        (-5, 1, 8),  # second
        (-5, 1, DAY_MS),  # not listed on that day
        (-5, 9, DAY_MS + 1),  # first
        (4, 1, 9),  # a user without a list
    ]
    positives = tuple(np.array(column) for column in zip(*events, strict=True))
    expected = {1: (1 / 2 + 1 / 3 + 0) / 3, 2: (1 / 2 + 2 / 3 + 0) / 3, 3: (2 / 2 + 2 / 3 + 0) / 3}
    assert oracle_recall(tmp_path, LISTS, positives, (1, 2, 3)) == pytest.approx(expected)
    nothing = tuple(np.zeros(0, np.int64) for _ in range(3))
    assert np.isnan(oracle_recall(tmp_path, LISTS, nothing, (1,))[1])
    for k in (0, 4):
        with pytest.raises(DataError, match=rf"k is \({k},\), and .* lists 3 items a user"):
            oracle_recall(tmp_path, LISTS, positives, (k,))
    with pytest.raises(DataError, match=r"1970-01-03/.* matches nothing"):
        oracle_recall(tmp_path, LISTS, (np.array([7]), np.array([1]), np.array([2 * DAY_MS])), (1,))


def test_items_of_users_in_any_order(tmp_path: Path) -> None:
    _write_lists(tmp_path)
    items, known = oracle_items(tmp_path / "oracle/1970-01-01/part-0.parquet", np.array([7, 99, -5, -9, 7]))
    assert known.tolist() == [True, False, True, False, True]
    assert items[known].tolist() == [[1, 2, 3], [3, 1, 2], [1, 2, 3]]
