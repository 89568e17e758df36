"""Pieces here and there of mapped files: each block is checked before its first use."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from embedding_store.format.index import Ids
from embedding_store.native.mapping import BLOCK, Mapping


class CheckedPieces:
    """Which blocks of a mapping are checked; those that pieces lie in are before they are read."""

    def __init__(self, mapping: Mapping) -> None:
        self.mapping = mapping
        self._checked = np.zeros(-(-len(mapping.storage) // BLOCK), bool)

    def check(
        self,
        starts: Ids,  # [N], bytes from the mapping's start
        stops: Ids,  # [N], likewise: behind each piece's last byte
    ) -> None:
        """Check the blocks under these pieces. Raises ChecksumError."""
        some = stops > starts
        first, last = starts[some] // BLOCK, (stops[some] - 1) // BLOCK
        for step in range(int((last - first).max(initial=0)) + 1):
            self._check_blocks(np.minimum(first + step, last))

    def _check_blocks(self, blocks: NDArray[np.int64]) -> None:
        if bool(self._checked[blocks].all()):
            return
        wanted = np.zeros(len(self._checked), bool)
        wanted[blocks] = True
        blocks = np.flatnonzero(wanted & ~self._checked)
        for run in np.split(blocks, np.flatnonzero(np.diff(blocks) > 1) + 1):
            self.mapping.check_blocks(int(run[0]), len(run))
        self._checked |= wanted
