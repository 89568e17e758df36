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
from recsys.data.schema import Feature, Label, Schema, SchemaError, entity_schema
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


def late(delayed: str, **more: Any) -> Schema:
    return Schema(
        labels=(Label(name="click"), Label(name="sale", time="sold_at", window="1h", delayed=delayed, **more))
    )


HOUR = 3_600_000
MOMENTS = pa.table(
    {
        "timestamp": [NOW] * 5,
        "user_id": [1] * 5,
        "item_id": [2] * 5,
        "click": [1] * 5,
        "sale": [1, 1, 1, 1, 0],  # at once, in half an hour, when the window ends, after it; never
        "sold_at": pa.array([NOW, NOW + HOUR // 2, NOW + HOUR, NOW + HOUR + 1, None], pa.int64()),
    }
)


@pytest.mark.parametrize(
    ("as_of", "known"),
    [
        (NOW, [1, 0, 0, 0, 0]),
        (NOW + HOUR // 2 - 1, [1, 0, 0, 0, 0]),
        (NOW + HOUR // 2, [1, 1, 0, 0, 0]),
        (NOW + HOUR, [1, 1, 1, 0, 0]),
        (NOW + 2 * HOUR, [1, 1, 1, 0, 0]),
        (None, [1, 1, 1, 0, 0]),
    ],
)
def test_what_came_later_is_not_known_and_what_came_too_late_is_nothing(as_of: int | None, known: list[int]) -> None:
    ended = as_of is None or as_of >= NOW + HOUR
    ignored, waiting, corrected = (to_batch(MOMENTS, late(x), as_of) for x in ("ignored", "wait", "corrected"))
    for batch in (ignored, corrected):
        assert batch.labels[:, 1].tolist() == known
        assert batch.label_mask.all()
    assert ignored.elapsed is None
    assert waiting.elapsed is None
    assert waiting.labels[:, 1].tolist() == (known if ended else [0] * 5)
    assert waiting.label_mask[:, 1].tolist() == [ended] * 5
    assert corrected.known[:, 1].tolist() == [ended] * 5
    assert corrected.known[:, 0].all()
    if as_of is None:
        assert corrected.elapsed is None
    else:
        assert corrected.elapsed is not None
        share = min(1.0, (as_of - NOW) / HOUR)
        torch.testing.assert_close(corrected.elapsed, torch.tensor([[1.0, share]] * 5))
    assert waiting.labels[:, 0].tolist() == [1] * 5


@pytest.mark.parametrize("delayed", ["ignored", "wait", "corrected"])
def test_nothing_later_can_make_a_difference(delayed: str) -> None:
    """Whatever the files say of sales after the end of what is trained on."""
    as_of = NOW + HOUR // 2
    never = MOMENTS.set_column(4, "sale", pa.array([1, 1, 0, 0, 0]))
    never = never.set_column(5, "sold_at", pa.array([NOW, NOW + HOUR // 2, None, None, None], pa.int64()))
    read, other = (to_batch(table, late(delayed), as_of) for table in (MOMENTS, never))
    assert torch.equal(read.labels, other.labels)
    assert torch.equal(read.label_mask, other.label_mask)
    assert (read.elapsed is None) == (other.elapsed is None)
    assert read.elapsed is None or torch.equal(read.elapsed, other.elapsed)


@pytest.mark.parametrize(
    ("sale", "sold_at", "message"),
    [
        (1, None, "its label is 1, but no time says when that came: give the time"),
        (1, NOW - 1, f"its time is {NOW - 1}, before the event's own, {NOW}"),
        (0, NOW + HOUR, "its label is 0, but its time is .* within the window of 1h after"),
        (1, NOW // 1000, "the outcome's time is .* reads as seconds"),
    ],
)
def test_a_time_that_contradicts_its_label_is_a_bad_row(sale: int, sold_at: int | None, message: str) -> None:
    table = rows(sale=[0, sale], sold_at=pa.array([None, sold_at], pa.int64()))
    table = table.set_column(0, "timestamp", pa.array([NOW, NOW]))
    with pytest.raises(RowError, match=f"'sold_at', row 1: {message}"):
        to_batch(table, late("wait"))


def test_where_a_label_does_not_exist_its_time_does_not_matter() -> None:
    table = rows(sale=[1], sold_at=pa.array([None], pa.int64()))
    batch = to_batch(table, late("wait", valid="click"), NOW)
    assert not batch.label_mask[0, 1]


def test_times_are_integers() -> None:
    with pytest.raises(
        DataError, match=r"'sold_at' has type double; it is the times of label 'sale' and must be int64"
    ):
        to_batch(rows(sale=[1], sold_at=[1.5]), late("wait"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"delayed": "correct"}, "delayed is 'correct'.*did you mean 'corrected'"),
        ({"time": "sold_at"}, "time is 'sold_at', window ''; an outcome that comes later has both"),
        ({"window": "7d"}, "time is '', window '7d'"),
        ({"time": "sold_at", "window": "a week"}, "window is 'a week'; use minutes, hours or days"),
        ({"delayed": "wait"}, "delayed is 'wait', but without time and window no row is open"),
        ({"time": "t", "window": "7d", "delayed": "corrected", "kind": "value"}, "let a value wait"),
        ({"time": "t", "window": "7d", "delayed": "corrected", "kept_negatives": 0.5}, "kept_negatives 0.5"),
    ],
)
def test_a_delay_that_contradicts_itself(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=f"label 'sale': .*{message}"):
        Label(name="sale", **wrong)


def test_the_time_of_an_outcome_is_no_feature_and_needs_that_of_the_event() -> None:
    schema = late("wait")
    with pytest.raises(SchemaError, match=r"features \['sold_at'\] are labels or outcomes"):
        replace(schema, features=(Feature(name="sold_at", owner="item", kind="dense"),))
    with pytest.raises(SchemaError, match=r"labels \['sale'\] have the times of their outcomes, but timestamp is ''"):
        replace(schema, timestamp="")
    narrow = schema.select(labels=("click",))
    assert {"sale", "sold_at"} <= set(narrow.outcomes)
    assert "sold_at" not in narrow.columns()
