"""How often rows were looked up: what a table saw, and what the next one should keep near."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from embedding_store.errors import (
    ChecksumError,
    FileFormatError,
    InvalidArgumentError,
    MissingFileError,
    NewerFormatError,
)
from embedding_store.storage.replacing import replacing

_KEY, _CRC = "embedding_store.accesses", "embedding_store.crc32"
_FORMAT = 1
_SCHEMA = pa.schema([("id", pa.int64()), ("count", pa.int64())])


@dataclass(frozen=True, eq=False)
class Accesses:
    """The ids that were looked up, the most frequent first. `ids` is what `hot_ids` of `Snapshot.load` takes."""

    ids: Tensor
    """int64 [N], each once."""
    counts: Tensor
    """int64 [N], 1 or more: how often each was counted. Sampled, so that only their proportions mean something."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file for `load`, which replaces what is at `path` at once and for good.

        It is Parquet: columns `id` and `count`, both int64, in the order of `ids`; in the schema's metadata, as decimal
        numbers, the format under `embedding_store.accesses` and the CRC-32 of both columns' bytes, little-endian, under
        `embedding_store.crc32`. Some 10 bytes an id. It belongs to whoever serves, so keep it beside the configuration
        of that, not in the store: a store's series may be read by many, each with a traffic of its own.

        Raises:
            InvalidArgumentError: there is no folder to put it into.
        """
        place = Path(path)
        if not place.parent.is_dir():
            raise InvalidArgumentError(f"path is {place}, and {place.parent} is not a folder: make it first")
        columns = [pa.array(column.numpy()) for column in (self.ids, self.counts)]
        schema = _SCHEMA.with_metadata({_KEY: str(_FORMAT), _CRC: str(_crc(self.ids, self.counts))})
        with replacing(place) as temporary:
            rows = pa.table(columns, schema=schema)
            pq.write_table(rows, temporary, compression="zstd", use_dictionary=False)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Accesses:
        """What `save` wrote.

        Raises:
            MissingFileError: there is no such file.
            FileFormatError, ChecksumError: another file, or bytes that are not those that were written.
            NewerFormatError: written by a later version of this package.
        """
        place = str(path)
        try:
            rows = pq.read_table(place)
        except FileNotFoundError:
            message = "does not exist: save a table's accesses there first"
            raise MissingFileError(place, message) from None
        except (pa.ArrowException, OSError) as error:
            raise FileFormatError(place, f"cannot be read ({error}); save it again") from None
        metadata = rows.schema.metadata or {}
        number = metadata.get(_KEY.encode(), b"")
        if number.isdigit() and int(number) > _FORMAT:
            raise NewerFormatError(place, f"is of format {int(number)}, this package reads {_FORMAT}: update it")
        if number != str(_FORMAT).encode() or not rows.schema.equals(_SCHEMA) or any(c.null_count for c in rows):
            raise FileFormatError(place, "is no file of accesses: name one that Accesses.save wrote")
        ids, counts = (torch.from_numpy(np.array(column.to_numpy())) for column in rows.columns)
        if metadata.get(_CRC.encode()) != str(_crc(ids, counts)).encode():
            raise ChecksumError(place, "its ids and counts are not those that were written; save it again")
        falling = bool((counts.diff() <= 0).all()) and bool((counts > 0).all())
        if not falling or len(ids.unique()) != len(ids):
            raise FileFormatError(place, "has an id twice, or counts out of order: save it again")
        return Accesses(ids, counts)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Accesses({len(self)} ids, {int(self.counts.sum())} counted)"


def _crc(ids: Tensor, counts: Tensor) -> int:
    columns = (column.numpy().astype("<i8").tobytes() for column in (ids, counts))
    return zlib.crc32(b"".join(columns))
