"""One class per broken invariant, so that a caller can tell a typo from a torn disk.

Wrong arguments are also `ValueError`s, names that do not exist also `KeyError`s. What is wrong with stored bytes is a
`CorruptStoreError` and carries the file's path.
"""

from __future__ import annotations


class StoreError(Exception):
    """Base of everything this package raises on purpose."""


class InvalidArgumentError(StoreError, ValueError):
    """An argument that cannot work: a dimension below 1, an unknown dtype, a bad name, an empty space."""


class NativeLibraryError(StoreError, ImportError):
    """The native library is not built, or does not fit the torch that is installed."""


class DeviceMemoryError(StoreError, MemoryError):
    """A table takes more memory than a device has, the host for its cold rows, or a slot of a CapturableLiveTable."""

    @property
    def lack(self) -> str:
        """The message as far as its remedy, for those who have another one."""
        return str(self).partition(": ")[0]


class SlotBusyError(StoreError):
    """A version cannot be loaded yet into the slot of a CapturableLiveTable that is not served: it is still read."""


class InvalidTimeError(StoreError, ValueError):
    """A time that is neither int milliseconds nor an aware datetime, reads as another unit, or is beyond int64."""


class InvalidIdsError(StoreError, ValueError):
    """Ids that are not int64, have a wrong shape or lie on another device than the table."""


class InvalidVectorsError(StoreError, ValueError):
    """Vectors of a wrong shape or type, or with a value beyond the dtype: NaN, infinity, too large."""


class DuplicateIdsError(StoreError, ValueError):
    """One id was appended twice to a snapshot whose writer did not ask for `duplicates="last"`."""


class HashCollisionError(StoreError, ValueError):
    """Two different keys of one snapshot have the same 64-bit hash."""


class AsOfDecreasedError(StoreError, ValueError):
    """A snapshot would be older in event time than the newest one of its series."""


class FragmentError(StoreError, ValueError):
    """Fragments that do not make a snapshot: one is missing, there twice, or of another draft."""


class SupersededError(StoreError):
    """A newer snapshot was published while this one was being compacted."""


class SeriesExistsError(StoreError, ValueError):
    """The series to create is already there."""


class TagMovedError(StoreError):
    """A tag does not point to the version that the caller expected: somebody else has moved it."""


class WriterClosedError(StoreError, ValueError):
    """A writer used outside its `with` block, or after an append that failed half-way."""


class MissingDependencyError(StoreError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


class StorageAccessError(StoreError):
    """A storage that cannot be reached, refuses or lacks what a store needs: no such bucket, wrong credentials, no
    network, no put-if-absent, no hard links."""


class NotFoundError(StoreError, KeyError):
    """A series, version or tag that does not exist; the message names those that do."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show the message's repr


class SeriesNotFoundError(NotFoundError):
    """No series of that name."""


class VersionNotFoundError(NotFoundError):
    """No such version, none as old as asked for, or none at all."""


class VersionExpiredError(VersionNotFoundError):
    """A version that existed and was expired; the message says when."""


class VersionRetractedError(VersionExpiredError):
    """A version that was published and taken back; the message says when."""


class TagNotFoundError(NotFoundError):
    """No tag of that name, or none that it could be rolled back to."""


class SchemaChangedError(StoreError, ValueError):
    """Another dimension or dtype than expected: a snapshot's that would replace another in a running process or model,
    or a series' that has evolved since the handle or the writer at hand was made."""


class SpaceMismatchError(StoreError, ValueError):
    """Vectors of two spaces would be mixed: in the answer to one lookup, or in an average."""


class PinMismatchError(StoreError, ValueError):
    """A version that a checkpoint names exists, but is not the snapshot that the checkpoint was made with."""


class RanksDisagreeError(StoreError, ValueError):
    """Ranks of one process group were given what must be the same for all of them, and is not: say two versions."""


class RankFailedError(StoreError):
    """Another rank of the process group failed at what all do together; the message has its error, or its number."""


class CorruptStoreError(StoreError):
    """A stored file breaks the format. `path` is the file."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(path, message)  # both, so that it can be pickled
        self.path = path

    def __str__(self) -> str:
        return ": ".join(self.args)


class MissingFileError(CorruptStoreError):
    """A file that a manifest names is not there."""


class FileSizeError(CorruptStoreError):
    """A file is shorter or longer than its manifest says: truncated, or overwritten."""


class FileFormatError(CorruptStoreError):
    """A file is not what its name says: wrong magic, wrong columns, a key missing or of the wrong type."""


class NewerFormatError(CorruptStoreError):
    """A file written by a later version of this package."""


class ChecksumError(CorruptStoreError):
    """A file's bytes are not those that were written."""


class InvalidIndexError(CorruptStoreError):
    """An index that is out of order, points past its rows, or disagrees with the data files about an id."""
