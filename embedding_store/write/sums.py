"""What the statistics of a snapshot are made of: sums over its vectors as they are stored."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from embedding_store.arguments import is_readable
from embedding_store.dtypes import Encoded, decode
from embedding_store.errors import InvalidVectorsError
from embedding_store.format.files import RowFormat
from embedding_store.format.manifest import Statistics
from embedding_store.native.library import library

SLAB_VALUES = (
    32_000  # converted at once: they stay in the cache, and torch does not wake its threads for fewer than 32,768
)


def slab_rows(dim: int) -> int:
    """How many rows to convert at once."""
    return max(1, SLAB_VALUES // dim)


def row_sums(
    vectors: Tensor,  # float32 [N, D]
) -> Tensor:
    """float64 [1 + D]: the sum of the L2 norms, then the sum of the vectors. One pass, one thread.

    Norms are computed in float32: a sum that is finite bounds every value; beyond float32 it is infinite, or NaN.

    Raises:
        InvalidVectorsError: another dtype or shape, or values that are not in CPU memory.
    """
    if vectors.dtype != torch.float32 or vectors.dim() != 2:
        raise InvalidVectorsError(f"vectors are {vectors.dtype} {list(vectors.shape)}: give float32 [N, D]")
    vectors = vectors.contiguous()
    sums = torch.empty(1 + vectors.shape[1], dtype=torch.float64)
    library().embedding_store_sums(
        _address(vectors), ctypes.c_int64(vectors.shape[0]), ctypes.c_int64(vectors.shape[1]), _address(sums)
    )
    return sums


def _address(tensor: Tensor) -> ctypes.c_void_p:
    if not is_readable(tensor):  # native code would follow the address all the same
        kind = f"a {type(tensor).__name__} on {tensor.device}"
        raise InvalidVectorsError(f"vectors are {kind}: give a plain tensor in CPU memory")
    return ctypes.c_void_p(tensor.data_ptr())


class Sums:
    """Collects rows for `Statistics`."""

    def __init__(self, form: RowFormat) -> None:
        self._form = form
        self._sums = torch.zeros(1 + form.dim, dtype=torch.float64)
        self.rows = 0

    def add(self, encoded: Encoded) -> None:
        """Take rows."""
        dim, dtype = self._form.dim, self._form.dtype
        slab = max(1, encoded.rows) if dtype.torch_dtype == torch.float32 else slab_rows(dim)
        for start in range(0, encoded.rows, slab):
            vectors = decode(encoded.slice(start, start + slab), dim, dtype)
            sums = row_sums(vectors)
            if not sums[0] < torch.finfo(torch.float32).max:  # values near float32's limit: slower
                norms = torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64)
                sums = torch.cat([norms.sum()[None], vectors.sum(0, dtype=torch.float64)])
            self._sums += sums
        self.rows += encoded.rows

    def numbers(self) -> tuple[float, ...]:
        """The sum of the L2 norms, then the sum of the vectors, [1 + D]: what `merge` takes."""
        return tuple(self._sums.tolist())

    def merge(self, numbers: tuple[float, ...], rows: int) -> None:
        """Take what others have collected of so many rows."""
        self._sums += torch.tensor(numbers, dtype=torch.float64)
        self.rows += rows

    def statistics(self, min_id: int | None, max_id: int | None) -> Statistics:
        """Means of all rows taken."""
        mean_norm, *mean = (self._sums / max(self.rows, 1)).tolist()
        return Statistics(rows=self.rows, mean_norm=mean_norm, mean=tuple(mean), min_id=min_id, max_id=max_id)
