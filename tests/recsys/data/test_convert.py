import math
from dataclasses import replace
from datetime import date
from decimal import Decimal
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.batch import Batch
from recsys.data.convert import age_buckets, table_rows, to_batch
from recsys.data.errors import DataError, RowError
from recsys.data.schema import Feature, Label, Schema

NOW = 1_700_000_000_000
SCHEMA = Schema(
    features=(
        Feature(name="user_id", owner="user", kind="id", rows=50),
        Feature(name="country", owner="user", kind="id", rows=30),
        Feature(name="seen", owner="user", kind="sequence", rows=1000, max_length=3, time="seen_time"),
        Feature(name="age", owner="user", kind="dense"),
        Feature(name="topics", owner="item", kind="ids", rows=20, max_length=2),
        Feature(name="words", owner="item", kind="ids", rows=40),
        Feature(name="picture", owner="item", kind="vector", width=2),
        Feature(name="price", owner="item", kind="dense"),
        Feature(name="hour", owner="context", kind="id", rows=24),
    ),
    labels=(Label(name="click"), Label(name="sale", valid="click")),
)
TYPES = pa.schema(
    {
        "timestamp": pa.int64(),
        "user_id": pa.int64(),
        "item_id": pa.int64(),
        "country": pa.string(),
        "seen": pa.list_(pa.int64()),
        "seen_time": pa.list_(pa.int64()),
        "age": pa.float64(),
        "topics": pa.list_(pa.int64()),
        "words": pa.list_(pa.string()),
        "picture": pa.list_(pa.float32()),
        "price": pa.float32(),
        "hour": pa.int32(),
        "click": pa.int8(),
        "sale": pa.float32(),
    }
)
ANY_ID = st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 60)
NUMBER = st.none() | st.just(math.nan) | st.floats(-1e6, 1e6, width=32)


@st.composite
def event(draw: st.DrawFn) -> dict[str, Any]:
    """One good row, nulls where they are allowed."""
    time = draw(st.integers(10**6, 10**9 - 1) | st.integers(10**12, NOW))
    ages = draw(st.none() | st.lists(st.integers(1, 2**39), max_size=6))
    click = draw(st.integers(0, 1))
    return {
        "timestamp": time,
        "user_id": draw(ANY_ID),
        "item_id": draw(ANY_ID),
        "country": draw(st.none() | st.text(max_size=3)),
        "seen": None if ages is None else [draw(ANY_ID) for _ in ages],
        "seen_time": None if ages is None else [time - age for age in sorted(ages, reverse=True)],
        "age": draw(NUMBER),
        "topics": draw(st.none() | st.lists(ANY_ID, max_size=4)),
        "words": draw(st.none() | st.lists(st.text(max_size=2), max_size=3)),
        "picture": draw(st.none() | st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=2)),
        "price": draw(NUMBER),
        "hour": draw(st.none() | st.integers(0, 23)),
        "click": click,
        "sale": draw(st.sampled_from([0.0, 1.0] if click else [0.0, 1.0, 7.0, None, math.nan])),
    }


