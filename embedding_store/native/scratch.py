"""Memory for arrays that come and go by megabytes: the kernel would empty every page of each anew.

What builds an index makes some arrays of a run's size for every run. Fresh pages were a quarter of its processor time.
"""

from __future__ import annotations

import weakref
from collections import defaultdict, deque
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

_LEAST, _MOST = 1 << 17, 8 << 20
"""Bytes: less is kept by the allocator anyhow, more by nobody."""
_KEPT = 8
"""Of a size; 128 MiB in all."""

_kept: defaultdict[int, deque[np.ndarray]] = defaultdict(partial(deque, maxlen=_KEPT))
"""Buffers, uint8, by their size, a power of 2. A deque's ends are safe among threads."""


def empty(count: int, dtype: DTypeLike) -> np.ndarray:
    """As `np.empty`, in memory that goes to the next one when the array and all of its views are gone."""
    size = count * np.dtype(dtype).itemsize
    if not _LEAST <= size <= _MOST:
        return np.empty(count, dtype)
    buffer = _taken(1 << (size - 1).bit_length())
    # Over a memoryview, its `data`, so that views of the array keep the array, and not only the buffer, alive.
    array: np.ndarray[Any, Any] = np.frombuffer(buffer.data[:size], dtype)
    weakref.finalize(array, _kept[len(buffer)].append, buffer).atexit = False
    return array


def _taken(size: int) -> np.ndarray:
    try:
        return _kept[size].pop()
    except IndexError:
        return np.empty(size, np.uint8)
