"""What was known of an entity strictly before a time: its earlier values and how many they were.

Features made of past events (clicked items, activity counts) must never see their own row, a row of the same
millisecond, or a later one. Every dataset reader therefore takes them from here. Nothing loops over rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class History:
    """N jagged lists, each in time order, oldest first."""

    offsets: NDArray[np.int64]  # [N + 1]
    values: NDArray  # [offsets[-1]]
    times: NDArray[np.int64]  # [offsets[-1]], the time of each value

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Elements of each list, [N]."""
        return np.diff(self.offsets)

    def to_arrow(self) -> tuple[pa.ListArray, pa.ListArray]:
        """The lists of values and of times, as two columns of N rows.

        Raises:
            ValueError: 2^31 or more elements, which an Arrow list column cannot address.
        """
        total = int(self.offsets[-1])
        if total >= 2**31:
            raise ValueError(f"the history has {total} elements; a column holds fewer than 2^31: query fewer rows")
        offsets = pa.array(self.offsets, pa.int32())
        return (
            pa.ListArray.from_arrays(offsets, pa.array(self.values)),
            pa.ListArray.from_arrays(offsets, pa.array(self.times)),
        )


class PastEvents:
    """A log of (entity, time, value), indexed once and asked any number of times for what came before.

    Ask in pieces (a day, a file) where all answers together would not fit into memory. Values of one entity and equal
    time stay in the order in which they were given. To carry several values along, store row numbers and gather.

    Args:
        entity: int64 [M], any ids.
        time: int64 [M], any order.
        value: [M], of any dtype.
        kept: bool [M], the events that enter; None keeps all.

    Raises:
        ValueError: the arrays differ in length or are not one-dimensional.
    """

    def __init__(self, entity: ArrayLike, time: ArrayLike, value: ArrayLike, kept: ArrayLike | None = None) -> None:
        columns = {"entity": np.asarray(entity), "time": np.asarray(time), "value": np.asarray(value)}
        if kept is not None:
            columns["kept"] = np.asarray(kept, dtype=bool)
        _check_columns(columns)
        if kept is not None:
            columns = {name: column[columns["kept"]] for name, column in columns.items()}
        self._entities, code = np.unique(columns["entity"], return_inverse=True)
        self._distinct_times, rank = np.unique(columns["time"], return_inverse=True)
        # One integer that orders by (entity, time): both factors are at most M, so it fits for M < 3e9.
        key = code.astype(np.int64) * (len(self._distinct_times) + 1) + rank
        order = np.argsort(key, kind="stable")
        self._key = key[order]
        self._value = columns["value"][order]
        self._time = columns["time"][order].astype(np.int64)

    def before(self, entity: ArrayLike, time: ArrayLike, max_length: int) -> History:
        """For each query the `max_length` most recent values of its entity with a time strictly before its own.

        Args:
            entity: int64 [N].
            time: int64 [N], any order.
            max_length: 1 or more.

        Raises:
            ValueError: `max_length` is below 1, or the arrays differ in length.
        """
        if max_length < 1:
            raise ValueError(f"max_length is {max_length}; use 1 or more")
        begin, end = self._ranges(entity, time)
        begin = np.maximum(begin, end - max_length)
        lengths = end - begin
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        rows = np.arange(offsets[-1]) + np.repeat(begin - offsets[:-1], lengths)
        return History(offsets, self._value[rows], self._time[rows])

    def count_before(self, entity: ArrayLike, time: ArrayLike) -> NDArray[np.int64]:
        """For each query the number of its entity's events with a time strictly before its own, int64 [N].

        A window's count is a difference: `count_before(e, t) - count_before(e, t - width)` counts [t - width, t).

        Raises:
            ValueError: the arrays differ in length.
        """
        begin, end = self._ranges(entity, time)
        return end - begin

    def _ranges(self, entity: ArrayLike, time: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        columns = {"entity": np.asarray(entity), "time": np.asarray(time)}
        _check_columns(columns)
        code = np.searchsorted(self._entities, columns["entity"])
        known = code < len(self._entities)
        known[known] = self._entities[code[known]] == columns["entity"][known]
        first = code.astype(np.int64) * (len(self._distinct_times) + 1)
        begin = np.searchsorted(self._key, first)
        end = np.searchsorted(self._key, first + np.searchsorted(self._distinct_times, columns["time"]))
        return begin, np.where(known, end, begin)


def _check_columns(columns: dict[str, NDArray]) -> None:
    shapes = {name: column.shape for name, column in columns.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"the columns have shapes {shapes}; give one-dimensional arrays of equal length")
