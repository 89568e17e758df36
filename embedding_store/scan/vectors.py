"""Stored vectors by the numbers of their rows: mapped, each block checked before its first use."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from embedding_store.dtypes import Encoded, decode
from embedding_store.format.files import mapped_file
from embedding_store.format.index import Ids
from embedding_store.format.manifest import Manifest
from embedding_store.native.mapping import Mapping
from embedding_store.scan.pieces import CheckedPieces
from embedding_store.scan.rows import RowNumbers, row_format
from embedding_store.storage.base import Storage


class VectorReader:
    """Reads vectors of some of a snapshot's data files. Rows in stored order are read front to back."""

    def __init__(self, storage: Storage, manifest: Manifest, files: Collection[int]) -> None:
        """`files`: numbers of the data files that will be asked for, one at least; no other is opened.

        Raises CorruptStoreError of the class that fits.
        """
        self._form = row_format(manifest)
        numbers = sorted(files)
        opened = [mapped_file(storage, manifest.data[number]) for number in numbers]
        self._mapping = Mapping.open(opened, copies=storage.copies)
        self._pieces = CheckedPieces(self._mapping)
        self._first_rows = RowNumbers(manifest.segments).starts
        starts = dict(zip(numbers, self._mapping.starts, strict=True))
        nowhere = len(self._mapping.storage)  # of files that nobody asks for: reading there is an error
        placed = [
            (starts.get(number, nowhere), segment)
            for number, file in enumerate(manifest.data)
            for segment in file.segments
        ]
        names = ("vector", "scale", "offset") if self._form.dtype.quantised else ("vector",)
        self._columns = [np.array([start + getattr(segment, name) for start, segment in placed]) for name in names]

    def read(
        self,
        positions: Ids,  # [N], rows as RowNumbers counts them
    ) -> Tensor:  # float32 [N, D]
        """A copy of their vectors. Raises ChecksumError."""
        dtype, dim = self._form.dtype, self._form.dim
        segments = np.searchsorted(self._first_rows, positions, "right") - 1
        rows = positions - self._first_rows[segments]
        kinds = [(dtype.torch_dtype, dtype.width(dim)), (torch.float32, 1), (torch.float32, 1)]
        vector, *scales = (
            self._gather(starts[segments], rows, kind, width)
            for starts, (kind, width) in zip(self._columns, kinds, strict=False)
        )
        return decode(Encoded(vector, *(scale[:, 0] for scale in scales)), dim, dtype)

    def _gather(
        self,
        starts: Ids,  # [N], bytes: where the column of each row's segment starts
        rows: Ids,  # [N]
        kind: torch.dtype,
        width: int,  # elements of a row
    ) -> Tensor:  # `kind` [N, width]
        size = kind.itemsize
        starts = starts + rows * (width * size)
        self._pieces.check(starts, starts + width * size)
        elements = self._mapping.storage[: len(self._mapping.storage) // size * size].view(kind)
        # Columns start anywhere: a row of `width` elements at every element.
        anywhere = elements.as_strided((len(elements) - width + 1, width), (1, 1))
        return anywhere.index_select(0, torch.from_numpy(starts // size))