def _row(value: int | str, rows: int) -> int:
    """The table row of a value, in plain Python integers."""
    if isinstance(value, str):
        value = int.from_bytes(blake2b(value.encode(), digest_size=8).digest(), "little", signed=True)
    if 0 <= value < rows:
        return value
    x = (value + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return (x ^ (x >> 31)) % rows


def _bucket(age_ms: int) -> int:
    seconds = age_ms // 1000
    return min(31, seconds.bit_length())  # 1 + floor(log2(x)) of an integer is its bit length; 0 has none


def _jagged(feature: Feature, row: dict[str, Any]) -> list[int]:
    value = row[feature.name]
    if feature.kind == "id":
        return [] if value is None else [_row(value, feature.rows)]
    mapped = [_row(x, feature.rows) for x in value or []]
    if not feature.max_length:
        return mapped
    return mapped[-feature.max_length :] if feature.kind == "sequence" else mapped[: feature.max_length]


def check_batch(batch: Batch, rows: list[dict[str, Any]]) -> None:
    """Compare with a conversion that goes row by row."""
    assert len(batch) == len(rows)
    expected = {f.name: [_jagged(f, r) for r in rows] for f in SCHEMA.features if f.rows}
    ages = [[_bucket(r["timestamp"] - t) for t in r["seen_time"] or []][-3:] for r in rows]
    assert batch.sparse.keys() == ["user_id", "country", "seen", "seen.age", "topics", "words", "hour"]
    for key, lists in (expected | {"seen.age": ages}).items():
        jagged = batch.sparse[key]
        assert jagged.values().tolist() == [x for values in lists for x in values], key
        assert jagged.lengths().tolist() == [len(values) for values in lists], key

    def number(x: float | None) -> float:
        return 0.0 if x is None or math.isnan(x) else float(np.float32(x))

    pictures = [r["picture"] or [0.0, 0.0] for r in rows]
    assert batch.dense.keys() == {"user", "item"}
    assert batch.dense["user"].tolist() == [[number(r["age"])] for r in rows]
    assert batch.dense["item"].tolist() == [[*p, number(r["price"])] for p, r in zip(pictures, rows, strict=True)]
    assert batch.label_mask.tolist() == [[True, r["click"] == 1] for r in rows]
    assert batch.labels.tolist() == [[r["click"], r["sale"] if r["click"] else 0.0] for r in rows]
    assert batch.user_ids.tolist() == [r["user_id"] for r in rows]
    assert batch.item_ids.tolist() == [r["item_id"] for r in rows]
    assert batch.timestamps.tolist() == [r["timestamp"] for r in rows]


def _good(**changes: Any) -> dict[str, Any]:
    row = {
        "timestamp": NOW,
        "user_id": 1,
        "item_id": 2,
        "country": "CH",
        "seen": [1, 2],
        "seen_time": [NOW - 2000, NOW - 1000],
        "age": 30.0,
        "topics": [1],
        "words": ["a"],
        "picture": [1.0, 2.0],
        "price": 3.0,
        "hour": 4,
        "click": 1,
        "sale": 0.0,
    }
    assert changes.keys() <= row.keys()
    return row | changes


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=TYPES)


def _with(name: str, column: pa.Array) -> pa.Table:
    """Good rows in which one column is replaced."""
    table = _table([_good()] * len(column))
    return table.set_column(table.schema.get_field_index(name), name, column)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(event(), max_size=8), cut=st.integers(0, 8), batch_of_records=st.booleans())
def test_equals_a_row_by_row_conversion(rows: list[dict[str, Any]], cut: int, batch_of_records: bool) -> None:
    whole = _table(rows)
    check_batch(to_batch(whole, SCHEMA), rows)
    chunked = pa.concat_tables([whole.slice(0, cut), whole.slice(cut)])
    check_batch(to_batch(chunked, SCHEMA), rows)
    part = whole.to_batches()[0].slice(cut) if batch_of_records and rows else whole.slice(cut)
    check_batch(to_batch(part, SCHEMA), rows[cut:])


def test_empty_table_gives_an_empty_batch() -> None:
    batch = to_batch(TYPES.empty_table(), SCHEMA)
    check_batch(batch, [])
    assert batch.dense["item"].shape == (0, 3)
    assert batch.labels.shape == batch.label_mask.shape == (0, 2)
    assert batch.sparse.stride() == 0


def test_dtypes_and_independence_of_the_table() -> None:
    table = _table([_good()] * 2)
    batch = to_batch(table, SCHEMA)
    assert batch.dense["user"].dtype == batch.labels.dtype == torch.float32
    assert batch.label_mask.dtype == torch.bool
    for tensor in (batch.user_ids, batch.item_ids, batch.timestamps, batch.sparse.values(), batch.sparse.lengths()):
        assert tensor.dtype == torch.int64
        tensor.fill_(7)  # writes into the batch's own memory
    assert table.equals(_table([_good()] * 2))


