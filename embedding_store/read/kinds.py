"""Ids as callers have them, and answers in kind: NumPy for NumPy, pandas and Polars, Arrow for Arrow.

pandas and Polars are not imported: their columns are known by what they can do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from embedding_store.errors import InvalidIdsError

TEXT = "ids are text: use lookup_keys(keys) in a series of text ids, or lookup(hash_keys(keys)) where they were hashed"
INTEGERS = (torch.int8, torch.int16, torch.int32, torch.uint8)
"""Besides int64; what they hold is in it too."""

Answer = Callable[[Tensor], Any]


def as_ids(ids: Any) -> tuple[Tensor, Answer]:
    """Ids of any kind that is no int64 tensor, as one, and what makes an answer of the same kind of a tensor.

    Raises:
        InvalidIdsError: text, floats, nulls, or something that is no array; says what to give.
    """
    if isinstance(ids, Tensor):
        if ids.dtype not in INTEGERS:
            raise InvalidIdsError(f"ids are {ids.dtype}: give an int64 tensor, say ids.to(torch.int64)")
        return ids.to(torch.int64), lambda answer: answer
    if isinstance(ids, (pa.Array, pa.ChunkedArray)):
        return _tensor(_from_arrow(ids)), _to_arrow
    if isinstance(ids, np.ndarray):
        return _tensor(ids), _to_numpy
    if hasattr(ids, "to_arrow"):  # Polars
        return _tensor(_from_arrow(ids.to_arrow())), _to_numpy
    if hasattr(ids, "to_numpy"):  # pandas
        if ids.isna().any():
            raise InvalidIdsError(f"ids have {int(ids.isna().sum())} nulls: leave them out, or fill them")
        return _tensor(ids.to_numpy()), _to_numpy
    raise InvalidIdsError(
        f"ids are {type(ids).__name__}: give an int64 tensor, or a NumPy, pandas, Polars or Arrow column of integers"
    )


def _from_arrow(ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    if ids.null_count:
        raise InvalidIdsError(f"ids have {ids.null_count} nulls: leave them out, or fill them")
    if isinstance(ids.type, (pa.DictionaryType,)) or not pa.types.is_primitive(ids.type):
        raise InvalidIdsError(TEXT if _is_text(ids.type) else f"ids are {ids.type}: give integers")
    return ids.to_numpy(zero_copy_only=False) if isinstance(ids, pa.Array) else ids.to_numpy()


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _tensor(ids: np.ndarray) -> Tensor:
    """int64 of the same shape; unsigned ids keep their 64 bits."""
    if ids.dtype.kind not in "iu":
        if ids.dtype.kind in "USTO":
            raise InvalidIdsError(TEXT)
        floats = " (a column with nulls is one of floats in pandas: leave them out)" if ids.dtype.kind == "f" else ""
        raise InvalidIdsError(f"ids are {ids.dtype}: give integers{floats}")
    return torch.from_numpy(np.require(ids.astype(np.int64, copy=False), requirements=["C", "W"]))


def _to_numpy(answer: Tensor) -> np.ndarray:
    if answer.dtype == torch.bfloat16:
        raise InvalidIdsError("NumPy and Arrow have no bfloat16: ask for float32 or float16, or give a tensor")
    return answer.cpu().numpy()


def _to_arrow(answer: Tensor) -> pa.Array:
    """[N, D] as fixed-size lists, [N] as it is."""
    values = _to_numpy(answer)
    flat = pa.array(values.reshape(-1))
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[-1])
