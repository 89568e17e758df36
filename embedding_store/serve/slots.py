"""Two places of fixed addresses for the versions of several series, one being read while the other is filled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from embedding_store.errors import DeviceMemoryError, InvalidArgumentError, SlotBusyError
from embedding_store.format.manifest import Manifest
from embedding_store.native import gate, gpu
from embedding_store.native.layout import LAYOUT_HEADER
from embedding_store.read.copying import StoppedError
from embedding_store.read.snapshot import Snapshot
from embedding_store.read.table import Table

PATIENCE = 10.0
"""Seconds for which a version waits for those who still read the one before the present one."""

_ALIGNMENT = 256  # bytes: of a slot
_NUMBERS = LAYOUT_HEADER + 4 + 4  # of a layout of one segment, with or without an overlay


class SlotTable(Table):
    """A table in a slot, for the length of one `Slots.reading`."""

    def __init__(self, manifest: Manifest, storage: Tensor, layout: Tensor) -> None:
        super().__init__(manifest, storage, layout, host_layout=layout)  # the numbers are known where they are used
        self.open = True

    def ids(self) -> Tensor:
        """As of `Table`, inside of the block."""
        self._refuse_when_closed()
        return super().ids()

    @property
    def storage(self) -> Tensor:
        """Not offered, since several versions lie there, each for a time. Raises InvalidArgumentError."""
        raise InvalidArgumentError("storage of a CapturableLiveTable changes: take that of Snapshot.load()")

    def _check(self, ids: Any, out_dtype: torch.dtype) -> None:
        self._refuse_when_closed()
        super()._check(ids, out_dtype)

    def _lookup_pooled(
        self, ids: Tensor, offsets: Tensor, weights: Tensor | None, mode: str, out_dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        if weights is not None and weights.requires_grad and torch.is_grad_enabled():
            raise InvalidArgumentError(
                "weights require grad, and backward would look up again when another version may be here: detach() "
                "them, or use LiveTable.tables()"
            )
        return super()._lookup_pooled(ids, offsets, weights, mode, out_dtype)

    def _refuse_when_closed(self) -> None:
        if not self.open:
            raise InvalidArgumentError(
                "the block of reading() has ended: look up inside of it, another version may come"
            )


class Slots:
    """For each series memory for two versions; native/gate.py says how readers and the writer share them.

    Args:
        device: where; of a GPU with its number.
        names: of the series.
        headroom: how much more a slot holds than its series' first version, as a share of that.
    """

    def __init__(self, device: torch.device, names: tuple[str, ...], headroom: float) -> None:
        self._device = device
        self._names = names
        self._headroom = headroom
        self._storages: dict[str, Tensor] = {}  # uint8 [2 * capacity]
        width = len(names) * _NUMBERS + 1  # the layouts of all series, side by side, and the version
        with self._writing():
            numbers = gpu.device_memory(_ALIGNMENT + 2 * 8 * width, device).zero_()
            self._gate = numbers[: 3 * 8].view(torch.int64)
            self._rows = numbers[_ALIGNMENT:].view(torch.int64).view(2, width)
        self._filled: dict[int, tuple[list[str], dict[str, Table]]] = {}  # slot -> contents and tables

    def fill(
        self, snapshots: Mapping[str, Snapshot], go_on: Callable[..., bool] | None, *, background: bool
    ) -> dict[str, Table]:
        """Copy a version of every series into the slot that is not served; nobody reads them before `serve`.

        Raises:
            DeviceMemoryError: a version takes more than a slot has, or the device for two slots.
            SlotBusyError: who began to read the slot when it was served has not ended.
            StoppedError: `go_on` said so.
            StoreError: as Snapshot.load_checked.
        """
        with torch.inference_mode(False):  # as in `_writing`
            return self._fill(snapshots, go_on, background)

    def _fill(
        self, snapshots: Mapping[str, Snapshot], go_on: Callable[..., bool] | None, background: bool
    ) -> dict[str, Table]:
        with self._writing():
            slot = 1 - int(self._gate[0].item())  # the gate alone knows, if what called `serve` was interrupted
        versions = [snapshots[name] for name in self._names]
        # A later version may have the very bytes of this one, but a number, a time and a space of its own.
        contents = [f"{one.version} {one.manifest.content}" for one in versions]
        if slot in self._filled and self._filled[slot][0] == contents:  # a tag that moves back
            return self._filled[slot][1]
        self._await_readers(slot, go_on)
        self._filled.pop(slot, None)
        tables, numbers = {}, list[int]()
        for name in self._names:
            memory = self._memory(name, slot)
            table = snapshots[name].load_checked(self._device, go_on, background=background, memory=memory)
            numbers += _moved(table.host_layout.tolist(), slot * (len(self._storages[name]) // 2))
            tables[name] = table
        with self._writing():
            self._rows[slot] = torch.tensor([*numbers, snapshots[self._names[0]].version])
        self._filled[slot] = contents, tables
        return tables

    def serve(self, tables: Mapping[str, Table]) -> None:
        """Whoever begins to read now reads these, which `fill` gave."""
        [slot] = [slot for slot, (_, filled) in self._filled.items() if filled is tables]
        with self._writing():
            self._gate[0] = slot

    @contextmanager
    def reading(self, manifests: Mapping[str, Manifest]) -> Iterator[tuple[dict[str, SlotTable], Tensor]]:
        """Tables of one version, the present one, and its number, int64 [], for the length of a block."""
        tables = dict[str, SlotTable]()
        row = gate.enter(self._gate, self._rows)
        try:
            for i, name in enumerate(self._names):
                layout = row[i * _NUMBERS : (i + 1) * _NUMBERS]
                tables[name] = SlotTable(manifests[name], self._storages[name], layout)
            yield tables, row[-2]
        finally:
            for table in tables.values():
                table.open = False
            gate.leave(self._gate, row)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Aside, and done at the end; outside of inference mode, whose tensors nobody outside of it could change."""
        with torch.inference_mode(False), gpu.aside(self._device):
            yield

    def _await_readers(self, slot: int, go_on: Callable[..., bool] | None) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            with self._writing():
                readers = self._gate[1 + slot].item()
            if not readers:
                return
            if go_on is not None and not go_on():
                raise StoppedError
            if time.monotonic() >= deadline:
                raise SlotBusyError(
                    f"{readers} lookups or blocks of reading() that began before the version last changed have not "
                    f"ended after {PATIENCE} seconds: end them, the next version needs their place"
                )
            time.sleep(0.001)

    def _memory(self, name: str, slot: int) -> Callable[[int, torch.device], Tensor]:
        """Gives the slot's memory for a series."""

        def memory(count: int, device: torch.device) -> Tensor:
            if name not in self._storages:
                self._storages[name] = self._two_slots(name, count, device)
            both = self._storages[name]
            capacity = len(both) // 2
            if count > capacity:
                raise DeviceMemoryError(
                    f"the version of {name} takes {count} bytes, a slot has {capacity}: make a new CapturableLiveTable "
                    f"for it, or one with more headroom than {self._headroom}, and capture anew"
                )
            return both[slot * capacity :][:count]

        return memory

    def _two_slots(self, name: str, count: int, device: torch.device) -> Tensor:
        """uint8 [2 * capacity], for versions of `count` bytes, and of more by the headroom."""
        capacity = -(-int(count * (1 + self._headroom)) // _ALIGNMENT) * _ALIGNMENT
        try:
            return gpu.device_memory(2 * capacity, device)
        except DeviceMemoryError as error:
            raise DeviceMemoryError(
                f"two slots for {name}, whose version takes {count} bytes, are not to be had ({error.lack}): free "
                f"some, give less headroom than {self._headroom}, or use a LiveTable, which takes gpu_bytes"
            ) from None


def _moved(layout: list[int], by: int) -> list[int]:
    """The numbers of a layout, its offsets further on, as many as there is room for."""
    segments = layout[4]
    columns = [LAYOUT_HEADER + 4 * segment + column for segment in range(segments) for column in range(3)]
    overlay = [LAYOUT_HEADER + 4 * segments] if layout[6] else []
    offsets = {place for place in (0, *columns, *overlay) if layout[place] >= 0}
    return [number + by * (place in offsets) for place, number in enumerate(layout)] + [0] * (_NUMBERS - len(layout))
