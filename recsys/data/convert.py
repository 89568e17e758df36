"""Arrow tables to `Batch`: NumPy over whole columns, never a Python loop over rows.

Arrow buffers are read in place; the one copy is the assembly of all columns into the batch's own tensors. Work stays in
NumPy because it runs in the prefetch thread, where torch's thread pool would compete with the training step.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from recsys.data.batch import Batch
from recsys.data.columns import canonical_types, with_defaults
from recsys.data.errors import RowError
from recsys.data.hashing import splitmix64
from recsys.data.labels import read_labels, read_weights
from recsys.data.schema import SPARSE_KINDS, Feature, Schema
from recsys.data.sparse import Ints, keyed
from recsys.data.strings import read_column
from recsys.dates import UNTIMED, misread, not_milliseconds

AGE_BUCKETS = 32

Columns = Mapping[str, pa.Array]


class _Jagged(NamedTuple):
    """One key of the batch's `KeyedJaggedTensor`."""

    key: str
    values: Ints  # [sum(lengths)]
    lengths: Ints  # [B]


class _Ranges(NamedTuple):
    """Where each row's elements lie in the values of a list column."""

    starts: Ints  # [B]
    lengths: Ints  # [B]

    @property
    def ends(self) -> Ints:  # [B]
        return self.starts + self.lengths

    def newest(self, limit: int) -> _Ranges:
        """Only the last `limit` elements of each row."""
        lengths = np.minimum(self.lengths, limit)
        return _Ranges(self.ends - lengths, lengths)

    def gather(self, values: NDArray) -> NDArray:
        """The rows' elements one after another; a view where they lie so already."""
        if not len(self.starts):
            return values[:0]
        if np.array_equal(self.starts[1:], self.ends[:-1]):
            return values[self.starts[0] : self.ends[-1]]
        first = np.cumsum(self.lengths) - self.lengths
        return values[np.arange(self.lengths.sum()) + np.repeat(self.starts - first, self.lengths)]

    def row_of(self, element: int) -> int:
        """The row of the `element`-th of the gathered elements."""
        return int(np.searchsorted(np.cumsum(self.lengths), element, side="right"))


def to_batch(table: pa.Table | pa.RecordBatch, schema: Schema, as_of: int | None = None) -> Batch:
    """Convert B rows; chunked and sliced tables, other integer widths and all-null columns included.

    A null id has length 0, a null list too; a null or NaN number is 0. An id within [0, rows) is its own table row, any
    other integer is hashed (splitmix64), strings are hashed by their UTF-8 bytes. Of a sequence the last `max_length`
    elements are kept, of `ids` the first. So a value has the same table row in every run and on every machine.

    Args:
        table: The columns of `schema.columns()`; others are ignored. Entity rows (a schema of user features alone,
            without labels) may lack `item_id`, which is then -1, and the other way round.
        schema: What the columns mean.
        as_of: Time up to which outcomes are known, ms, see `Label.time`; None: all of them are.

    Returns:
        The batch. `dense` has the owners with a `dense` or `vector` feature; the keys of `sparse` are in schema order,
        `<name>.age` follows its sequence.

    Raises:
        DataError: a column is missing or has a wrong type; a value is out of bounds: then it is a `RowError`.
    """
    columns = read_columns(table, schema)
    timestamps = np.full(table.num_rows, UNTIMED, dtype=np.int64)
    if schema.timed:
        timestamps = _timestamps(columns[schema.timestamp], schema.timestamp)
    jagged = [part for feature in schema.features for part in _sparse(feature, columns, timestamps)]
    labels = read_labels(schema.labels, columns, timestamps, as_of)
    weights = read_weights(columns[schema.weight], schema.weight) if schema.weight else None
    return Batch(
        dense=_dense(schema, columns, table.num_rows),
        sparse=keyed({part.key: (part.values, part.lengths) for part in jagged}, table.num_rows),
        labels=torch.from_numpy(labels.values),
        label_mask=torch.from_numpy(labels.mask),
        user_ids=torch.from_numpy(_entity_ids(columns, schema.user_id, table.num_rows)),
        item_ids=torch.from_numpy(_entity_ids(columns, schema.item_id, table.num_rows)),
        timestamps=torch.from_numpy(timestamps),
        elapsed=None if labels.elapsed is None else torch.from_numpy(labels.elapsed),
        weights=None if weights is None else torch.from_numpy(weights),
    )


def read_columns(table: pa.Table | pa.RecordBatch, schema: Schema) -> Columns:
    """The columns of a schema, in their canonical types. Raises DataError: one is missing or has a wrong type."""
    types = _types(table.schema, schema)
    return {name: read_column(table.column(name), kind) for name, kind in types.items()}


