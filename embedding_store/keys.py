"""Text as ids: strings and UUIDs by a 64-bit hash that is the same everywhere and always."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from embedding_store.errors import HashCollisionError, InvalidIdsError
from embedding_store.native.hashing import hash_texts


def hash_keys(
    keys: Any,  # [N] strings or UUIDs: a sequence, a NumPy array or an Arrow string array
) -> Tensor:
    """The ids of keys in a series of `ids="text"`, int64 [N]. A UUID is its 36 characters in lower case.

    An id is BLAKE2b's 8-byte digest of the UTF-8 text as a little-endian signed number.

    Raises:
        InvalidIdsError: an element that is neither text nor a UUID, or text that is not Unicode.
    """
    return hash_array(key_array(keys))


def key_array(keys: Any) -> pa.LargeStringArray:
    """Keys of any accepted form as an Arrow array, large_string [N]. Raises InvalidIdsError."""
    if isinstance(keys, pa.ChunkedArray):
        keys = keys.combine_chunks()
    if isinstance(keys, pa.Array) and (pa.types.is_string(keys.type) or pa.types.is_large_string(keys.type)):
        keys = keys.cast(pa.large_string())
    else:
        keys = _from_elements(keys)
    if keys.null_count:
        raise InvalidIdsError(f"keys have {keys.null_count} nulls: every row needs a key")
    return keys


def hash_array(
    keys: pa.LargeStringArray,  # [N], no nulls
) -> Tensor:
    """int64 [N]."""
    if not len(keys):
        return torch.empty(0, dtype=torch.int64)
    _, offsets, text = keys.buffers()
    spans = np.frombuffer(offsets, np.int64)[keys.offset : keys.offset + len(keys) + 1]
    return torch.from_numpy(hash_texts(spans, np.frombuffer(text or b"", np.uint8)))


def check_same_keys(
    ids: np.ndarray,  # int64 [N]
    keys: pa.Array,  # [N]
    others: pa.Array,  # [N]
) -> None:
    """Raise HashCollisionError if two keys of one hash differ."""
    for id, key, other in zip(ids.tolist(), keys.to_pylist(), others.to_pylist(), strict=True):
        if key != other:
            message = f"keys {key!r} and {other!r} have the same 64-bit hash, {id}: rename one of them"
            raise HashCollisionError(message)


def _from_elements(keys: Iterable[Any]) -> pa.LargeStringArray:
    if isinstance(keys, (str, bytes)) or not isinstance(keys, (Sequence, np.ndarray, pa.Array)):
        raise InvalidIdsError(f"keys are {type(keys).__name__}: give a list or an array of strings or UUIDs")
    elements = keys.to_pylist() if isinstance(keys, pa.Array) else list(keys)
    for position, key in enumerate(elements):
        if not isinstance(key, (str, UUID)):
            message = f"key {position} is {key!r}, a {type(key).__name__}: give a string or a UUID"
            raise InvalidIdsError(message)
    try:
        return pa.array([str(key) for key in elements], pa.large_string())
    except (pa.ArrowInvalid, UnicodeEncodeError) as error:  # a lone surrogate
        raise InvalidIdsError(f"keys hold text that is not Unicode: {error}") from None
