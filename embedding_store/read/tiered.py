"""A table in two places: frequent rows in GPU memory, the others in pinned host memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from embedding_store.arguments import integer
from embedding_store.errors import InvalidArgumentError
from embedding_store.format.manifest import Manifest
from embedding_store.native import gpu, ops
from embedding_store.native.layout import BUCKET_BYTES, ROW_BITS, index_numbers
from embedding_store.native.library import translated_errors
from embedding_store.read.accesses import Accesses
from embedding_store.read.table import Table
from embedding_store.read.upload import Tiered

SAMPLE = 16
"""One lookup of so many is counted. On the CPU it takes 1.7 times as long (16,384 ids of 128 float32), so that all take
4 % longer."""
COUNT_BYTES = 4
"""Of a row's counter."""
_PIECE = 1 << 20  # slots of the index, or ids, at a time
_COUNTED = 1 << 29  # ids: after so many all counts are halved; of one row alone there are then less than twice as many


@dataclass(frozen=True)
class Hits:
    """Where a tiered table found the ids it was asked for."""

    hot: int
    """Ids whose rows are in the device's memory."""
    cold: int
    """Ids whose rows are in host memory."""
    missing: int
    """Ids that are not in the snapshot."""
    crossed: int
    """Rows that were read from host memory: `cold`, or less, where a GPU read a row once for several of a batch."""

    @property
    def rate(self) -> float:
        """Share of the found ids whose rows are in the device's memory; 0 if none was found."""
        found = self.hot + self.cold
        return self.hot / found if found else 0.0


