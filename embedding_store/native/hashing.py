"""Text hashed natively: BLAKE2b over many texts that lie one after the other, as Arrow has them."""

from __future__ import annotations

import ctypes

import numpy as np

from embedding_store.native.library import library


def hash_texts(
    offsets: np.ndarray,  # int64 [N + 1]
    text: np.ndarray,  # uint8 [bytes]
) -> np.ndarray:
    """BLAKE2b's digests of 8 bytes of text[offsets[i] : offsets[i + 1]] as little-endian numbers, int64 [N].

    Raises:
        ValueError: a text that ends before it starts, or outside of `text`.
    """
    offsets, text = np.ascontiguousarray(offsets, np.int64), np.ascontiguousarray(text, np.uint8)
    ids = np.empty(len(offsets) - 1, np.int64)
    function = library().embedding_store_hash_keys
    function.restype = ctypes.c_int64
    wrong = function(
        ctypes.c_void_p(offsets.ctypes.data),
        ctypes.c_int64(len(ids)),
        ctypes.c_void_p(text.ctypes.data),
        ctypes.c_int64(len(text)),
        ctypes.c_void_p(ids.ctypes.data),
    )
    if wrong >= 0:
        span = f"{offsets[wrong]} .. {offsets[wrong + 1]}"
        raise ValueError(f"text {wrong} lies at {span}, expected ascending offsets of 0 .. {len(text)}")
    return ids
