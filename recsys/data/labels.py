"""What a row's labels say, and how much it weighs: the columns of an event that are there to be learned from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.data.errors import RowError
from recsys.data.schema import Label
from recsys.dates import misread, not_milliseconds

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

_MEANS_NOTHING = "Where it means nothing, name a 0 / 1 column in `valid`"


class Labels(NamedTuple):
    """Of B rows."""

    values: Floats  # [B, T], 0 where a label does not exist
    mask: Bools  # [B, T]
    elapsed: Floats | None  # [B, T], see `Batch.elapsed`
    delays: Ints  # [B, T], how long after its row an outcome came, ms, known by then or not; -1: it has not, or no time


def read_labels(
    labels: Sequence[Label], columns: Mapping[str, pa.Array], timestamps: Ints, as_of: int | None
) -> Labels:
    """Labels as they were known at a time; None: as they stand.

    Where a label waits, rows whose window has not ended do not exist, those with an outcome neither: else of the newest
    rows the outcomes alone would count.

    Raises:
        RowError: a value that a label cannot have, or the time of an outcome that contradicts it.
    """
    rows = len(timestamps)
    values = np.zeros((rows, len(labels)), dtype=np.float32)
    mask = np.ones((rows, len(labels)), dtype=np.bool_)
    elapsed = np.ones((rows, len(labels)), dtype=np.float32)
    delays = np.full((rows, len(labels)), -1)
    corrected = as_of is not None and any(label.delayed == "corrected" for label in labels)
    for index, label in enumerate(labels):
        if label.valid:
            mask[:, index] = _binary(columns[label.valid], label.valid, mask[:, index]) == 1
        read = _value if label.is_value else _binary
        values[:, index] = read(columns[label.name], label.name, mask[:, index])
        if not label.time:
            continue
        delays[:, index] = _delays(columns[label.time], label, timestamps, values[:, index], mask[:, index])
        values[delays[:, index] > label.window_ms, index] = 0
        if as_of is None:
            continue
        ages = as_of - timestamps
        values[delays[:, index] > ages, index] = 0
        if label.delayed == "wait":
            mask[:, index] &= ages >= label.window_ms
            values[:, index] *= mask[:, index]
        elif label.delayed == "corrected":
            elapsed[:, index] = np.clip(ages / label.window_ms, 0, 1)
    return Labels(values, mask, elapsed if corrected else None, delays)


def _delays(array: pa.Array, label: Label, timestamps: Ints, values: Floats, mask: Bools) -> Ints:
    """How long after its row each outcome came, ms [B]; -1 where none has come, or the label does not exist."""
    none = array.is_null().to_numpy(zero_copy_only=False) | ~mask
    times = np.where(none, timestamps - 1, (array.fill_null(0) if array.null_count else array).to_numpy())
    delays = times - timestamps
    strays = not_milliseconds(times[~none])
    contradictions = (
        (none & (values > 0), "its label is {value:g}, but no time says when that came: give the time"),
        (~none & (delays < 0), "its time is {time}, before the event's own, {row}: correct one of them"),
        (
            ~none & (values == 0) & (delays >= 0) & (delays <= label.window_ms),
            "its label is 0, but its time is {time}, within the window of {window} after {row}: an outcome that came "
            "has its label, one that did not has no time",
        ),
    )
    if strays is not None:
        row = int(np.flatnonzero(~none)[_first(strays)])
        raise RowError(label.time, row, f"the outcome's time is {misread(int(times[row]))}")
    for wrong, problem in contradictions:
        if wrong.any():
            row = _first(wrong)
            said = problem.format(value=values[row], time=times[row], row=timestamps[row], window=label.window)
            raise RowError(label.time, row, said)
    return delays


def read_weights(array: pa.Array, name: str) -> Floats:
    """Weights [B].

    Raises:
        RowError: one that is null, NaN, infinite or below 0.
    """
    found = _numbers(array)
    wrong = ~(np.isfinite(found) & (found >= 0))
    _refuse(name, "weight", found, wrong, "it must be a number of 0 or more: correct it")
    return found.astype(np.float32)


def _binary(array: pa.Array, name: str, valid: Bools) -> Floats:
    """A 0 / 1 column, 0 where not valid; what it holds there does not matter."""
    found = _numbers(array)
    wrong = (found != 0) & (found != 1) & valid
    _refuse(name, "label", found, wrong, f"it must be 0 or 1. {_MEANS_NOTHING}")
    return np.where(valid, found, np.float32(0))


def _value(array: pa.Array, name: str, valid: Bools) -> Floats:
    """A column of numbers of 0 or more, 0 where not valid; what it holds there does not matter."""
    found = _numbers(array)
    wrong = ~(np.isfinite(found) & (found >= 0)) & valid
    _refuse(name, "label", found, wrong, f"a value must be a finite number of 0 or more. {_MEANS_NOTHING}")
    return np.where(valid, found, np.float32(0))


def _numbers(array: pa.Array) -> Floats:
    return (array.fill_null(np.nan) if array.null_count else array).to_numpy()


def _refuse(name: str, what: str, found: Floats, wrong: Bools, remedy: str) -> None:
    """Raise RowError for the first row that is wrong, if any is."""
    if wrong.any():
        row = _first(wrong)
        said = "null or NaN" if np.isnan(found[row]) else f"{found[row]:g}"
        raise RowError(name, row, f"the {what} is {said}; {remedy}")


def _first(mask: Bools) -> int:
    return int(np.argmax(mask))
