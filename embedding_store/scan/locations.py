"""Where some ids of a snapshot are, without reading it whole: its indexes mapped, each block checked before its use."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from embedding_store.errors import ChecksumError
from embedding_store.format.files import healed, mapped_file
from embedding_store.format.index import BUCKET_BYTES, EMPTY, HEADER_BYTES, Header, Ids, Words
from embedding_store.format.manifest import Manifest
from embedding_store.native import ops
from embedding_store.native.library import translated_errors
from embedding_store.native.mapping import BLOCK, Mapping
from embedding_store.scan.index import is_in, read_headers
from embedding_store.storage.base import Storage

BYTES_A_STEP = 4 << 20  # of an index, when all of it is read

Result = TypeVar("Result")


def index_layout(start: int, header: Header) -> list[int]:
    """The four numbers that a layout has of an index whose file starts there: see native/ops.py."""
    return [start + HEADER_BYTES, header.home_buckets, header.total_buckets, header.seed]


class Locations:
    """The locations of a snapshot's ids. What N ids cost does not depend on how many the snapshot has.

    A copy in the cache whose bytes have changed is fetched anew, once. Raises, when made, CorruptStoreError of the
    class that fits.
    """

    def __init__(self, storage: Storage, manifest: Manifest) -> None:
        self._storage, self._manifest = storage, manifest
        self._opened: _Opened | None = None
        self._read(lambda opened: None)

    def close(self) -> None:
        """Unmap the files, until something is asked for again."""
        self._opened = None

    def find(
        self,
        ids: Ids,  # [N]
    ) -> Words:
        """Locations of these ids, uint64 [N], EMPTY where the snapshot has none. Raises ChecksumError."""
        return self._read(lambda opened: _locate(ids, opened.storage, opened.layout))

    def find_in_index(
        self,
        ids: Ids,  # [N]
    ) -> Words:
        """As `find`, in the index alone, whatever an overlay says."""
        return self._read(lambda opened: _locate(ids, opened.storage, opened.below))

    def ends(
        self,
        without: Ids,  # [M], ascending
    ) -> tuple[int, int] | None:
        """The least and the greatest of the index's ids that are not among `without`. Reads all of the index."""
        return self._read(lambda opened: _ends(opened, without))

    def _read(self, read: Callable[[_Opened], Result]) -> Result:
        def attempt() -> Result:
            if self._opened is None:
                self._opened = _open(self._storage, self._manifest)
            try:
                return read(self._opened)
            except ChecksumError:
                self._opened = None
                raise

        return healed(self._storage, attempt)


class _Opened(NamedTuple):
    """The indexes, mapped."""

    mapping: Mapping
    layout: Tensor
    """int64 [8], or [12] with an overlay."""
    below: Tensor
    """int64 [8]: without the overlay."""

    @property
    def storage(self) -> Tensor:
        """uint8 [bytes]."""
        return self.mapping.storage


def _open(storage: Storage, manifest: Manifest) -> _Opened:
    headers = read_headers(storage, manifest)
    files = [mapped_file(storage, piece) for file in manifest.indexes for piece in file.pieces]
    mapping = Mapping.open(files, copies=storage.copies)
    starts = (mapping.starts[0], mapping.starts[len(manifest.index.pieces)]) if manifest.overlay else mapping.starts[:1]
    index, *overlay = (index_layout(*one) for one in zip(starts, headers, strict=True))
    below = torch.tensor([*index, 0, 0, 0, 0])
    return _Opened(mapping, torch.tensor([*index, 0, 0, 1, 0, *overlay[0]]) if overlay else below, below)


def _locate(ids: Ids, storage: Tensor, layout: Tensor) -> Words:
    with translated_errors():
        found = ops.locate(torch.from_numpy(np.ascontiguousarray(ids)), storage, layout)
    return found.numpy().view(np.uint64)


def _ends(opened: _Opened, without: Ids) -> tuple[int, int] | None:
    start, _, buckets, _ = opened.below[:4].tolist()
    stop, ends = start + buckets * BUCKET_BYTES, list[tuple[int, int]]()
    for first in range(start, stop, BYTES_A_STEP):
        last = min(first + BYTES_A_STEP, stop)
        opened.mapping.check_blocks(first // BLOCK, -(-last // BLOCK) - first // BLOCK)
        slots = opened.storage[first:last].numpy().view(np.int64).reshape(-1, 2)
        ids = slots[slots[:, 1].view(np.uint64) != EMPTY, 0]
        if len(ids) and bool(is_in(np.array([ids.min(), ids.max()]), without).any()):
            ids = ids[~is_in(ids, without)]
        if len(ids):
            ends.append((int(ids.min()), int(ids.max())))
    return (min(least for least, _ in ends), max(greatest for _, greatest in ends)) if ends else None