class TieredTable(Table):
    """As `Table`, with the rows in two places, made by `Snapshot.load(device, gpu_bytes=...)`.

    A cold row crosses the bus once for each lookup that asks for it, however often; in one of fewer than 2048 ids once
    an id, in one of more than 2^22 once for each 2^22 of them. `hits` says whether the budget and `hot_ids` fit the
    traffic; `count_accesses` and `accesses` find the ids that would fit it better, for the next load.
    """

    def __init__(self, manifest: Manifest, tiered: Tiered) -> None:
        super().__init__(manifest, tiered.storage, tiered.layout)
        self.cold = tiered.cold
        """uint8 [bytes]: the rows on the host, after the index if that is there too."""
        self._readers = tiered.readers
        self.index_on_host = tiered.index_on_host
        """Whether the index lies in host memory, because the budget did not hold it: each id then reads it over the
        bus, 64 bytes or more."""
        self._hot_rows, self._rows = tiered.hot_rows, tiered.hot_rows + tiered.cold_rows
        # Copied, which waits for the device: lookups come on streams of their own, and outside of inference mode too.
        with torch.inference_mode(False):
            self._counters, self._places = (
                gpu.copied(numbers, self.device) for numbers in (torch.zeros(4, dtype=torch.int64), torch.arange(4))
            )
        self._sample = 0
        self._counts: Tensor | None = None  # int32 [hot + cold rows + 1], the last one for ids that have no row
        self._lookups = itertools.count()
        self._counted = 0

    def hits(self) -> Hits:
        """Counts since the table was loaded or `reset_hits` was called, of what was asked on the current stream and of
        what is done on others. Waits for that stream."""
        return Hits(*self._counters.tolist())

    def reset_hits(self) -> None:
        """Count from 0 again."""
        self._counters.zero_()

    def count_accesses(self, sample: int = SAMPLE, past: Accesses | None = None) -> None:
        """Count from now on how often each row is looked up, in every `sample`-th lookup; the others cost no more.

        Takes 4 bytes a row of the device's memory, beside `gpu_bytes`. No lookup waits for the device. Those that are
        captured in a CUDA graph or compiled by torch are not counted, since no Python runs when they are repeated: some
        made outside tell as much. After 2^29 ids all counts are halved, so that traffic of long ago fades.

        How many ids must be counted: of a million rows that are asked for by Zipf's law with exponent 1.05, the tenth
        that is best has 88 % of what is asked for. After 100,000 counted ids the hot tenth has 87 % of that, after
        a million 96 %, after ten million 99 %. `sample` times as many are looked up; take 1 where there are few.

        Args:
            sample: 1: every lookup.
            past: what another table of the same entities counted, say the version before: half of it is where the
                counts begin, so that they fade with the versions. Ids that this table does not have are passed over.

        Raises:
            InvalidArgumentError: `sample` is below 1.
            DeviceMemoryError: the device has too little memory for the counts.
        """
        self._sample = integer(sample, "sample", least=1)
        with torch.inference_mode(False), gpu.beside_captures(self.device):
            counts = gpu.device_memory(COUNT_BYTES * (self._rows + 1), self.device).view(torch.int32).zero_()
            if past is not None:
                faded = ((past.counts + 1) >> 1).clamp(max=_COUNTED // 2).to(torch.int32)
                for ids, some in zip(past.ids.split(_PIECE), faded.split(_PIECE), strict=True):
                    counts.index_add_(0, self._rows_of(ids.to(self.device)), some.to(self.device))
            if self.device.type == "cuda":  # lookups come on streams of their own
                torch.cuda.current_stream(self.device).synchronize()
        self._counted = 0
        self._counts = counts

    def accesses(self) -> Accesses:
        """What `count_accesses` has counted: the ids that were looked up, the most frequent first, on the CPU.

        Waits for the device, for what was asked of it on the current stream; lookups on it are not held up.

        Raises:
            InvalidArgumentError: nothing is counted: call `count_accesses` first.
        """
        counts = self._counts
        if counts is None:
            raise InvalidArgumentError("no accesses are counted: call count_accesses() first")
        found = [(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int32))]
        with self._aside():
            for entries in self._index_pieces():
                rows = self._row_numbers(entries[:, 1])
                here = counts[rows] * (rows < self._rows)
                seen = here > 0
                found.append((entries[seen, 0].cpu(), here[seen].cpu()))
        ids, often = (torch.cat(column) for column in zip(*found, strict=True))
        falling, order = often.sort(descending=True, stable=True)
        return Accesses(ids[order], falling.to(torch.int64))

    def ids(self) -> Tensor:
        """As of `Table`."""
        return super().ids().to(self.device)

    def _lookup(self, ids: Tensor, out_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        self._begin(ids)
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
        self._begin(ids)
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
        # Other streams count at the same time. A GPU adds these one by one, as `lookup_tiered` does; += could undo what
        # came between its reading and its writing. (With torch.use_deterministic_algorithms this can, too.)
        self._counters.index_add_(0, self._places, hits)
        return pooled, found

    def _begin(self, ids: Tensor) -> None:
        """What every lookup does before it reads: its stream is noted, and its ids are counted if it is their turn."""
        if self._readers is not None and not torch.compiler.is_compiling():
            self._readers.note()
        self._count(ids)

    def _count(self, ids: Tensor) -> None:
        """Count the rows of a lookup, if it is one of those that are."""
        counts = self._counts
        if counts is None or torch.compiler.is_compiling() or next(self._lookups) % self._sample:
            return
        if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return
        self._counted += ids.numel()  # threads that do so at once may lose a batch: there is room for that
        if self._counted > _COUNTED:
            self._counted = 0
            counts >>= 1
        one = torch.ones((), dtype=torch.int32, device=self.device)
        counts.index_add_(0, self._rows_of(ids.reshape(-1)), one.expand(ids.numel()))

    def _rows_of(
        self,
        ids: Tensor,  # int64 [N]
    ) -> Tensor:
        """As `_row_numbers`, of ids."""
        with translated_errors():
            return self._row_numbers(ops.locate(ids, self._index_storage, self._lookup_layout()))

    def _row_numbers(
        self,
        locations: Tensor,  # int64 [N]
    ) -> Tensor:
        """Row numbers through both tiers, int64 [N], one more than the last where there is none."""
        rows = (locations & ((1 << ROW_BITS) - 1)) + (locations >> ROW_BITS) * self._hot_rows
        return torch.where(locations < 0, self._rows, rows)

    @property
    def _index_storage(self) -> Tensor:
        return self.cold if self.index_on_host else self._storage

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """On a GPU, a stream on which work waits for what was asked of it so far, and lookups do not wait for it."""
        here = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        with gpu.aside(self.device) as stream:
            if stream is not None and here is not None:
                stream.wait_stream(here)
            yield

    def _index_pieces(self) -> Iterator[Tensor]:
        """The slots of the index and of the overlay, int64 [n, 2], piece by piece."""
        for numbers in index_numbers(self.host_layout):
            start, _, total, _ = numbers.tolist()
            slots = self._index_storage[start : start + total * BUCKET_BYTES].view(torch.int64).view(-1, 2)
            for piece in slots.split(_PIECE):
                yield piece.to(self.device, non_blocking=True)
