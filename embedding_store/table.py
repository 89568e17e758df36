"""A loaded snapshot: ids -> vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from embedding_store import reference
from embedding_store.dtypes import Encoded, dtype_named
from embedding_store.errors import InvalidIdsError

if TYPE_CHECKING:
    from embedding_store.snapshot import Snapshot


class Table:
    """The vectors of one snapshot on one device, made by `Snapshot.load`. It never changes, whatever is published."""

    def __init__(
        self,
        snapshot: Snapshot,
        index_ids: Tensor,  # int64 [R], ascending
        index_rows: Tensor,  # int64 [R]
        segments: Sequence[Encoded],  # R rows in all
    ) -> None:
        self.snapshot = snapshot
        self._index_ids = index_ids
        self._index_rows = index_rows
        self._segments = segments
        self._dtype = dtype_named(snapshot.dtype)

    def lookup(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors of `ids`, int64 of any shape [...] and any value, on the table's device.

        Returns:
            vectors float32 [..., D] and found bool [...]. A missing id has zeros and False; repeated ids are fine.

        Raises:
            InvalidIdsError: ids are not an int64 tensor on the table's device.
        """
        if not isinstance(ids, Tensor) or ids.dtype != torch.int64:
            kind = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
            raise InvalidIdsError(f"ids are {kind}: give an int64 tensor, say ids.to(torch.int64)")
        if ids.device != self.device:
            raise InvalidIdsError(f"ids are on {ids.device}, the table is on {self.device}: move one of them")
        flat = ids.reshape(-1).contiguous()
        vectors, found = reference.lookup(
            flat, self._index_ids, self._index_rows, self._segments, self.dim, self._dtype
        )
        return vectors.view(*ids.shape, self.dim), found.view(ids.shape)

    def ids(self) -> Tensor:
        """A copy of all ids, int64 [R], ascending."""
        return self._index_ids.clone()

    @property
    def dim(self) -> int:
        """D."""
        return self.snapshot.dim

    @property
    def device(self) -> torch.device:
        """Where the vectors are, and ids must be."""
        return self._index_ids.device

    def __len__(self) -> int:
        return self.snapshot.rows

    def __repr__(self) -> str:
        return f"Table({self.snapshot!r}, device={str(self.device)!r})"
