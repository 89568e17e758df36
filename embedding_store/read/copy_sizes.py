"""What a copy of a snapshot takes on a device: see upload.py."""

from __future__ import annotations

from embedding_store.dtypes import DTYPES, Dtype
from embedding_store.format.index import HEADER_BYTES
from embedding_store.format.manifest import IndexFile, Manifest
from embedding_store.native.layout import SCALE_BYTES

ALIGNMENT = 256  # bytes: where columns begin in a copy
_ROW_ALIGNMENT = 8  # of quantised rows: a GPU's lane reads so many bytes of one at once


def aligned(count: int) -> int:
    """`count` bytes, up to where the next column may begin."""
    return -(-count // ALIGNMENT) * ALIGNMENT


def copied_row_bytes(dtype: Dtype, dim: int) -> int:
    """From a row to the next one; of a quantised one scale and offset lie in front of its values."""
    values = dtype.width(dim) * dtype.torch_dtype.itemsize
    return -(-(SCALE_BYTES + values) // _ROW_ALIGNMENT) * _ROW_ALIGNMENT if dtype.quantised else values


def copied_bytes(manifest: Manifest) -> int:
    """Of a whole copy: the indexes, and a row for each id."""
    rows = manifest.rows * copied_row_bytes(DTYPES[manifest.dtype], manifest.dim)
    return sum(aligned(_bucket_bytes(index)) for index in manifest.indexes) + rows


def _bucket_bytes(index: IndexFile) -> int:
    return sum(piece.bytes for piece in index.pieces) - HEADER_BYTES
