"""A versioned store of entity vectors: immutable snapshots, history, tags, and lookup by any int64 id.

    store = EmbeddingStore("runs/demo/store")
    series = store.create("user_ctr", dim=128, dtype="int8")
    with series.write(as_of=day_end, space="ctr-1") as writer:
        writer.append(ids, vectors)
    table = series.latest().load()
    vectors, found = table.lookup(ids)

The stored format is on one page in FORMAT.md.
"""

from embedding_store.errors import (
    AsOfDecreasedError,
    ChecksumError,
    CorruptStoreError,
    DuplicateIdsError,
    FileFormatError,
    FileSizeError,
    InvalidArgumentError,
    InvalidIdsError,
    InvalidIndexError,
    InvalidTimeError,
    InvalidVectorsError,
    MissingFileError,
    NewerFormatError,
    NotFoundError,
    SeriesExistsError,
    SeriesNotFoundError,
    StoreError,
    TagNotFoundError,
    VersionNotFoundError,
    WriterClosedError,
)
from embedding_store.series import Series
from embedding_store.snapshot import Snapshot
from embedding_store.store import EmbeddingStore
from embedding_store.table import Table
from embedding_store.writer import SnapshotWriter

__all__ = [
    "AsOfDecreasedError",
    "ChecksumError",
    "CorruptStoreError",
    "DuplicateIdsError",
    "EmbeddingStore",
    "FileFormatError",
    "FileSizeError",
    "InvalidArgumentError",
    "InvalidIdsError",
    "InvalidIndexError",
    "InvalidTimeError",
    "InvalidVectorsError",
    "MissingFileError",
    "NewerFormatError",
    "NotFoundError",
    "Series",
    "SeriesExistsError",
    "SeriesNotFoundError",
    "Snapshot",
    "SnapshotWriter",
    "StoreError",
    "Table",
    "TagNotFoundError",
    "VersionNotFoundError",
    "WriterClosedError",
]
