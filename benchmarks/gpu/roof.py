"""The roof: what memory and the bus give, measured, and the fewest bytes that a lookup must move."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu.ids import Batch
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.timing import Clock
from embedding_store.dtypes import DTYPES
from embedding_store.native.layout import BUCKET_BYTES

SECTOR = 32  # bytes: the least that a GPU's memory gives
COPIES = 10


@dataclass(frozen=True)
class Form:
    """Of rows as they are stored and given."""

    dtype: str
    dim: int
    out: torch.dtype

    @property
    def row_bytes(self) -> int:
        """Of a stored row, scale and offset included, in whole sectors."""
        dtype = DTYPES[self.dtype]
        stored = dtype.width(self.dim) * dtype.torch_dtype.itemsize + (8 if dtype.quantised else 0)
        return -(-stored // SECTOR) * SECTOR

    @property
    def given_bytes(self) -> int:
        """Of a vector that is given."""
        return self.dim * self.out.itemsize

    def __str__(self) -> str:
        return f"{self.dtype} -> {str(self.out).removeprefix('torch.')}"


def out_of(dtype: str) -> torch.dtype:
    """What a table of this dtype is asked for: float32 of float32, else float16."""
    return torch.float32 if dtype == "float32" else torch.float16


def lookup_bytes(batch: Batch, form: Form, rows: int) -> int:
    """What a lookup must move: ids in, and of each different id a bucket of the index and, if it is there, a row; the
    vectors and whether they were found out."""
    different, found = _different(batch, rows)
    given = len(batch.ids) * (form.given_bytes + 1)
    return len(batch.ids) * 8 + different * BUCKET_BYTES + found * form.row_bytes + given


def pooled_bytes(batch: Batch, form: Form, rows: int) -> int:
    """What a pooled lookup must move: as a lookup, with a vector and a count of each bag out."""
    different, found = _different(batch, rows)
    bags = len(batch.offsets) - 1
    ids = len(batch.ids) * 8 + len(batch.offsets) * 8
    return ids + different * BUCKET_BYTES + found * form.row_bytes + bags * (form.given_bytes + 8)


def _different(batch: Batch, rows: int) -> tuple[int, int]:
    different = batch.rows.unique()
    return len(different), int((different < rows).sum())


def copy_rate(settings: Settings, clock: Clock) -> float:
    """Bytes a second that a copy within the device's memory moves, those read and those written."""
    source, target = (torch.ones(settings.copied // 8, device=settings.device) for _ in range(2))
    return 2 * source.nbytes / _seconds(clock, source, target)


def bus_rates(settings: Settings, clock: Clock) -> dict[str, float]:
    """Bytes a second that cross the bus each way, from and to page-locked memory."""
    pinned = settings.device.type == "cuda"
    host = torch.ones(settings.crossed // 4, pin_memory=pinned)
    device = torch.ones(settings.crossed // 4, device=settings.device)
    return {
        "to the device": host.nbytes / _seconds(clock, host, device),
        "to the host": host.nbytes / _seconds(clock, device, host),
    }


def _seconds(clock: Clock, source: Tensor, target: Tensor) -> float:
    def copy() -> None:
        target.copy_(source, non_blocking=True)

    copy()
    return statistics.median(clock.on_device(copy) for _ in range(COPIES)) / 1e6


class SameBytes:
    """A copy that moves as many bytes as a lookup must, half of them read: what the roof is at that size."""

    def __init__(self, moved: int, device: torch.device) -> None:
        self._source, self._target = (
            torch.zeros(max(moved // 2, 1), dtype=torch.uint8, device=device) for _ in range(2)
        )

    def __call__(self, _: Batch) -> None:
        self._target.copy_(self._source)
