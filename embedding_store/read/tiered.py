"""A table in two places: frequent rows in GPU memory, the others in pinned host memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from embedding_store.format.manifest import Manifest
from embedding_store.native import ops
from embedding_store.read.table import Table
from embedding_store.read.upload import Tiered


@dataclass(frozen=True)
class Hits:
    """Where a tiered table found the ids it was asked for."""

    hot: int
    """Ids whose rows are in the device's memory."""
    cold: int
    """Ids whose rows were read from host memory."""
    missing: int
    """Ids that are not in the snapshot."""

    @property
    def rate(self) -> float:
        """Share of the found ids whose rows are in the device's memory; 0 if none was found."""
        found = self.hot + self.cold
        return self.hot / found if found else 0.0


class TieredTable(Table):
    """As `Table`, with the rows in two places, made by `Snapshot.load(device, gpu_bytes=...)`.

    A lookup of hot and cold rows is one kernel; a cold row crosses the bus each time it is asked for. `hits` says
    whether the budget and `hot_ids` fit the traffic.
    """

    def __init__(self, manifest: Manifest, tiered: Tiered) -> None:
        super().__init__(manifest, tiered.storage, tiered.layout)
        self.cold = tiered.cold
        """uint8 [bytes]: the rows on the host."""
        self._readers = tiered.readers
        self._counters = torch.zeros(3, dtype=torch.int64, device=self.device)

    def hits(self) -> Hits:
        """Counts since the table was loaded or `reset_hits` was called. Waits for the device."""
        hot, cold, missing = self._counters.tolist()
        return Hits(hot, cold, missing)

    def reset_hits(self) -> None:
        """Count from 0 again."""
        self._counters.zero_()

    def _lookup(self, ids: Tensor, out_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        self._note_reader()
        storage, layout = self._lookup_storage(), self._lookup_layout()
        return ops.lookup_tiered(ids, storage, self.cold, layout, self.dim, self.dtype, out_dtype, self._counters)

    def _lookup_pooled(
        self,
        ids: Tensor,  # int64 [N]
        offsets: Tensor,  # int64 [B + 1]
        weights: Tensor | None,  # float32 [N]
        mode: str,
        out_dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        self._note_reader()
        pooled, found, hits = ops.lookup_pooled_tiered(
            ids,
            offsets,
            weights,
            self._lookup_storage(),
            self.cold,
            self._lookup_layout(),
            self.dim,
            self.dtype,
            mode,
            out_dtype,
        )
        self._counters += hits
        return pooled, found

    def _note_reader(self) -> None:
        """The memory of the cold rows stays until the kernel that is about to be launched has read them."""
        if self._readers is not None and not torch.compiler.is_compiling():
            self._readers.note()
