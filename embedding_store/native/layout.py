"""Numbers that stored bytes and native code share; in C++ they stand in csrc/common/index.h."""

from __future__ import annotations

import numpy as np
from torch import Tensor

ROW_BITS = 40
"""A location is segment << ROW_BITS | row."""
BUCKET_BYTES = 64
"""Of a bucket of the index."""
SLOT = np.dtype([("id", "<i8"), ("location", "<u8")])
"""An entry of it."""
LAYOUT_HEADER = 8
"""Numbers of a table's layout before those of its segments: see ops.py."""
SCALE_BYTES = 8
"""Of a row's scale and offset, which lie in front of its values in a copy: see ops.py."""
EMPTY = 2**64 - 1
"""Location of a slot of an index without an entry; as int64 -1."""
ABSENT = EMPTY - 1
"""Location in an overlay's entry of an id that the snapshot has no more; as int64 -2."""


def strides(layout: Tensor, row_bytes: int) -> tuple[int, int]:
    """Bytes from a row's values to the next row's, and from its scale or offset to the next one: see ops.py."""
    stride = int(layout[5])
    return (stride, stride) if stride > 4 else (row_bytes, 4)


def index_numbers(layout: Tensor) -> list[Tensor]:
    """The numbers of a table's index, int64 [4], and of its overlay if it has one: see ops.py."""
    return [layout[:4]] + ([layout[LAYOUT_HEADER + 4 * int(layout[4]) :]] if layout[6] else [])
