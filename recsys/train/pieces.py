"""Writing large shards piece by piece: who loads a checkpoint then holds one piece beside its own tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType

PIECE_BYTES = 16 * 2**20
"""A piece of a shard has at most this many bytes, but one row at least."""


class PiecePlanner(DefaultSavePlanner):
    """Torch's planner, but for the size of what is written at once: it would copy, and later read, whole shards."""

    def create_local_plan(self) -> SavePlan:
        """What this rank writes."""
        plan = super().create_local_plan()
        self._wholes: dict[MetadataIndex, tuple[MetadataIndex, int, int]] = {}
        self.plan = replace(plan, items=[piece for item in plan.items for piece in self._split(item)])
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Any:
        """The tensor of an item of the plan."""
        if index not in self._wholes:
            return super().lookup_object(index)
        whole, first, rows = self._wholes[index]
        return super().lookup_object(whole).narrow(0, first, rows)

    def _split(self, item: WriteItem) -> Iterator[WriteItem]:
        data = item.tensor_data
        if item.type != WriteItemType.SHARD or data is None:
            yield item
            return
        (rows, *others), (start, *offsets) = data.chunk.sizes, data.chunk.offsets
        bytes_of_row = data.properties.dtype.itemsize * torch.Size(others).numel()
        step = max(1, PIECE_BYTES // max(1, bytes_of_row))
        for first in range(0, rows, step) or (0,):
            offset, count = torch.Size((start + first, *offsets)), min(step, rows - first)
            chunk = ChunkStorageMetadata(offsets=offset, sizes=torch.Size((count, *others)))
            index = replace(item.index, offset=offset)
            self._wholes[index] = (item.index, first, count)
            yield replace(item, index=index, tensor_data=replace(data, chunk=chunk))
