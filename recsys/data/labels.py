"""What a row's labels say, and how much it weighs: the columns of an event that are there to be learned from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.data.errors import RowError
from recsys.data.schema import Label

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


def read_labels(labels: Sequence[Label], columns: Mapping[str, pa.Array], rows: int) -> tuple[Floats, Bools]:
    """Labels and where they exist, both [B, T]; a label is 0 where it does not.

    Raises:
        RowError: a value that a label cannot have.
    """
    values = np.zeros((rows, len(labels)), dtype=np.float32)
    mask = np.ones((rows, len(labels)), dtype=np.bool_)
    for index, label in enumerate(labels):
        if label.valid:
            mask[:, index] = _binary(columns[label.valid], label.valid, mask[:, index]) == 1
        read = _value if label.is_value else _binary
        values[:, index] = read(columns[label.name], label.name, mask[:, index])
    return values, mask


def read_weights(array: pa.Array, name: str) -> Floats:
    """Weights [B].

    Raises:
        RowError: one that is null, NaN, infinite or below 0.
    """
    found = _numbers(array)
    wrong = ~(np.isfinite(found) & (found >= 0))
    if wrong.any():
        row = _first(wrong)
        raise RowError(name, row, f"the weight is {_said(found[row])}; it must be a number of 0 or more: correct it")
    return found.astype(np.float32)


def _binary(array: pa.Array, name: str, valid: Bools) -> Floats:
    """A 0 / 1 column, 0 where not valid; what it holds there does not matter."""
    found = _numbers(array)
    wrong = (found != 0) & (found != 1) & valid
    if wrong.any():
        row = _first(wrong)
        raise RowError(
            name,
            row,
            f"the label is {_said(found[row])}; it must be 0 or 1. Where it means nothing, name a 0 / 1 column in "
            "`valid`",
        )
    return np.where(valid, found, np.float32(0))


def _value(array: pa.Array, name: str, valid: Bools) -> Floats:
    """A column of numbers of 0 or more, 0 where not valid; what it holds there does not matter."""
    found = _numbers(array)
    wrong = ~(np.isfinite(found) & (found >= 0)) & valid
    if wrong.any():
        row = _first(wrong)
        raise RowError(
            name,
            row,
            f"the label is {_said(found[row])}; a value must be a finite number of 0 or more. Where it means nothing, "
            "name a 0 / 1 column in `valid`",
        )
    return np.where(valid, found, np.float32(0))


def _numbers(array: pa.Array) -> Floats:
    return (array.fill_null(np.nan) if array.null_count else array).to_numpy()


def _said(value: np.float32) -> str:
    return "null or NaN" if np.isnan(value) else f"{value:g}"


def _first(mask: Bools) -> int:
    return int(np.argmax(mask))
