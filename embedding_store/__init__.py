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
    DeviceMemoryError,
    DuplicateIdsError,
    FileFormatError,
    FileSizeError,
    FragmentError,
    HashCollisionError,
    InvalidArgumentError,
    InvalidIdsError,
    InvalidIndexError,
    InvalidTimeError,
    InvalidVectorsError,
    MissingDependencyError,
    MissingFileError,
    NativeLibraryError,
    NewerFormatError,
    NotFoundError,
    PinMismatchError,
    RankFailedError,
    RanksDisagreeError,
    SchemaChangedError,
    SeriesExistsError,
    SeriesNotFoundError,
    SlotBusyError,
    SpaceMismatchError,
    StorageAccessError,
    StoreError,
    SupersededError,
    TagMovedError,
    TagNotFoundError,
    VersionExpiredError,
    VersionNotFoundError,
    VersionRetractedError,
    WriterClosedError,
)
from embedding_store.history.state import Move
from embedding_store.history.tombstones import Tombstone
from embedding_store.keys import hash_keys
from embedding_store.native.ops import nearest
from embedding_store.nn.entity_embedding import EntityEmbedding
from embedding_store.read.accesses import Accesses
from embedding_store.read.open_tables import OpenTables
from embedding_store.read.point_in_time import PointInTime
from embedding_store.read.snapshot import Snapshot
from embedding_store.read.table import Table
from embedding_store.read.tiered import Hits, TieredTable
from embedding_store.scan.diff import Diff
from embedding_store.series import Series
from embedding_store.serve.capturable import CapturableLiveTable
from embedding_store.serve.live import LiveStatus, LiveTable
from embedding_store.serve.sharded import ShardedTable, load_sharded
from embedding_store.serve.sharded_live import ShardedLiveTable
from embedding_store.serve.sharded_time import ShardedPointInTime
from embedding_store.storage.local import LocalStorage
from embedding_store.store import EmbeddingStore
from embedding_store.write.fragments import Fragment, SharedDraft
from embedding_store.write.pieces import IndexPiece
from embedding_store.write.writer import FragmentWriter, SnapshotWriter

__all__ = [
    "Accesses",
    "AsOfDecreasedError",
    "CapturableLiveTable",
    "ChecksumError",
    "CorruptStoreError",
    "DeviceMemoryError",
    "Diff",
    "DuplicateIdsError",
    "EmbeddingStore",
    "EntityEmbedding",
    "FileFormatError",
    "FileSizeError",
    "Fragment",
    "FragmentError",
    "FragmentWriter",
    "HashCollisionError",
    "Hits",
    "IndexPiece",
    "InvalidArgumentError",
    "InvalidIdsError",
    "InvalidIndexError",
    "InvalidTimeError",
    "InvalidVectorsError",
    "LiveStatus",
    "LiveTable",
    "LocalStorage",
    "MissingDependencyError",
    "MissingFileError",
    "Move",
    "NativeLibraryError",
    "NewerFormatError",
    "NotFoundError",
    "OpenTables",
    "PinMismatchError",
    "PointInTime",
    "RankFailedError",
    "RanksDisagreeError",
    "SchemaChangedError",
    "Series",
    "SeriesExistsError",
    "SeriesNotFoundError",
    "ShardedLiveTable",
    "ShardedPointInTime",
    "ShardedTable",
    "SharedDraft",
    "SlotBusyError",
    "Snapshot",
    "SnapshotWriter",
    "SpaceMismatchError",
    "StorageAccessError",
    "StoreError",
    "SupersededError",
    "Table",
    "TagMovedError",
    "TagNotFoundError",
    "TieredTable",
    "Tombstone",
    "VersionExpiredError",
    "VersionNotFoundError",
    "VersionRetractedError",
    "WriterClosedError",
    "hash_keys",
    "load_sharded",
    "nearest",
]