def test_precomputed_lengths_equal_those_torchrec_computes() -> None:
    sparse = to_batch(_table([_good(), _good(topics=None, country=None)]), SCHEMA).sparse
    plain = type(sparse)(keys=sparse.keys(), values=sparse.values(), lengths=sparse.lengths())
    assert sparse.length_per_key() == plain.length_per_key()
    assert sparse.offset_per_key() == plain.offset_per_key()
    assert sparse.stride() == plain.stride()


@pytest.mark.parametrize("rows", [1, 7, 2**31 + 11])
def test_table_rows_of_all_integers(rows: int) -> None:
    ids = [0, 1, rows - 1, rows, rows + 1, -1, 2**31, 2**40 + 3, 2**63 - 1, -(2**63)]
    mapped = table_rows(np.array(ids), rows).tolist()
    assert mapped == [_row(x, rows) for x in ids]
    assert all(0 <= x < rows for x in mapped)


def test_hashed_ids_spread_over_the_table() -> None:
    counts = np.bincount(table_rows(np.arange(10**9, 10**9 + 100_000), 100), minlength=100)
    assert 850 < counts.min() <= counts.max() < 1150  # 1000 expected, standard deviation 31


@given(st.lists(st.integers(1, 2**62), max_size=20))
def test_age_buckets(ages: list[int]) -> None:
    assert age_buckets(np.array(ages, dtype=np.int64)).tolist() == [_bucket(age) for age in ages]


def test_age_buckets_at_every_boundary() -> None:
    ages = [1, 999, 1000] + [1000 * 2**k + d for k in range(1, 40) for d in (-1, 0)]
    assert age_buckets(np.array(ages)).tolist() == [_bucket(age) for age in ages]


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("hour", pa.array([4, None], pa.uint8())),
        ("hour", pa.array([4, 4], pa.int64()).dictionary_encode()),
        ("hour", pa.nulls(2)),
        ("country", pa.array(["CH", None]).dictionary_encode()),
        ("country", pa.array(["CH", "DE"], pa.large_string())),
        ("country", pa.array([5, 6])),
        ("country", pa.nulls(2)),
        ("age", pa.array([True, None])),
        ("age", pa.array([2, 3], pa.uint16())),
        ("age", pa.array([Decimal("1.5"), None])),
        ("age", pa.nulls(2)),
        ("topics", pa.array([[1, 2], None], pa.large_list(pa.int16()))),
        ("topics", pa.array([[1, 2], None], pa.list_(pa.int32(), 2))),
        ("topics", pa.array([[], None], pa.list_(pa.null()))),
        ("words", pa.array([["a"], []], pa.large_list(pa.large_string()))),
        ("words", pa.array([[3], []])),
        ("picture", pa.array([[1.0, 2.0], None], pa.list_(pa.float64(), 2))),
        ("picture", pa.array([[1, 2], []])),
        ("click", pa.array([True, False])),
        ("click", pa.array([1.0, 0.0])),
    ],
)
def test_what_other_writers_make_of_the_same_column(name: str, column: pa.Array) -> None:
    check_batch(to_batch(_with(name, column), SCHEMA), [_good(**{name: value}) for value in column.to_pylist()])


def test_unsigned_ids_keep_their_64_bits() -> None:
    batch = to_batch(_with("user_id", pa.array([2**64 - 1, 5], pa.uint64())), SCHEMA)
    assert batch.user_ids.tolist() == [-1, 5]


def test_string_entity_ids_become_their_hash() -> None:
    batch = to_batch(_with("item_id", pa.array(["film-1", "film-1", "film-2"])), SCHEMA)
    digest = blake2b(b"film-1", digest_size=8).digest()
    assert batch.item_ids.tolist()[:2] == [int.from_bytes(digest, "little", signed=True)] * 2
    assert batch.item_ids[2] != batch.item_ids[0]


def test_elements_behind_a_null_list_are_not_read() -> None:
    offsets, mask = pa.array([0, 2, 4, 5], pa.int32()), pa.array([False, True, False])
    topics = pa.ListArray.from_arrays(offsets, pa.array([1, 2, 3, None, 5]), mask=mask)
    batch = to_batch(_with("topics", topics), SCHEMA)
    assert batch.sparse["topics"].values().tolist() == [1, 2, 5]
    assert batch.sparse["topics"].lengths().tolist() == [2, 0, 1]


