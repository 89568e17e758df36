"""Labels and weights as they are read from the files."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recsys.data.batch import Batch
from recsys.data.convert import to_batch
from recsys.data.errors import DataError, RowError
from recsys.data.scan import Part, scan
from recsys.data.schema import Label, Schema, SchemaError, entity_schema
from recsys.data.stream import EventStream

NOW = 1_700_000_000_000
WEIGHTED = Schema(labels=(Label(name="click"),), weight="importance")


def rows(**columns: list[Any]) -> pa.Table:
    """Rows with these columns, at times a second apart from NOW on unless told."""
    count = len(next(iter(columns.values())))
    facts = {"timestamp": [NOW + 1000 * n for n in range(count)], "user_id": [1] * count, "item_id": [2] * count}
    return pa.table(facts | {"click": [0] * count} | columns)


@pytest.mark.parametrize("kind", [pa.int8(), pa.float64(), pa.float32(), pa.decimal128(5, 2)])
def test_weights_are_read(kind: pa.DataType) -> None:
    batch = to_batch(rows(importance=pa.array([0, 1, 7], kind)), WEIGHTED)
    assert batch.weights is not None
    assert batch.weights.dtype == torch.float32
    assert batch.weights.tolist() == [0, 1, 7]
    assert to_batch(rows(click=[0]), replace(WEIGHTED, weight="")).weights is None


@pytest.mark.parametrize(
    ("value", "said"), [(None, "null or NaN"), (math.nan, "null or NaN"), (-0.5, "-0.5"), (math.inf, "inf")]
)
def test_a_weight_that_is_none_is_a_bad_row(value: float | None, said: str, tmp_path: Path) -> None:
    table = rows(importance=pa.array([1.0, 2.0, value], pa.float64()))
    with pytest.raises(RowError, match=f"'importance', row 2: the weight is {said}; it must be a number of 0 or more"):
        to_batch(table, WEIGHTED)
    pq.write_table(table, tmp_path / "a.parquet")
    (bad,) = scan(Part(files=[tmp_path / "a.parquet"], schema=WEIGHTED)).bad
    assert (bad.column, bad.row) == ("importance", 2)


def test_files_without_the_weights_are_refused(tmp_path: Path) -> None:
    pq.write_table(rows(click=[0]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"column 'importance' is missing.* it is the row's weight, a number"):
        EventStream([tmp_path / "a.parquet"], WEIGHTED, batch_size=1)


def test_what_is_not_learned_from_has_no_weight() -> None:
    """Neither rows of entities nor those that a bundle scores."""
    assert WEIGHTED.select(labels=()).columns() == entity_schema(WEIGHTED, "user").columns()
    assert "importance" not in WEIGHTED.select(labels=()).columns()
    assert "importance" in WEIGHTED.select(features=()).columns()


@pytest.mark.parametrize("name", ["user_id", "timestamp"])
def test_a_weight_has_a_column_of_its_own(name: str) -> None:
    with pytest.raises(SchemaError, match=f"weight is '{name}'"):
        replace(WEIGHTED, weight=name)


def test_a_schema_with_weights_is_saved_whole(tmp_path: Path) -> None:
    WEIGHTED.save(tmp_path / "schema.toml")
    assert Schema.load(tmp_path / "schema.toml") == WEIGHTED


def test_a_batch_takes_all_its_tensors_along() -> None:
    """`to`, `pin_memory` and `record_stream` go through one map, which must not forget any."""
    batch, seen = to_batch(rows(importance=[1.0, 2.0]), WEIGHTED), list[torch.Tensor]()
    moved = batch.to(torch.device("meta"))
    assert moved.weights is not None
    assert moved.weights.is_meta
    kept = Batch._map(batch, lambda x: seen.append(x) or x)
    assert kept.weights is batch.weights
    assert any(x is batch.weights for x in seen)


VALUED = Schema(labels=(Label(name="click"), Label(name="spent", kind="value", valid="click")))


def test_values_are_read_where_they_exist() -> None:
    batch = to_batch(rows(click=[1, 1, 0], spent=pa.array([0, 2.5, None], pa.float64())), VALUED)
    assert batch.labels[:, 1].tolist() == [0, 2.5, 0]
    assert batch.label_mask[:, 1].tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("value", "said"), [(None, "null or NaN"), (math.nan, "null or NaN"), (-0.5, "-0.5"), (math.inf, "inf")]
)
def test_a_value_that_is_none_is_a_bad_row(value: float | None, said: str) -> None:
    table = rows(click=[1, 1], spent=pa.array([1.0, value], pa.float64()))
    with pytest.raises(RowError, match=f"'spent', row 1: the label is {said}; a value must be a finite number of 0 or"):
        to_batch(table, VALUED)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "valu"}, "kind is 'valu'.*use one of binary, value"),
        ({"kind": "value", "kept_negatives": 0.1}, "kept_negatives is 0.1"),
    ],
)
def test_a_label_that_contradicts_itself(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=f"label 'spent': {message}"):
        Label(name="spent", **wrong)


def test_a_value_makes_no_row_valid() -> None:
    with pytest.raises(SchemaError, match="'gift': valid is 'spent', a label of kind 'value'"):
        Schema(labels=(Label(name="spent", kind="value"), Label(name="gift", valid="spent")))