def age_buckets(ages: Ints) -> Ints:
    """Ages in ms, all > 0, to buckets: 0 below one second, else min(31, 1 + floor(log2(seconds))). Ours, not a paper's.

    Args:
        ages: int64 [N].
    """
    # The exponent field of a positive float64 is floor(log2(x)) + 1023. The correctly rounded quotient reaches a power
    # of two only if the exact one does: they differ by 2^-53 relatively, and 1 / 1000 s is more than that below 2^43 s.
    bits = (ages / 1000.0).view(np.int64)
    bits >>= 52
    bits -= 1022
    return np.clip(bits, 0, AGE_BUCKETS - 1, out=bits)


def table_rows(ids: Ints, rows: int) -> Ints:
    """Embedding-table rows of ids: an id in [0, rows) keeps its row, any other is hashed with splitmix64.

    Args:
        ids: int64 [N], any values.
        rows: Rows of the table; 0: it has no size yet, and the ids stay what they are.
    """
    if not rows:
        return ids
    unsigned = ids.view(np.uint64)
    outside = unsigned >= rows  # negative ids too: as unsigned numbers they are the greatest
    if not outside.any():
        return ids
    if outside.all():
        return _remainder(splitmix64(unsigned), rows)
    mapped = ids.copy()
    mapped[outside] = _remainder(splitmix64(unsigned[outside]), rows)
    return mapped


def _remainder(x: NDArray[np.uint64], divisor: int) -> Ints:
    # NumPy divides by a constant with SIMD multiplications, but has no such path for `%`: this is five times as fast.
    quotient = x // np.uint64(divisor)
    quotient *= np.uint64(divisor)
    x -= quotient
    return x.view(np.int64)


@lru_cache(maxsize=64)
def _types(found: pa.Schema, schema: Schema) -> dict[str, pa.DataType]:
    return with_defaults(canonical_types(found, schema), schema)


def _numpy(array: pa.Array, null: float = 0) -> NDArray:
    return (array.fill_null(null) if array.null_count else array).to_numpy()


def _first(mask: NDArray[np.bool_]) -> int:
    return int(np.argmax(mask))


def _first_null(array: pa.Array) -> int:
    return _first(array.is_null().to_numpy(zero_copy_only=False))


def _timestamps(array: pa.Array, name: str) -> Ints:
    if array.null_count:
        raise RowError(name, _first_null(array), "the event time is null; give every row its time, or drop the row")
    times = array.to_numpy().copy()
    if (times < 0).any():
        row = _first(times < 0)
        raise RowError(
            name, row, f"the event time is {times[row]}; it must be milliseconds since 1970 UTC, 0 or more: correct it"
        )
    strays = not_milliseconds(times)
    if strays is not None:
        row = _first(strays)
        raise RowError(name, row, f"the event time is {misread(int(times[row]))}")
    return times


def _entity_ids(columns: Columns, name: str, rows: int) -> Ints:
    if name not in columns:
        return np.full(rows, -1, dtype=np.int64)
    array = columns[name]
    if array.null_count:
        raise RowError(name, _first_null(array), "the id is null; give every row its id, or drop the row")
    return array.to_numpy().copy()


def _sparse(feature: Feature, columns: Columns, timestamps: Ints) -> list[_Jagged]:
    if feature.kind not in SPARSE_KINDS:
        return []
    if feature.kind == "id":
        array = columns[feature.name]
        lengths = np.ones(len(array), dtype=np.int64)
        if array.null_count:
            lengths -= array.is_null().to_numpy(zero_copy_only=False)
            array = array.drop_null()
        return [_Jagged(feature.name, table_rows(array.to_numpy(), feature.rows), lengths)]
    ranges, elements = _list(columns[feature.name], feature.name)
    kept = ranges
    if feature.max_length:
        newest = ranges.newest(feature.max_length)
        kept = newest if feature.kind == "sequence" else _Ranges(ranges.starts, newest.lengths)
    rows = table_rows(kept.gather(elements), feature.rows)
    parts = [_Jagged(feature.name, rows, kept.lengths)]
    if feature.time:
        parts.append(_Jagged(feature.age_key, _ages(feature, columns, ranges, timestamps), kept.lengths))
    return parts


