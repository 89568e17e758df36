"""Numbers that stored bytes and native code share; in C++ they stand in csrc/common/index.h."""

ROW_BITS = 40
"""A location is segment << ROW_BITS | row."""
BUCKET_BYTES = 64
"""Of a bucket of the index."""
LAYOUT_HEADER = 8
"""Numbers of a table's layout before those of its segments: see ops.py."""