def test_entity_rows_may_lack_the_other_id_and_labels() -> None:
    chosen = SCHEMA.select(features=tuple(x.name for x in SCHEMA.owned_by("user")), labels=())
    table = _table([_good(), _good()])
    batch = to_batch(table.drop_columns(["item_id", "click", "sale", "price"]), chosen)
    assert batch.item_ids.tolist() == [-1, -1]
    assert batch.user_ids.tolist() == [1, 1]
    assert batch.labels.shape == batch.label_mask.shape == (2, 0)
    assert batch.dense.keys() == {"user"}
    assert batch.sparse.keys() == ["user_id", "country", "seen", "seen.age"]
    assert to_batch(table, chosen).item_ids.tolist() == [2, 2]
    with pytest.raises(DataError, match="'user_id' is missing"):
        to_batch(table.drop_columns(["user_id"]), chosen)
    with pytest.raises(DataError, match="'item_id' is missing"):  # events need both ids
        to_batch(table.drop_columns(["item_id"]), SCHEMA)


def test_a_schema_without_features() -> None:
    batch = to_batch(_table([_good()]), Schema(labels=(Label(name="click"),)))
    assert batch.dense == {}
    assert batch.sparse.keys() == []
    assert batch.sparse.stride() == len(batch) == 1


@pytest.mark.parametrize(
    ("changes", "column", "problem"),
    [
        ({"timestamp": -5}, "timestamp", "is -5; .* 0 or more"),
        ({"timestamp": None}, "timestamp", "is null"),
        ({"timestamp": NOW // 1000}, "timestamp", "is 1700000000, which reads as seconds; .*multiply it by 1,000"),
        ({"timestamp": 10**9}, "timestamp", "reads as seconds"),
        ({"timestamp": 10**11 - 1}, "timestamp", "reads as seconds"),
        ({"timestamp": NOW * 1000}, "timestamp", "reads as microseconds; .*divide it by 1,000 in"),
        ({"timestamp": NOW * 10**6}, "timestamp", "reads as nanoseconds; .*divide it by 1,000,000"),
        ({"timestamp": 2**42}, "timestamp", "2109-.*more than a day ahead of now"),
        ({"seen_time": [NOW // 1000 - 1, NOW // 1000]}, "seen_time", "'seen' has time 1699999999, which reads as sec"),
        ({"user_id": None}, "user_id", "is null"),
        ({"item_id": None}, "item_id", "is null"),
        ({"click": 2}, "click", "is 2; it must be 0 or 1"),
        ({"click": -1}, "click", "is -1"),
        ({"click": None}, "click", "null or NaN"),
        ({"sale": 0.5}, "sale", "is 0.5"),
        ({"sale": None}, "sale", "null or NaN"),
        ({"sale": math.nan}, "sale", "null or NaN"),
        ({"age": math.inf}, "age", "infinite"),
        ({"age": -1e300}, "age", "infinite as float32"),
        ({"picture": [1.0, -math.inf]}, "picture", "infinite"),
        ({"picture": [1.0]}, "picture", "has 1 numbers, the schema says width = 2"),
        ({"topics": [1, None]}, "topics", "holds a null"),
        ({"words": ["a", None]}, "words", "holds a null"),
        ({"seen_time": [NOW - 1, None]}, "seen_time", "holds a null"),
        ({"seen_time": [NOW - 1]}, "seen_time", "1 times for 2 elements of 'seen'"),
        ({"seen_time": None}, "seen_time", "0 times for 2 elements of 'seen'"),
        ({"seen_time": [NOW - 1, NOW]}, "seen_time", f"has time {NOW}, the event {NOW}: it looks at the future"),
        ({"seen_time": [NOW - 1, NOW + 9]}, "seen_time", f"time {NOW + 9}, .*strictly earlier"),
        ({"seen_time": [NOW - 1, NOW - 2]}, "seen_time", "decrease; sort each list oldest first"),
    ],
)
def test_bad_values_name_column_and_row(changes: dict[str, Any], column: str, problem: str) -> None:
    empty = {"seen": [], "seen_time": []}
    rows = [_good(**empty), _good(), _good(**empty), _good(**changes), _good()]
    with pytest.raises(RowError, match=problem) as caught:
        to_batch(_table(rows), SCHEMA)
    assert (caught.value.column, caught.value.row) == (column, 3)
    assert f"column {column!r}, row 3: " in str(caught.value)
    with pytest.raises(RowError, match=problem) as caught:
        to_batch(_table(rows).slice(2), SCHEMA)
    assert caught.value.row == 1


def test_only_the_elements_that_are_read_are_judged() -> None:
    too_late = _good(seen=[1, 2, 3, 4], seen_time=[NOW + 1, NOW - 3, NOW - 2, NOW - 1])
    assert to_batch(_table([too_late]), SCHEMA).sparse["seen"].values().tolist() == [2, 3, 4]


@pytest.mark.parametrize(
    ("name", "column", "wanted"),
    [
        ("timestamp", pa.array([NOW // 1000], pa.int32()), "the event time and must be int64"),
        ("timestamp", pa.array([NOW], pa.timestamp("ms")), "the event time and must be int64"),
        ("user_id", pa.array([1.0]), "the user's id and must be an integer or a string"),
        ("country", pa.array([b"CH"]), "an integer or a string"),
        ("hour", pa.array([[1]]), "feature 'hour' (id) and must be an integer or a string"),
        ("topics", pa.array([1]), "feature 'topics' (ids) and must be a list of an integer or a string"),
        ("seen_time", pa.array([[1.5]]), "the times of feature 'seen' (sequence) and must be a list of int64"),
        ("age", pa.array(["30"]), "feature 'age' (dense) and must be a number"),
        ("age", pa.array([date(2020, 1, 1)]), "a number"),
        ("picture", pa.array([1.0]), "a list of a number"),
        ("click", pa.array(["yes"]), "label 'click' and must be a number"),
    ],
)
def test_wrong_types_name_column_found_and_wanted(name: str, column: pa.Array, wanted: str) -> None:
    with pytest.raises(DataError) as caught:
        to_batch(_with(name, column), SCHEMA)
    assert f"column {name!r} has type {column.type}; it is " in str(caught.value)
    assert wanted in str(caught.value)
    assert "Cast it" in str(caught.value)


def test_missing_and_repeated_columns() -> None:
    table = _table([_good()])
    with pytest.raises(DataError, match=r"'price' is missing.*; it is feature 'price' \(dense\), a number"):
        to_batch(table.drop_columns(["price"]), SCHEMA)
    with pytest.raises(DataError, match="'price' occurs 2 times"):
        to_batch(table.append_column("price", table["price"]), SCHEMA)


def test_a_column_has_one_role() -> None:
    both = Schema(features=(Feature(name="user_id", owner="user", kind="dense"),))
    with pytest.raises(DataError, match=r"'user_id'.*one role"):
        to_batch(_table([_good()]), both)


def test_without_event_times_every_row_is_of_time_0() -> None:
    aged = tuple(replace(feature, time="") for feature in SCHEMA.features)
    untimed = replace(SCHEMA, features=aged, timestamp="")
    table = _table([_good(), _good(user_id=7), _good(user_id=8)]).drop_columns(["timestamp", "seen_time"])
    batch = to_batch(table, untimed)
    assert batch.timestamps.tolist() == [0, 0, 0]
    assert batch.timestamps.dtype == torch.int64
    assert batch.sparse.keys() == ["user_id", "country", "seen", "topics", "words", "hour"]
    assert batch.user_ids.tolist() == [1, 7, 8]
    assert to_batch(table.slice(0, 0), untimed).timestamps.shape == (0,)
    rows = to_batch(table.select(["item_id", "topics"]), untimed.select(features=("topics",), labels=()))
    assert (rows.timestamps.tolist(), rows.user_ids.tolist()) == ([0, 0, 0], [-1, -1, -1])