def _list(array: pa.ListArray, name: str) -> tuple[_Ranges, Ints]:
    """A list column's ranges (a null list is empty) and elements."""
    offsets = array.offsets.to_numpy().astype(np.int64)
    ranges = _Ranges(offsets[:-1], np.diff(offsets))
    if array.null_count:  # a null row may have elements behind it, by the letter of the format
        ranges.lengths[array.is_null().to_numpy(zero_copy_only=False)] = 0
    low = int(offsets[0]) if len(offsets) else 0
    elements = array.values.slice(low, int(offsets[-1]) - low if len(offsets) else 0)
    ranges = _Ranges(ranges.starts - low, ranges.lengths)
    if elements.null_count:
        null = ranges.gather(elements.is_null().to_numpy(zero_copy_only=False))
        if null.any():
            raise RowError(name, ranges.row_of(_first(null)), "the list holds a null; leave the element out")
        elements = elements.fill_null(0)  # these lie behind null lists alone
    return ranges, elements.to_numpy()


def _ages(feature: Feature, columns: Columns, ids: _Ranges, timestamps: Ints) -> Ints:
    """Age buckets of the kept elements of a timed sequence, after the checks that protect the event from its future."""
    ranges, times = _list(columns[feature.time], feature.time)
    if not np.array_equal(ranges.lengths, ids.lengths):
        row = _first(ranges.lengths != ids.lengths)
        raise RowError(
            feature.time,
            row,
            f"{ranges.lengths[row]} times for {ids.lengths[row]} elements of {feature.name!r}: give each its time",
        )
    if feature.max_length:
        ranges = ranges.newest(feature.max_length)
    times = ranges.gather(times)
    strays = not_milliseconds(times)
    if strays is not None:
        element = _first(strays)
        problem = f"an element of {feature.name!r} has time {misread(int(times[element]))}"
        raise RowError(feature.time, ranges.row_of(element), problem)
    ages = np.repeat(timestamps, ranges.lengths)
    ages -= times
    if ages.size and ages.min() <= 0:
        element = _first(ages <= 0)
        row = ranges.row_of(element)
        raise RowError(
            feature.time,
            row,
            f"an element of {feature.name!r} has time {times[element]}, the event {timestamps[row]}: it looks at the "
            f"future. Histories hold strictly earlier elements only",
        )
    falls = times[1:] < times[:-1]
    ends = np.cumsum(ranges.lengths)
    falls[ends[(ends > 0) & (ends < len(times))] - 1] = False  # from one row to the next the time may fall
    if falls.any():
        row = ranges.row_of(_first(falls))
        raise RowError(feature.time, row, f"the times of {feature.name!r} decrease; sort each list oldest first")
    return age_buckets(ages)


def _dense(schema: Schema, columns: Columns, rows: int) -> dict[str, torch.Tensor]:
    dense = {}
    for owner in dict.fromkeys(feature.owner for feature in schema.features):
        features = [feature for feature in schema.owned_by(owner) if feature.kind in ("dense", "vector")]
        if not features:
            continue
        matrix = np.zeros((rows, sum(feature.width or 1 for feature in features)), dtype=np.float32)
        column = 0
        for feature in features:
            width = feature.width or 1
            array = columns[feature.name]
            if feature.kind == "dense":
                matrix[:, column] = _numpy(array)
            else:
                _fill_vectors(matrix[:, column : column + width], array, feature)
            _check_finite(matrix[:, column : column + width], feature)
            column += width
        dense[owner] = torch.from_numpy(matrix)
    return dense


def _fill_vectors(target: NDArray[np.float32], array: pa.ListArray, feature: Feature) -> None:
    """Write the rows that have a vector into `target` [B, width]; null and empty lists leave zeros."""
    offsets = array.offsets.to_numpy()
    lengths = np.diff(offsets)
    if array.null_count:
        lengths[array.is_null().to_numpy(zero_copy_only=False)] = 0
    wrong = (lengths != 0) & (lengths != feature.width)
    if wrong.any():
        row = _first(wrong)
        raise RowError(
            feature.name, row, f"the vector has {lengths[row]} numbers, the schema says width = {feature.width}"
        )
    present = np.flatnonzero(lengths)
    target[present] = _numpy(array.values)[offsets[:-1][present, None] + np.arange(feature.width)]


def _check_finite(matrix: NDArray[np.float32], feature: Feature) -> None:
    """Turn NaN into 0 in place and refuse infinities."""
    if np.isfinite(matrix).all():
        return
    infinite = np.argwhere(np.isinf(matrix))
    if len(infinite):
        row = int(infinite[0, 0])
        raise RowError(feature.name, row, "the number is infinite as float32; clip it, or leave it null if unknown")
    np.nan_to_num(matrix, copy=False)
