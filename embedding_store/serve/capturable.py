"""A live table whose lookups can be captured in CUDA graphs.

live = CapturableLiveTable(store.series("user_ctr"), tag="prod", device="cuda")
live.lookup(ids)                     # once before capturing, as for every kernel
with torch.cuda.graph(graph):
    vectors, found = live.lookup(ids)
graph.replay()                       # of the version that is served when the replay comes to it
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from embedding_store.arguments import real
from embedding_store.errors import InvalidArgumentError
from embedding_store.read.snapshot import Snapshot
from embedding_store.read.table import Table
from embedding_store.series import Series
from embedding_store.serve.live import Generation, LiveTable
from embedding_store.serve.slots import Slots


@dataclass(frozen=True)
class Reading:
    """What `CapturableLiveTable.reading` gives."""

    tables: Mapping[str, Table]
    """Of every series, all of one version, for lookups inside of the block. What a replay of captured lookups reads is
    of the version that is served then, whatever `manifest` says; nor does that count where a swap falls into the
    beginning of the block: `version` does."""
    version: Tensor
    """int64 [] on the device: which one that is."""


class CapturableLiveTable(LiveTable):
    """As LiveTable, with memory for two versions of every series whose addresses stay, so that a captured lookup reads
    the version that is served when it is replayed, not the one that was when it was captured.

    A lookup, or a block of `reading`, is of one version from its first operation on the stream to its last one, as
    native/gate.py explains: the next version but one waits until all of these have ended. It costs two small kernels.

    Versions are loaded while graphs are captured and replayed by other threads, which are not disturbed: what the
    loading thread does is excepted from captures, see native/gpu.py. Keep the table as long as a graph that reads it,
    and until its last replay has ended.

    A version that takes more than a slot is refused, and `status.error` says how much it takes; the present one stays.
    `tables` is not offered, since memory that it handed out would change: use `reading`.

    Args:
        series, tag, interval: as LiveTable.
        device: where the vectors are served from. On the CPU vectors are copied too, which is of use for tests alone.
        headroom: how much more memory a slot has than its series' first version takes, as a share of that.

    Raises:
        DeviceMemoryError: the device has no memory for two slots.
        StoreError: as LiveTable.
    """

    def __init__(
        self,
        series: Series | Mapping[str, Series],
        *,
        tag: str | None = None,
        interval: float = 5.0,
        device: torch.device | str = "cuda",
        headroom: float = 0.25,
    ) -> None:
        self._headroom = real(headroom, "headroom", "0 or more, at most 10", least=0, most=10)
        self._slots: Slots | None = None
        super().__init__(series, tag=tag, interval=interval, device=device)

    def lookup(self, ids: Any, out_dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
        """`Table.lookup` in the version that is served when it runs, for one series. Raises as LiveTable's."""
        if len(self._series) != 1:
            names = ", ".join(self._series)
            raise InvalidArgumentError(f"this CapturableLiveTable follows {names}: use reading().tables[name].lookup")
        with self.reading() as reading:
            (table,) = reading.tables.values()
            return table.lookup(ids, out_dtype)

    @contextmanager
    def reading(self) -> Iterator[Reading]:
        """For several lookups of one version, captured in one graph or not, all on the stream that is current at the
        block's beginning and its end. The next version but one waits for the end: keep the block short."""
        assert self._slots is not None  # the first version is loaded
        manifests = {name: table.manifest for name, table in self._generation.tables.items()}
        with self._slots.reading(manifests) as (tables, version):
            yield Reading(tables, version)

    def tables(self) -> Mapping[str, Table]:
        """Raises InvalidArgumentError: see `reading`."""
        raise InvalidArgumentError("tables of a CapturableLiveTable change: use `with live.reading() as reading`")

    def _load_tables(
        self, snapshots: Mapping[str, Snapshot], go_on: Callable[..., bool] | None, *, background: bool
    ) -> Mapping[str, Table]:
        if self._slots is None:
            self._slots = Slots(self._device, tuple(snapshots), self._headroom)
        return self._slots.fill(snapshots, go_on, background=background)

    def _serve(self, generation: Generation) -> None:
        assert self._slots is not None  # they hold the generation
        self._slots.serve(generation.tables)
        super()._serve(generation)
